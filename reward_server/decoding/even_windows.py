"""Places the windows of a clip with uneven times where its frames are evenly spaced.

If a missing frame is replaced by its neighbour, the motion seems to stutter. The reward must not punish that in a
clip that lost frames in transport. So shorter windows without gaps are preferred to longer ones with gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.reader.times import frame_interval, nearest_frames, stride_of
from reward_server.decoding.sampling import Sampling, Schedule

EVEN = 0.15  # largest distance of a frame from its ideal time, as a share of a step
RATES = (0.625, 1.5)  # as a share of the profile's rate: the range that its discriminators were trained on
MOST_STARTS = 4000  # about how many starts are tried in each stretch


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Windows of `length` frames, `step_s` apart, that begin at `starts_s`. A higher `rank` is better."""

    rank: tuple[int, bool, int]
    step_s: float
    starts_s: tuple[float, ...]
    length: int


def even_schedule(
    times_s: NDArray[np.float64],
    sampling: Sampling,
    stretches: Sequence[tuple[int, int]],
    is_cut: Callable[[float, float], bool] = lambda first_s, last_s: False,
) -> Schedule | None:
    """Plan at most `max_windows` windows of one length and rate that hold as many frames as possible.

    Each frame is within EVEN of its ideal time, and no window crosses a cut. Returns None if there is no such window
    of at least `min_frames` frames. `is_cut(first_s, last_s)` says whether a cut lies between two times.
    """
    interval_s = frame_interval(times_s)
    usual = stride_of(1 / interval_s, sampling.fps)
    slowest, fastest = (share * sampling.fps for share in RATES)
    strides = [s for s in range(1, 2 * usual + 2) if slowest <= 1 / (interval_s * s) <= fastest] or [usual]
    choices = [
        choice
        for stride in strides
        for choice in _choices(times_s, interval_s * stride, sampling, stretches, is_cut, usual=stride == usual)
    ]
    if not choices:
        return None
    best = max(choices, key=lambda choice: choice.rank)
    steps = [at * best.length for at in range(len(best.starts_s))]
    return Schedule(
        first_s=float(times_s[0]),
        origins=tuple(zip(steps, best.starts_s, strict=True)),
        base_fps=1 / interval_s,
        fps_used=1 / best.step_s,
        starts=tuple(steps),
        length=best.length,
    )


def _choices(
    times_s: NDArray[np.float64],
    step_s: float,
    sampling: Sampling,
    stretches: Sequence[tuple[int, int]],
    is_cut: Callable[[float, float], bool],
    *,
    usual: bool,
) -> list[_Choice]:
    """The best windows of one rate, for every length that fits."""
    starts_s, lengths = _even_runs(times_s, step_s, sampling.window_frames, stretches)
    found: list[_Choice] = []
    for length in range(sampling.min_frames, sampling.window_frames + 1):
        fitting = [
            float(start_s)
            for start_s in starts_s[lengths >= length]
            if not is_cut(float(start_s), float(start_s + (length - 1) * step_s))
        ]
        apart = _apart(fitting, length * step_s)
        if apart:
            chosen = np.rint(np.linspace(0, len(apart) - 1, min(len(apart), sampling.max_windows))).astype(int)
            windows = tuple(apart[at] for at in sorted(set(chosen.tolist())))
            rank = (len(windows) * length, usual, length)
            found.append(_Choice(rank=rank, step_s=step_s, starts_s=windows, length=length))
    return found


def _even_runs(
    times_s: NDArray[np.float64], step_s: float, most: int, stretches: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Start times, and for each the number of evenly spaced frames from there on, within its stretch."""
    starts: list[NDArray[np.float64]] = []
    lengths: list[NDArray[np.int64]] = []
    for first, last in stretches:
        part = times_s[first:last]
        begin = part[:: max(1, part.size // MOST_STARTS)]
        wanted = begin[:, None] + step_s * np.arange(most)
        near = part[nearest_frames(part, wanted.ravel().tolist())].reshape(wanted.shape)
        even = np.abs(near - wanted) <= EVEN * step_s
        starts.append(begin)
        lengths.append(np.where(even.all(axis=1), most, (~even).argmax(axis=1)))
    return np.concatenate(starts), np.concatenate(lengths)


def _apart(starts_s: Sequence[float], least_s: float) -> list[float]:
    """As many of the rising starts as possible, at least `least_s` apart."""
    chosen: list[float] = []
    for start_s in starts_s:
        if not chosen or start_s - chosen[-1] >= least_s - 1e-9:
            chosen.append(start_s)
    return chosen
