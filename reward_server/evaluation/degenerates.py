"""Makes the degenerate suite of `motion-reward attack`: copies of a real clip whose motion is broken, under disguises.

A kind says how the motion is broken; a disguise changes the look a little, so that held frames are no exact copies.
The suite is written apart from the faults of training, so that it also tests what training did not show.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.evaluation import looks
from reward_server.evaluation.looks import Frames
from reward_server.faults import time_remap
from reward_server.faults.frames import reordered

REAL = "real"  # the kind that leaves the motion as it is
PLAIN = "none"  # the disguise that changes nothing
FROZEN_SHARE = 0.6  # of the clip, in its middle
STUTTER = 3  # every third frame is shown three times
DAMPING = 4.0  # e-folds by which the speed falls over the clip
GLIDE = 0.06  # what a zoom enlarges the picture by, the share of the width that a pan crosses, radians of a turn
ENLARGED = 1 + 2 * GLIDE
LEAST_SCALE = 0.6
MOST_BLUR_PX = 1.5
GRAIN_LEVELS, GRAIN_PX = 3.0, 1.5
WOBBLE_PX = 0.1

Kind = Callable[[Clip], Clip]
Disguise = Callable[[Frames, float, np.random.Generator], Frames]  # frames, fps, rng


def static(clip: Clip) -> Clip:
    """The first frame for the whole clip."""
    return reordered(clip, np.zeros(len(clip.frames), np.int64))


def frozen(clip: Clip) -> Clip:
    """A frame held over the clip's middle; then the clip jumps to its current frame."""
    num_frames = len(clip.frames)
    held = round(FROZEN_SHARE * num_frames)
    start = (num_frames - held) // 2
    shown = np.arange(num_frames)
    shown[start : start + held] = start
    return reordered(clip, shown)


def stutter(clip: Clip) -> Clip:
    """Every STUTTER-th frame, held until the next one."""
    return reordered(clip, np.arange(len(clip.frames)) // STUTTER * STUTTER)


def damped(clip: Clip) -> Clip:
    """Playback that slows down all along the clip, to 2 % of its speed."""
    elapsed = np.linspace(0, 1, len(clip.frames))
    return time_remap(clip, (len(clip.frames) - 1) * -np.expm1(-DAMPING * elapsed) / DAMPING)


def zoom(clip: Clip) -> Clip:
    """A slow zoom into the first frame."""
    still = looks.frames_of(static(clip))
    return looks.clip_of(looks.camera(still, zoom=np.linspace(1, 1 + GLIDE, len(still))), clip.fps)


def pan(clip: Clip) -> Clip:
    """A slow pan over the first frame, enlarged so that its borders stay outside."""
    still = looks.frames_of(static(clip))
    return looks.clip_of(looks.camera(still, zoom=ENLARGED, pan_x=_way(still)), clip.fps)


def turn(clip: Clip) -> Clip:
    """A slow turn of the first frame, enlarged likewise."""
    still = looks.frames_of(static(clip))
    return looks.clip_of(looks.camera(still, zoom=ENLARGED, turn_deg=np.degrees(_way(still))), clip.fps)


def depth(clip: Clip) -> Clip:
    """A slow pan over the enlarged first frame with parallax: what a made-up depth calls near moves faster."""
    still = looks.frames_of(static(clip))
    relief = looks.relief(looks.camera(still[:1], zoom=ENLARGED)[0])
    return looks.clip_of(looks.slid(still, _way(still), relief, zoom=ENLARGED), clip.fps)


def _way(still: Frames) -> NDArray[np.float64]:
    """How far a glide has come in each frame, -GLIDE/2 to GLIDE/2."""
    return np.linspace(GLIDE / 2, -GLIDE / 2, len(still))


KINDS: dict[str, Kind] = {
    "static": static,
    "frozen": frozen,
    "stutter": stutter,
    "damped": damped,
    "zoom": zoom,
    "pan": pan,
    "turn": turn,
    "depth": depth,
}


def _noise(frames: Frames, fps: float, rng: np.random.Generator, *, sigma: float) -> Frames:
    return looks.noisy(frames, sigma, rng)


def _flicker(frames: Frames, fps: float, rng: np.random.Generator, *, share: float) -> Frames:
    return looks.flickered(frames, share, rng)


def _codec(frames: Frames, fps: float, rng: np.random.Generator, *, crf: int) -> Frames:
    return looks.coded(frames, fps, crf)


def _blur(frames: Frames, fps: float, rng: np.random.Generator) -> Frames:
    return looks.blurred(frames, rng.uniform(0, MOST_BLUR_PX, len(frames)).tolist())


def _grain(frames: Frames, fps: float, rng: np.random.Generator) -> Frames:
    return looks.grainy(frames, GRAIN_LEVELS, GRAIN_PX, rng)


def _scaling(frames: Frames, fps: float, rng: np.random.Generator) -> Frames:
    return looks.rescaled(frames, rng.uniform(LEAST_SCALE, 1, len(frames)).tolist())


def _wobble(frames: Frames, fps: float, rng: np.random.Generator) -> Frames:
    return looks.wobbled(frames, WOBBLE_PX, rng)


# Noise in gray levels, flicker in per cent of the brightness, the codec's crf.
DISGUISES: dict[str, Disguise] = {
    PLAIN: lambda frames, fps, rng: frames,
    **{f"noise {sigma:g}": partial(_noise, sigma=sigma) for sigma in (0.5, 1.0, 2.0, 5.0, 10.0)},
    **{f"flicker {per_cent}": partial(_flicker, share=per_cent / 100) for per_cent in (1, 3)},
    **{f"codec {crf}": partial(_codec, crf=crf) for crf in (28, 35)},
    "blur": _blur,
    "grain": _grain,
    "scaling": _scaling,
    "wobble": _wobble,
}


def broken(clip: Clip, kind: str) -> Clip:
    """The clip with its motion broken in the way `kind`, one of KINDS; REAL gives the clip itself."""
    return clip if kind == REAL else KINDS[kind](clip)


def disguised(clip: Clip, disguise: str, seed: int) -> Clip:
    """The clip under a disguise, one of DISGUISES. For one seed, every kind gets the same noise."""
    rng = np.random.default_rng([seed, zlib.crc32(disguise.encode())])
    return looks.clip_of(DISGUISES[disguise](looks.frames_of(clip), clip.fps, rng), clip.fps)
