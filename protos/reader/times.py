"""Computes with frame times: the rate behind rounded timestamps, the stride for a rate, the frame nearest to a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F")


def frame_interval(times_s: NDArray[np.float64]) -> float:
    """Seconds between frames: the mean of the intervals that differ from the median by at most half of it.

    It is 0 for fewer than two times. The median alone would turn 30 fps into 30.3 if the container rounds to
    milliseconds (webm), and into 33.3 if it rounds to centiseconds (gif). The steps would then drift off the frames.
    """
    gaps = np.diff(np.unique(times_s))
    if gaps.size == 0:
        return 0.0
    median = np.median(gaps)
    near = gaps[np.abs(gaps - median) <= median / 2]  # can be empty if short and long gaps alternate
    return float(near.mean() if gaps.size > 2 and near.size else median)


def stride_of(base_fps: float, fps: float) -> int:
    """Frames per step, at least 1: `base_fps / fps` rounded, but fractions up to 0.55 are rounded down.

    With 12 wanted, 30 fps is exactly between a stride of 2 and of 3. A rounded timestamp must not decide between them.
    """
    return max(1, math.ceil(base_fps / fps - 0.55))


def nearest(frames: Iterable[tuple[float, F]], wanted_s: Sequence[float]) -> Iterator[F]:
    """Yield the nearest frame for each wanted time (rising); a tie goes to the earlier frame.

    `frames` are (time in seconds, frame) with rising times. They are consumed to the end, one at a time, and at most
    two are held, one where a frame is as late as a wanted time. The same frame is given more than once if it is
    nearest to several times.
    """
    pending = iter(wanted_s)
    wanted = next(pending, None)
    before: tuple[float, F] | None = None
    for after in frames:
        while before is not None and wanted is not None and wanted - before[0] <= after[0] - wanted:
            yield before[1]
            wanted = next(pending, None)
        before = after
        while wanted is not None and wanted <= after[0]:  # no later frame is nearer, so do not wait for one
            yield after[1]
            wanted = next(pending, None)
    if before is not None and wanted is not None:
        for _ in itertools.chain((wanted,), pending):
            yield before[1]


def nearest_frames(times_s: NDArray[np.float64], wanted_s: Sequence[float]) -> NDArray[np.int64]:
    """Positions in `times_s` (rising) of the frames nearest to the wanted times; a tie goes to the earlier frame."""
    wanted = np.asarray(wanted_s, np.float64)
    if times_s.size < 2:
        return np.zeros(wanted.size, np.int64)
    right = np.searchsorted(times_s, wanted).clip(1, times_s.size - 1)
    return np.where(wanted - times_s[right - 1] <= times_s[right] - wanted, right - 1, right)


def is_even(times_s: NDArray[np.float64], interval_s: float) -> bool:
    """Whether each frame is within half an interval of its place at a constant rate. Rounding passes, gaps do not."""
    clock_s = times_s[0] + interval_s * np.arange(times_s.size)
    return bool(np.abs(times_s - clock_s).max() < 0.5 * interval_s)


def even_positions(times_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the frames at even steps of the clip's rate: all frames if times are even, else the nearest ones."""
    interval_s = frame_interval(times_s)
    if not interval_s or is_even(times_s, interval_s):
        return np.arange(times_s.size)
    num = math.floor((times_s[-1] - times_s[0]) / interval_s + 0.25) + 1
    return nearest_frames(times_s, (times_s[0] + interval_s * np.arange(num)).tolist())
