"""Arithmetic of frame times: the rate behind rounded timestamps, every n-th frame, the frame nearest to a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F")


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


def nearest_frames(times_s: NDArray[np.float64], wanted_s: Sequence[float]) -> NDArray[np.int64]:
    """Positions in `times_s`, which rise, of the frames nearest to the wanted times; a tie goes to the earlier."""
    wanted = np.asarray(wanted_s, np.float64)
    if times_s.size < 2:
        return np.zeros(wanted.size, np.int64)
    right = np.searchsorted(times_s, wanted).clip(1, times_s.size - 1)
    return np.where(wanted - times_s[right - 1] <= times_s[right] - wanted, right - 1, right)


def is_even(times_s: NDArray[np.float64], interval_s: float) -> bool:
    """Whether each frame is within half an interval of where a clock has it: rounded times pass, gaps do not."""
    clock_s = times_s[0] + interval_s * np.arange(times_s.size)
    return bool(np.abs(times_s - clock_s).max() < 0.5 * interval_s)


def even_positions(times_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the frames at even steps of their own rate: all of them where time is even, else the nearest."""
    interval_s = frame_interval(times_s)
    if not interval_s or is_even(times_s, interval_s):
        return np.arange(times_s.size)
    num = math.floor((times_s[-1] - times_s[0]) / interval_s + 0.25) + 1
    return nearest_frames(times_s, (times_s[0] + interval_s * np.arange(num)).tolist())
