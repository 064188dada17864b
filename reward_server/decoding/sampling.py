"""When and at what size a clip is looked at: windows of evenly spaced times, and one size for all frames.

Between decode.py, which knows how to get frames, and the motion estimators, which want a few of them
evenly spaced in time. Pure functions of timestamps and sizes: timestamps decide, never frame counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from reward_server.errors import ClipTooShort

F = TypeVar("F")

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


def frame_interval(times_s: NDArray[np.float64]) -> float:
    """Seconds between frames: the mean of the intervals within half of the median; 0 for fewer than two times.

    The median alone would turn 30 fps into 30.3 where a container rounds to milliseconds (webm) and into
    33.3 where it rounds to centiseconds (gif), and the steps would drift off the frames.
    """
    gaps = np.diff(np.unique(times_s))
    if gaps.size == 0:
        return 0.0
    median = np.median(gaps)
    near = gaps[np.abs(gaps - median) <= median / 2]  # none, where short and long gaps alternate
    return float(near.mean() if gaps.size > 2 and near.size else median)


def stride_of(base_fps: float, fps: float) -> int:
    """Frames per step, at least 1: `base_fps / fps` rounded, where x.5 and a 10 % of a step above round down.

    30 fps lie exactly between 10 and 15; a rounded timestamp must not decide which of the two it gets.
    """
    return max(1, math.ceil(base_fps / fps - 0.55))


def nearest(frames: Iterable[tuple[float, F]], wanted_s: Sequence[float]) -> Iterator[F]:
    """For each wanted time (rising) the frame nearest to it; a tie goes to the earlier frame.

    `frames` are (time in seconds, frame) with rising times and are consumed to the end, one at a time:
    no more than two frames are ever held. Where a clip stands still the same frame comes twice.
    """
    pending = iter(wanted_s)
    wanted = next(pending, None)
    before: tuple[float, F] | None = None
    for after in frames:
        while before is not None and wanted is not None and wanted - before[0] <= after[0] - wanted:
            yield before[1]
            wanted = next(pending, None)
        before = after
    if before is not None and wanted is not None:
        for _ in itertools.chain((wanted,), pending):
            yield before[1]


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


def resize_frame(frame: NDArray[np.uint8], height_px: int, width_px: int) -> NDArray[np.uint8]:
    """uint8 [H,W,3] to another size: area average when shrinking, linear when enlarging, untouched when equal."""
    if frame.shape[:2] == (height_px, width_px):
        return frame
    shrinks = frame.shape[0] * frame.shape[1] > height_px * width_px
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), (width_px, height_px), interpolation=how), dtype=np.uint8)


def _around(value: float) -> tuple[int, int]:
    return max(1, math.floor(value)), max(1, math.ceil(value))


def _too_short(total: int, num_frames: int, step_s: float, sampling: Sampling) -> str:
    return (
        f"the clip's {num_frames} frame(s) are {total} frame(s) after resampling to {1 / step_s:.4g} fps, under the "
        f"minimum of {sampling.min_frames}; send a clip of at least {sampling.min_frames * step_s:.2f} s"
    )
