"""The rule for clips whose frames are missing or uneven in time, for all users of the reader.

Where no frame is near a wanted time, the nearest one is used, and motion seems to stutter. Few such times are told,
many are refused: repeated frames look like a fault of motion, and would teach a discriminator that real clips stutter.
The trainer (trainer/picking.py) also takes no frame twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protos.reader.errors import UnreadableClip
from protos.reader.times import frame_interval, nearest_frames, stride_of
from protos.types import ClipWarning

NEAR = 0.45  # share of a step within which a frame counts as nearby: about half, with room for rounded times
TOLD_UNEVEN = 0.02  # above this share of wanted times without a frame nearby, a warning is given
# Above this share, the clip is refused: a clip at 10 fps that lost 30 % of its frames got a reward that was lower by
# several mild faults.
MOST_UNEVEN = 0.2
PIECE = 16  # steps after which a long clip is measured anew, so that a clock that drifts does not count as lost frames


def uneven_share(times_s: NDArray[np.float64], wanted_s: Sequence[float], step_s: float) -> float:
    """The share of wanted times, `step_s` apart, without a frame nearby. `times_s` [T] rises."""
    away_s = np.abs(times_s[nearest_frames(times_s, wanted_s)] - np.asarray(wanted_s))
    return float((away_s > NEAR * step_s).mean())


def uneven_share_at(times_s: NDArray[np.float64], fps: float = math.inf) -> float:
    """The share over a whole clip, at its own rate or, thinned as the server does, at about `fps`."""
    interval_s = frame_interval(times_s)
    if not interval_s:
        return 0.0
    step_s = interval_s * stride_of(1 / interval_s, fps)
    num = math.floor((times_s[-1] - times_s[0] + interval_s / 4) / step_s) + 1
    starts_s = times_s[nearest_frames(times_s, (times_s[0] + step_s * np.arange(0, num, PIECE)).tolist())]
    wanted_s = (starts_s[:, None] + step_s * np.arange(PIECE)).ravel()[:num]
    return uneven_share(times_s, wanted_s[wanted_s <= times_s[-1] + interval_s / 4].tolist(), step_s)


def check_uneven(share: float, fps: float) -> None:
    """Raise UnreadableClip if the share of times at `fps` without a frame nearby is over MOST_UNEVEN."""
    if share > MOST_UNEVEN:
        raise UnreadableClip(
            f"{share:.0%} of the times at {fps:.4g} fps have no frame within half a step, over the limit of "
            f"{MOST_UNEVEN:.0%}: the clip has lost frames or its times are uneven; send it with "
            "all of its frames, at a constant rate"
        )


def uneven_times(share: float, what_is_done: str = "the nearest is used") -> tuple[ClipWarning, ...]:
    """The warning for a share over TOLD_UNEVEN, or nothing."""
    if share <= TOLD_UNEVEN:
        return ()
    message = f"{share:.0%} of the wanted times have no frame within half a step; {what_is_done}"
    return (ClipWarning(code="uneven_times", message=message, share=share),)
