"""Plans how a clip is sampled: windows of evenly spaced times, and one size for all frames.

decode.py reads the planned frames for the motion estimators, which need evenly spaced ones. These are pure functions
of timestamps and sizes. Timestamps decide, never frame counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from protos.reader.scenes import crosses
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

MAX_ASPECT = 4.0  # a wider or taller frame is squeezed to this; its short side would be too small for tracking


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a profile samples a clip: at about `fps`, in windows of `window_frames` frames of about `area_px` pixels."""

    fps: float = 12.0
    window_frames: int = 16
    min_frames: int = 8
    max_windows: int = 4
    area_px: int = 36864
    multiple_px: int = 16

    def __post_init__(self) -> None:
        if not (2 <= self.min_frames <= self.window_frames and self.max_windows >= 1 and self.fps > 0):
            raise ValueError(
                f"need 2 <= min_frames <= window_frames, max_windows >= 1 and fps > 0, got {self}; correct it"
            )
        if not 1 <= self.multiple_px**2 <= self.area_px:
            raise ValueError(
                f"need 1 <= multiple_px^2 <= area_px, got {self.multiple_px} and {self.area_px}; correct them"
            )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The times of a clip that are sampled.

    Steps are numbered across all stretches and are `1 / fps_used` seconds apart. `origins` holds each stretch's first
    step and the time of its first frame. Window i covers the steps `starts[i] .. starts[i] + length - 1`, all in one
    stretch. `base_fps` is the clip's own rate, and `first_s` the time of its first frame.
    """

    first_s: float
    origins: tuple[tuple[int, float], ...]
    base_fps: float
    fps_used: float
    starts: tuple[int, ...]
    length: int

    @property
    def steps(self) -> list[int]:
        """The steps of all windows, rising, each once (windows can overlap)."""
        return sorted({start + k for start in self.starts for k in range(self.length)})

    def time_s(self, step: int) -> float:
        first_step, first_s = self._origin(step)
        return first_s + (step - first_step) / self.fps_used

    def start_s(self, start: int) -> float:
        """Seconds from the clip's first frame to the step `start`."""
        first_step, first_s = self._origin(start)
        return first_s - self.first_s + (start - first_step) / self.fps_used

    def _origin(self, step: int) -> tuple[int, float]:
        return [origin for origin in self.origins if origin[0] <= step][-1]


def schedule(
    times_s: NDArray[np.float64],
    sampling: Sampling,
    stretches: Sequence[tuple[int, int]] = (),
    cuts_s: Sequence[float] = (),
) -> Schedule:
    """Plan the windows of a clip whose frames are shown at `times_s` [T]. Raises ClipTooShort.

    The clip is thinned to every `stride`-th frame, so that no frame is invented. With 12 fps wanted, 10 fps stay 10,
    24 become 12, 25 become 12.5, 30 become 15, and 60 become 12. A clip longer than a window gets as many windows
    as cover it, at most `max_windows`, placed evenly from the first step to the last. `stretches` are pairs of frame
    positions (first, last exclusive); without them the whole clip is one stretch. No window leaves its stretch, and
    windows avoid the cuts at `cuts_s` if there is room.
    """
    interval_s = frame_interval(times_s)
    if not interval_s:
        raise ClipTooShort(_too_short(min(1, times_s.size), times_s.size, 1 / sampling.fps, sampling))
    step_s = interval_s * stride_of(1 / interval_s, sampling.fps)
    parts = [(times_s[first], times_s[last - 1]) for first, last in stretches or [(0, times_s.size)]]
    # A quarter of a frame of slack keeps the last frame when its timestamp was rounded down.
    totals = [math.floor((last_s - first_s + interval_s / 4) / step_s) + 1 for first_s, last_s in parts]
    if max(totals) < sampling.min_frames:
        raise ClipTooShort(_too_short(max(totals), times_s.size, step_s, sampling, len(parts)))
    length = min(max(totals), sampling.window_frames)
    origins, allowed, first_step = list[tuple[int, float]](), list[int](), 0
    for (first_s, _), total in zip(parts, totals, strict=True):
        origins.append((first_step, float(first_s)))
        allowed += range(first_step, first_step + total - length + 1)
        first_step += total
    num_windows = min(sampling.max_windows, math.ceil(first_step / length))
    ideal = np.rint(np.linspace(0, first_step - length, num_windows)).astype(int)
    plan = Schedule(
        first_s=float(times_s[0]),
        origins=tuple(origins),
        base_fps=1 / interval_s,
        fps_used=1 / step_s,
        starts=tuple(allowed),
        length=length,
    )
    uncut = [start for start in allowed if not _is_cut(plan, start, cuts_s)]
    return replace(plan, starts=_nearest_starts(ideal, np.array(uncut or allowed)))


def _is_cut(plan: Schedule, start: int, cuts_s: Sequence[float]) -> bool:
    slack_s = 0.25 / plan.base_fps
    return crosses(cuts_s, plan.time_s(start) + slack_s, plan.time_s(start + plan.length - 1) + slack_s)


def _nearest_starts(ideal: NDArray[np.int64], allowed: NDArray[np.int64]) -> tuple[int, ...]:
    """The nearest allowed start for each ideal start, each once."""
    return tuple(sorted({int(allowed[np.abs(allowed - start).argmin()]) for start in ideal}))


def profile_size(height_px: int, width_px: int, sampling: Sampling) -> tuple[int, int]:
    """(height, width) of about `area_px` pixels, in multiples of `multiple_px`, close to the clip's aspect ratio."""
    aspect = min(MAX_ASPECT, max(1 / MAX_ASPECT, width_px / height_px))
    unit = sampling.multiple_px
    rows = math.sqrt(sampling.area_px / aspect) / unit
    columns = math.sqrt(sampling.area_px * aspect) / unit

    def error(size: tuple[int, int]) -> float:
        area, shape = size[0] * size[1] / (rows * columns), size[1] / size[0] / aspect
        return abs(math.log(area)) + 2 * abs(math.log(shape))  # shape counts more, because stretching distorts motion

    around = itertools.product(_around(rows), _around(columns))
    height, width = min(around, key=error)
    return height * unit, width * unit


def _around(value: float) -> tuple[int, int]:
    return max(1, math.floor(value)), max(1, math.ceil(value))


def _too_short(total: int, num_frames: int, step_s: float, sampling: Sampling, stretches: int = 1) -> str:
    where = f" in the longest of {stretches} stretches between jumps of time" if stretches > 1 else ""
    return (
        f"the clip's {num_frames} frame(s) become {total} frame(s) after resampling to {1 / step_s:.4g} fps{where}, "
        f"under the minimum of {sampling.min_frames}; send a clip of at least {sampling.min_frames * step_s:.2f} s"
    )
