"""Computes `embedded`'s roughness term: tracks that jerk and turn back lower the long-term logit.

The discriminators learnt this from few scenes, and miss it in others. Two plain statistics of the tracks know it
everywhere. The term is never above 0: smoothness earns nothing, because a held picture, a glide and a slow clip are
smooth too. Its numbers were fitted on real clips and their faulty twins after the capture chain (docs/tries.md).

Legend: T frames, N tracks, Q statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POOL = 256  # the statistics are of this many first tracks
FEWEST_FRAMES = 4  # three steps, two bends, one jerk
SURE = 0.4  # mean confidence of a track that counts
FEWEST_TRACKS = 64  # that count, however unsure they are
FAINT_PX = 0.1  # px per frame; a turn of less motion is no turn
FAINT_BEND_PX = 0.05  # px per frame^2; likewise
LOW = 0.1  # quantile
FURTHEST = 3.0  # spreads from the middle; a statistic further away counts as this far
STATISTICS = ("jerkiness", "turning")


@dataclass(frozen=True, kw_only=True)
class RoughnessWeights:
    """The term's numbers: for each of STATISTICS its middle and spread over real clips, and its fitted weight.

    The weighted sum, plus `offset`, is 0 for the median real clip. It counts `scale` times, in logits, between
    `lowest` and 0.
    """

    middle: tuple[float, ...]
    spread: tuple[float, ...]
    weight: tuple[float, ...]
    offset: float
    lowest: float = -1.5
    scale: float = 6.0


FITTED = RoughnessWeights(middle=(1.44, -0.55), spread=(0.19, 0.51), weight=(-0.31, 0.16), offset=-0.02)


def roughness_term(tracks_TN2: Tensor, confidence_TN: Tensor, weights: RoughnessWeights) -> float:
    """The term in logits, from `scale` times `lowest` to 0; 0 for a clip of fewer than FEWEST_FRAMES frames."""
    if len(tracks_TN2) < FEWEST_FRAMES:
        return 0.0
    standard = _standardised(roughness_statistics(tracks_TN2, confidence_TN), weights)
    return weights.scale * float((standard @ torch.tensor(weights.weight) + weights.offset).clamp(weights.lowest, 0.0))


def _standardised(statistics_Q: Tensor, weights: RoughnessWeights) -> Tensor:
    """Statistics [..,Q] in spreads from their middles, up to FURTHEST."""
    away = (statistics_Q - torch.tensor(weights.middle)) / torch.tensor(weights.spread)
    return away.clamp(-FURTHEST, FURTHEST)


def roughness_statistics(tracks_TN2: Tensor, confidence_TN: Tensor) -> Tensor:
    """The statistics [Q] of a clip with at least FEWEST_FRAMES frames, in the order of STATISTICS.

    jerkiness   mean change of a track's acceleration over its mean acceleration; median over tracks
    turning     cosine between successive steps of a track; 10 % quantile over tracks and steps
    """
    tracks = tracks_TN2[:, _surest(confidence_TN[:, :POOL])]
    steps = tracks.diff(dim=0)
    bends = steps.diff(dim=0)
    speed, bend, jerk = (torch.linalg.vector_norm(of, dim=-1) for of in (steps, bends, bends.diff(dim=0)))
    jerkiness = (jerk.mean(dim=0) / (bend.mean(dim=0) + FAINT_BEND_PX)).median()
    along = (steps[1:] * steps[:-1]).sum(dim=-1) / (speed[1:] * speed[:-1] + FAINT_PX**2)
    return torch.stack([jerkiness, along.quantile(LOW)])


def _surest(confidence_TN: Tensor) -> Tensor:
    """Indices of the tracks that are sure of their positions, and of at least FEWEST_TRACKS if there are so many."""
    mean = confidence_TN.mean(dim=0)
    num = max(int((mean > SURE).sum()), FEWEST_TRACKS)
    return mean.argsort(descending=True, stable=True)[:num]
