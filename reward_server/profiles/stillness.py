"""Computes `embedded`'s stillness term: 0 for a clip in which enough moves, negative for one in which little does.

The discriminators learnt exact copies of frames and not stillness, and they prefer glides. This term knows three
plain numbers instead. How far do the tracks get on? Noise trembles, but it does not get on. How much moves on its own,
apart from the camera? And how steep does the flow get? Where things come out from behind each other, or bend,
neighbouring pixels part or meet; in a glide over a still picture none do, also behind noise. Above its limits the term
stays 0, so that more motion is not more reward. Ten of 21 real clips that the networks never saw are above all limits.

Legend: T frames, N tracks, P frame pairs, H, W frame size in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

POOL = 256  # the term is computed from this many first tracks
LAG = 4  # frames, over which steps are taken
FAST = 0.9  # quantile over tracks
LEAST_CONFIDENCE = 0.3
FEWEST = 64  # confident positions from which the speed is taken
FITS = 3
FAINT = 1e-3
SLOWEST_PX = 0.25  # px per frame; own motion is relative to the clip's speed, or to this if the clip is slower
FINEST = 0.05  # of the clip's speed; own motion below this counts as about this
STILL_PX = 0.02  # px per frame; a slower clip counts as this
STEEP = 0.001  # the share of pixels that are steeper than a pair's steepness
FLAT = 0.1  # px per px; a flow that is less steep counts as this, so that a still scene loses little by it
SIDE_PX = 192.0  # side of a square of the profile's area


@dataclass(frozen=True, kw_only=True)
class StillnessWeights:
    """The term's numbers: below each limit a clip loses its weight, in logits, per unit of the logarithm.

    The limits are near the 5 % quantiles of real clips, that of the steepness near the 10 % (docs/benchmarks.md).
    """

    speed_px: float = 0.15  # px per frame
    speed_weight: float = 2.0
    own_share: float = 0.4  # of the clip's speed
    own_weight: float = 5.0
    steepness: float = 0.2  # px per px
    steepness_weight: float = 2.0


def stillness_term(tracks_TN2: Tensor, confidence_TN: Tensor, flow_P2HW: Tensor, weights: StillnessWeights) -> float:
    """The term, at most 0, in logits. It falls with the logarithm of each of the three numbers below its limit."""
    tracks, confidence = tracks_TN2[:, :POOL], confidence_TN[:, :POOL]
    speed = track_speed(tracks, confidence)
    own = own_motion(tracks, confidence) / speed.clamp_min(SLOWEST_PX)
    level = (own.quantile(FAST, dim=1) + FINEST).log().mean()
    missing = (
        weights.speed_px / speed.clamp_min(STILL_PX),
        (weights.own_share + FINEST) / level.exp(),
        weights.steepness / flow_steepness(flow_P2HW).clamp_min(FLAT),
    )
    each = torch.tensor([weights.speed_weight, weights.own_weight, weights.steepness_weight])
    return -float(torch.stack(missing).log().clamp_min(0) @ each)


def track_speed(tracks_TN2: Tensor, confidence_TN: Tensor) -> Tensor:
    """How fast the fastest tenth of a clip's tracks gets on, in px per frame: a scalar.

    A track's steps are taken over LAG frames. Tracks that are not sure of their position do not count, unless hardly
    any is.
    """
    lag = min(LAG, len(tracks_TN2) - 1)
    steps = torch.linalg.vector_norm(tracks_TN2[lag:] - tracks_TN2[:-lag], dim=-1) / lag
    sure = confidence_TN[lag:] > LEAST_CONFIDENCE
    return torch.quantile(steps[sure] if int(sure.sum()) >= FEWEST else steps.flatten(), FAST)


def own_motion(tracks_TN2: Tensor, confidence_TN: Tensor) -> Tensor:
    """How far each track moves on its own [T-lag,N], in px per frame: what no affine motion of the frame explains.

    The fit is repeated with less weight for the tracks that it does not explain, so that it follows the background.
    """
    lag = min(LAG, len(tracks_TN2) - 1)
    places, steps = tracks_TN2[:-lag] / SIDE_PX, (tracks_TN2[lag:] - tracks_TN2[:-lag]) / lag
    known = torch.cat([torch.ones_like(places[..., :1]), places], dim=-1)  # [T-lag,N,3]
    sure = confidence_TN[lag:, :, None] + FAINT
    weight: Tensor = sure
    own: Tensor = torch.linalg.vector_norm(steps, dim=-1)
    for _ in range(FITS):
        moments = known.mT @ (weight * known) + FAINT * torch.eye(3)
        affine = torch.linalg.solve(moments, known.mT @ (weight * steps))
        own = torch.linalg.vector_norm(steps - known @ affine, dim=-1)
        middle = own.median(dim=1, keepdim=True).values + FAINT
        weight = sure / (1 + (own / middle)[..., None].square())
    return own


def flow_steepness(flow_P2HW: Tensor) -> Tensor:
    """How fast neighbouring pixels part or meet where they do so fastest, in px per px: a scalar.

    It is the size of the flow's divergence that a share STEEP of the pixels exceeds, the median over pairs. A single
    pixel at which the flow fails does not count, and rotation and shear have no divergence.
    """
    (across,), (down,) = torch.gradient(flow_P2HW[:, 0], dim=2), torch.gradient(flow_P2HW[:, 1], dim=1)
    divergence = (across + down).abs().flatten(1)
    exceeding = math.ceil(STEEP * divergence.shape[1]) + 1
    return divergence.topk(exceeding, dim=1).values[:, -1].median().float()
