"""Says in which clips hardly anything moves. Such a clip cannot be told from its own held picture.

So the faults that only show its frames at another time are no faults of such a clip. Training leaves them out, and
`sanity` and `attack` count these clips apart.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from protos.types import Clip

HOLDING = ("static", "frozen", "stutter", "damped", "slowed", "speed_change", "surging", "reversed", "subject_frozen")
STILL = 0.02  # frame heights per second; below it, a clip hardly differs from its held picture
FASTEST = 0.9  # quantile over the frame's pixels


def is_still(clip: Clip) -> bool:
    """Whether hardly anything moves in a clip, by `fastest_motion`."""
    return fastest_motion(clip) < STILL


def fastest_motion(clip: Clip) -> float:
    """How fast the fastest tenth of the frame moves on average, in frame heights per second, by coarse optical flow."""
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.frames.transpose(0, 2, 3, 1)]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    speeds = [
        float(np.quantile(np.linalg.norm(search.calc(first, second, None), axis=-1), FASTEST))  # type: ignore[call-overload]
        for first, second in pairwise(gray)
    ]
    return float(np.mean(speeds) * clip.fps / clip.frames.shape[2])
