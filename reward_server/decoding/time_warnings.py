"""What a plan finds odd in a clip's times: too few frames where some are wanted, and stretches that are left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protos.reader import Source, Stretch
from protos.reader.times import nearest_frames
from protos.types import ClipWarning
from reward_server.decoding.sampling import Schedule
from reward_server.errors import UnreadableClip

NEAR = 0.45  # of a step: about half of one, with room for rounded times
TOLD_UNEVEN = 0.02  # share of wanted times without a frame near, from which it is told
MOST_UNEVEN = 0.5  # and above which the clip is refused: most of its motion would be made up


def main_stretch(source: Source) -> Stretch:
    """The longest in time; of equals the first."""
    return max(source.stretches, key=lambda one: float(source.times_s[one.last - 1] - source.times_s[one.first]))


def positions_of(times_s: NDArray[np.float64], plan: Schedule) -> NDArray[np.int64]:
    """The frame nearest to each step of the plan."""
    return nearest_frames(times_s, [plan.time_s(step) for step in plan.steps])


def uneven_share(times_s: NDArray[np.float64], plan: Schedule) -> float:
    """Of the plan's times, those without a frame near."""
    wanted_s = np.array([plan.time_s(step) for step in plan.steps])
    away_s = np.abs(times_s[positions_of(times_s, plan)] - wanted_s)
    return float((away_s > NEAR / plan.fps_used).mean())


def time_warnings(source: Source, plan: Schedule, share: float) -> tuple[ClipWarning, ...]:
    """`share` is that of evenly placed windows. Raises UnreadableClip where the plan's is over MOST_UNEVEN."""
    told: list[ClipWarning] = []
    if (left := uneven_share(source.times_s, plan)) > MOST_UNEVEN:
        raise UnreadableClip(
            f"{left:.0%} of the times at {plan.fps_used:.4g} fps have no frame within half a step, over the limit of "
            f"{MOST_UNEVEN:.0%}: its frames are shown at uneven times; re-encode it at a constant rate"
        )
    if share > TOLD_UNEVEN:
        where = "the nearest is taken" if left else f"windows of {plan.length} frames lie where none is missing"
        message = f"{share:.0%} of the wanted times have no frame within half a step; {where}"
        told.append(ClipWarning(code="uneven_times", message=message, share=share))
    if len(source.stretches) > 1:
        at = ", ".join(f"{source.times_s[one.first] - source.times_s[0]:.2f}" for one in source.stretches[1:9])
        message = f"time jumps or the size changes at {at} s; windows lie between"
        told.append(ClipWarning(code="several_stretches", message=message))
    return tuple(told)
