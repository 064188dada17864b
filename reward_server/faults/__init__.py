"""Applies motion faults of graded strength to real clips. They are the negatives of pretraining and of `sanity`.

`with_fault` takes a clip that is already sampled at the rate at which it will be scored. Distances scale with the
short side of its frames. A seed gives the same random pattern at every strength, only stronger. No fault changes the
first frame, because an image-to-video model gets that frame as its input. No fault changes the number of frames or
their size.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.faults import gliding, layers, regions, retiming, spatial, temporal
from reward_server.faults.interpolation import time_remap

__all__ = ["HELD_OUT", "LEAST_DIFFERENCE", "NAMES", "STRENGTHS", "difference", "time_remap", "with_fault"]

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
MIN_FRAMES = 4  # with fewer there is no room for a freeze, a jump or a shuffle
MIN_SIDE_PX = 32

Fault = Callable[[Clip, float, np.random.Generator], Clip]
FAULTS: dict[str, Fault] = {
    "static": temporal.static,
    "frozen": temporal.frozen,
    "stutter": temporal.stutter,
    "shuffled": temporal.shuffled,
    "jittered": spatial.jittered,
    "wobbled": spatial.wobbled,
    "ghosted": temporal.ghosted,
    "teleporting": spatial.teleporting,
    "swimming": spatial.swimming,
    "damped": temporal.damped,
    "speed_change": temporal.speed_change,
    "fps_relabelled": temporal.fps_relabelled,
    "gliding": gliding.gliding,
    "slowed": retiming.slowed,
    "subject_frozen": layers.subject_frozen,
    "background_frozen": layers.background_frozen,
    "looped": retiming.looped,
    "reversed": retiming.reversed_,
    "swaying": spatial.swaying,
    "popping": regions.popping,
    "dissolving": regions.dissolving,
    "morphing": retiming.morphing,
    "boiling": spatial.boiling,
    "surging": retiming.surging,
    "exaggerated": layers.exaggerated,
}
NAMES: tuple[str, ...] = tuple(FAULTS)
HELD_OUT = ("looped", "dissolving", "background_frozen")  # the shipped weights are never trained on these
LEAST_DIFFERENCE = 0.5  # grey levels; see `difference`


def with_fault(clip: Clip, name: str, strength: float, seed: int) -> Clip:
    """Apply the fault `name` (one of NAMES) at `strength` in (0,1]. The same seed gives the same clip.

    Raises ValueError for an unknown name, a strength out of range, a negative seed, or a clip with fewer than
    MIN_FRAMES frames or a side under MIN_SIDE_PX pixels.
    """
    if name not in FAULTS:
        raise ValueError(f"no fault named {name!r}; choose one of {', '.join(NAMES)}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength of {name} must be in (0, 1], got {strength}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    num_frames, _, height, width = clip.frames.shape
    if num_frames < MIN_FRAMES or min(height, width) < MIN_SIDE_PX:
        raise ValueError(
            f"{clip} is too small for a fault; give {MIN_FRAMES} frames or more, with sides of {MIN_SIDE_PX} px or more"
        )
    return FAULTS[name](clip, float(strength), np.random.default_rng([seed, zlib.crc32(name.encode())]))


def difference(original: Clip, faulty: Clip) -> float:
    """How much a faulty twin differs from its original: the mean absolute difference of slightly blurred grey levels.

    Below LEAST_DIFFERENCE the fault cannot be seen: for example, a clip of a still scene is not made `static`. The
    first frame is left out, and so are frame rates. Raises ValueError unless both clips have the same shape.
    """
    if original.frames.shape != faulty.frames.shape:
        raise ValueError(f"{original} and {faulty} must have the same shape; compare a clip with its own twin")
    pairs = zip(original.frames[1:], faulty.frames[1:], strict=True)
    return float(np.mean([np.abs(_soft_gray(a) - _soft_gray(b)).mean() for a, b in pairs]))


def _soft_gray(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    gray = frame.astype(np.float32).mean(0)
    return np.asarray(cv2.GaussianBlur(gray, (0, 0), 1.0), np.float32)
