"""Computes `embedded`'s stillness term: 0 for a clip that moves, negative for one that does not.

The discriminators learnt exact copies of frames and not stillness, and they prefer glides. This term knows two plain
numbers instead. How far do the tracks get on? Noise trembles, but it does not get on. And how much moves on its own,
apart from the camera? In a glide over a still picture nothing does. Above what nearly all real clips show, the term
stays 0, so that more motion is not more reward.

Legend: T frames, N tracks.
"""

from __future__ import annotations

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
SIDE_PX = 192.0  # side of a square of the profile's area


def stillness_term(
    tracks_TN2: Tensor, confidence_TN: Tensor, *, speed_px: float, own_share: float, weights: tuple[float, float]
) -> float:
    """The term, at most 0, in logits.

    It falls with the logarithm of the clip's speed below `speed_px`, and with that of its own motion below `own_share`,
    by `weights` per unit.
    """
    tracks, confidence = tracks_TN2[:, :POOL], confidence_TN[:, :POOL]
    speed = track_speed(tracks, confidence)
    own = own_motion(tracks, confidence) / speed.clamp_min(SLOWEST_PX)
    level = (own.quantile(FAST, dim=1) + FINEST).log().mean()
    missing = torch.stack([speed_px / speed.clamp_min(STILL_PX), (own_share + FINEST) / level.exp()])
    return -float(missing.log().clamp_min(0) @ torch.tensor(weights))


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
