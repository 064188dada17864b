"""Warns about a clip's times: wanted times without a frame nearby, and jumps of time or changes of size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protos.reader import Source, Stretch
from protos.reader.evenness import check_uneven, uneven_times
from protos.reader.evenness import uneven_share as share_of
from protos.reader.times import nearest_frames
from protos.types import ClipWarning
from reward_server.decoding.sampling import Schedule


def main_stretch(source: Source) -> Stretch:
    """The stretch that lasts longest; the first of equally long ones."""
    return max(source.stretches, key=lambda one: float(source.times_s[one.last - 1] - source.times_s[one.first]))


def positions_of(times_s: NDArray[np.float64], plan: Schedule) -> NDArray[np.int64]:
    """The position of the nearest frame for each step of the plan."""
    return nearest_frames(times_s, [plan.time_s(step) for step in plan.steps])


def uneven_share(times_s: NDArray[np.float64], plan: Schedule) -> float:
    """The share of the plan's times without a frame nearby."""
    return share_of(times_s, [plan.time_s(step) for step in plan.steps], 1 / plan.fps_used)


def time_warnings(source: Source, plan: Schedule, share: float) -> tuple[ClipWarning, ...]:
    """The warnings about the clip's times. Raises UnreadableClip as `check_uneven`.

    `share` is the uneven share of evenly placed windows.
    """
    left = uneven_share(source.times_s, plan)
    check_uneven(left, plan.fps_used)
    windows = f"windows of {plan.length} frames are placed where none is missing"
    told = list(uneven_times(share) if left else uneven_times(share, windows))
    if len(source.stretches) > 1:
        at = ", ".join(f"{source.times_s[one.first] - source.times_s[0]:.2f}" for one in source.stretches[1:9])
        message = f"time jumps or the frame size changes at {at} s; no window crosses these points"
        told.append(ClipWarning(code="several_stretches", message=message))
    return tuple(told)
