"""Computes the pace level of `embedded`: how fast the picture moves on.

The logits of the shipped discriminators fall with the amount of motion, also where nothing is wrong: fast motion leaves
a larger residual, and its tracks are less sure. So less motion alone would be more reward. Pace terms give this back:
the level, times a weight per logit that is kept with the discriminators whose slope it undoes. The level is bounded,
and hardly sees what shakes from frame to frame.

Legend: P frame pairs.
"""

from __future__ import annotations

import math

from torch import Tensor

STEPS = 5  # frame pairs over which a pixel's flow is averaged, so that shaking cancels


def pace_px(flow_P2HW: Tensor) -> float:
    """How fast the picture moves on in the mean over pixels, in px per frame. `flow_P2HW` is in px per frame."""
    steps = min(STEPS, len(flow_P2HW))
    drift = flow_P2HW.unfold(0, steps, 1).mean(dim=-1)
    return float(drift.square().sum(dim=1).sqrt().mean())


def pace_level(pace: float, *, middle_px: float, between_px: tuple[float, float]) -> float:
    """The logarithm of a pace over `middle_px`. A pace beyond `between_px` counts as its nearer end."""
    slowest, fastest = between_px
    return math.log(min(max(pace, slowest), fastest) / middle_px)
