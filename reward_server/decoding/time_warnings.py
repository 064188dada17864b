"""Warns about a clip's times: wanted times without a frame nearby, and jumps of time or changes of size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protos.reader import Source, Stretch
from protos.reader.times import nearest_frames
from protos.types import ClipWarning
from reward_server.decoding.sampling import Schedule
from reward_server.errors import UnreadableClip

NEAR = 0.45  # share of a step within which a frame counts as nearby: about half, with room for rounded times
TOLD_UNEVEN = 0.02  # above this share of wanted times without a frame nearby, a warning is given
# Above this share, the clip is refused. Its frames are too sparse for even windows, and repeated frames look like a
# fault: a clip at 10 fps that lost 30 % of its frames got a reward that was lower by several mild faults.
MOST_UNEVEN = 0.2


def main_stretch(source: Source) -> Stretch:
    """The stretch that lasts longest; the first of equally long ones."""
    return max(source.stretches, key=lambda one: float(source.times_s[one.last - 1] - source.times_s[one.first]))


def positions_of(times_s: NDArray[np.float64], plan: Schedule) -> NDArray[np.int64]:
    """The position of the nearest frame for each step of the plan."""
    return nearest_frames(times_s, [plan.time_s(step) for step in plan.steps])


def uneven_share(times_s: NDArray[np.float64], plan: Schedule) -> float:
    """The share of the plan's times without a frame nearby."""
    wanted_s = np.array([plan.time_s(step) for step in plan.steps])
    away_s = np.abs(times_s[positions_of(times_s, plan)] - wanted_s)
    return float((away_s > NEAR / plan.fps_used).mean())


def time_warnings(source: Source, plan: Schedule, share: float) -> tuple[ClipWarning, ...]:
    """The warnings about the clip's times. Raises UnreadableClip if the plan's uneven share is over MOST_UNEVEN.

    `share` is the uneven share of evenly placed windows.
    """
    told: list[ClipWarning] = []
    if (left := uneven_share(source.times_s, plan)) > MOST_UNEVEN:
        raise UnreadableClip(
            f"{left:.0%} of the times at {plan.fps_used:.4g} fps have no frame within half a step, over the limit of "
            f"{MOST_UNEVEN:.0%}: the clip has lost frames or its times are uneven; send it with "
            "all of its frames, at a constant rate"
        )
    if share > TOLD_UNEVEN:
        where = "the nearest is used" if left else f"windows of {plan.length} frames are placed where none is missing"
        message = f"{share:.0%} of the wanted times have no frame within half a step; {where}"
        told.append(ClipWarning(code="uneven_times", message=message, share=share))
    if len(source.stretches) > 1:
        at = ", ".join(f"{source.times_s[one.first] - source.times_s[0]:.2f}" for one in source.stretches[1:9])
        message = f"time jumps or the frame size changes at {at} s; no window crosses these points"
        told.append(ClipWarning(code="several_stretches", message=message))
    return tuple(told)
