"""When and at what size a clip is looked at: windows of evenly spaced times, and one size for all frames.

Between decode.py, which knows how to get frames, and the motion estimators, which want a few of them
evenly spaced in time. Pure functions of timestamps and sizes: timestamps decide, never frame counts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.reader.source import resized as resize_frame
from protos.reader.times import frame_interval, nearest, stride_of
from reward_server.errors import ClipTooShort

__all__ = [
    "Sampling",
    "Schedule",
    "frame_interval",
    "nearest",
    "profile_size",
    "resize_frame",
    "schedule",
    "stride_of",
]

MAX_ASPECT = 4.0  # a wider or taller frame is squeezed to this, or its short side would hold nothing to track


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a profile wants of a clip: about `fps`, windows of `window_frames`, frames of about `area_px`."""

    fps: float = 12.0
    window_frames: int = 16
    min_frames: int = 8
    max_windows: int = 4
    area_px: int = 36864
    multiple_px: int = 16

    def __post_init__(self) -> None:
        if not (2 <= self.min_frames <= self.window_frames and self.max_windows >= 1 and self.fps > 0):
            raise ValueError(f"need 2 <= min_frames <= window_frames, max_windows >= 1 and fps > 0, got {self}")
        if not 1 <= self.multiple_px**2 <= self.area_px:
            raise ValueError(f"need 1 <= multiple_px^2 <= area_px, got {self.multiple_px} and {self.area_px}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which times of a clip are looked at.

    Step k lies `k / fps_used` seconds after the first frame; window i takes the steps
    `starts[i] .. starts[i] + length - 1`. `base_fps` is the clip's own rate, `first_s` its first timestamp.
    """

    first_s: float
    base_fps: float
    fps_used: float
    starts: tuple[int, ...]
    length: int

    @property
    def steps(self) -> list[int]:
        """Every step that some window needs, rising, once each (windows may overlap)."""
        return sorted({start + k for start in self.starts for k in range(self.length)})

    def time_s(self, step: int) -> float:
        return self.first_s + step / self.fps_used


def schedule(times_s: NDArray[np.float64], sampling: Sampling) -> Schedule:
    """Plan the windows of a clip whose frames show at `times_s` [T]. Raises ClipTooShort.

    A clip is only ever thinned, to every `stride`-th frame, so that no frame is invented: 10 fps stay
    10, 24 become 12, 25 become 12.5, 30 become 15, 60 become 12. A clip longer than a window gets as
    many windows as cover it, at most `max_windows`, placed evenly from the first step to the last.
    """
    interval_s = frame_interval(times_s)
    if not interval_s:
        raise ClipTooShort(_too_short(min(1, times_s.size), times_s.size, 1 / sampling.fps, sampling))
    step_s = interval_s * stride_of(1 / interval_s, sampling.fps)
    first_s, last_s = float(times_s.min()), float(times_s.max())
    # A quarter of a frame of slack keeps the last frame when its timestamp was rounded down.
    total = math.floor((last_s - first_s + interval_s / 4) / step_s) + 1
    if total < sampling.min_frames:
        raise ClipTooShort(_too_short(total, times_s.size, step_s, sampling))
    length = min(total, sampling.window_frames)
    windows = min(sampling.max_windows, math.ceil(total / length))
    starts = np.rint(np.linspace(0, total - length, windows)).astype(int)
    return Schedule(
        first_s=first_s,
        base_fps=1 / interval_s,
        fps_used=1 / step_s,
        starts=tuple(int(start) for start in starts),
        length=length,
    )


def profile_size(height_px: int, width_px: int, sampling: Sampling) -> tuple[int, int]:
    """(height, width) that keeps the aspect ratio, in multiples of `multiple_px`, of about `area_px` pixels."""
    aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, width_px / height_px))
    unit = sampling.multiple_px
    rows = math.sqrt(sampling.area_px / aspect) / unit
    columns = math.sqrt(sampling.area_px * aspect) / unit

    def error(size: tuple[int, int]) -> float:
        area, shape = size[0] * size[1] / (rows * columns), size[1] / size[0] / aspect
        return abs(math.log(area)) + 2 * abs(math.log(shape))  # a stretched frame bends motion, a smaller one does not

    around = itertools.product(_around(rows), _around(columns))
    height, width = min(around, key=error)
    return height * unit, width * unit


def _around(value: float) -> tuple[int, int]:
    return max(1, math.floor(value)), max(1, math.ceil(value))


def _too_short(total: int, num_frames: int, step_s: float, sampling: Sampling) -> str:
    return (
        f"the clip's {num_frames} frame(s) are {total} frame(s) after resampling to {1 / step_s:.4g} fps, under the "
        f"minimum of {sampling.min_frames}; send a clip of at least {sampling.min_frames * step_s:.2f} s"
    )
