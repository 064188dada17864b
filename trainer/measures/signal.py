"""Measures how much the rewards of a buffer can teach: how far they differ within a group, against their own noise.

Only differences within a group become advantages, so the gap between real clips and rollouts teaches nothing by itself.
The noise is that of the query points: some groups are scored again with other points, and what differs between the two
is noise. G groups of one real clip and P rollouts; N of them are scored twice. NaN stands for a missing reward, and for
a figure that cannot be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from trainer.objective import ClipReward, GroupRewards

COMBINED = "combined"


@dataclass(frozen=True, kw_only=True)
class RewardSignal:
    """The signal of one reward: of the combined one, or of one discriminator. Figures are in units of the reward."""

    gap: float  # mean over groups of the real clip's reward minus its rollouts' mean
    spread: float  # standard deviation of rollouts within a group, noise included
    noise: float  # the part of `spread` that another draw of query points would change
    auc: float  # probability that a real clip has a higher reward than a rollout; 0.5: no separation

    @property
    def signal(self) -> float:
        """Standard deviation of rollouts within a group without the noise."""
        return math.sqrt(max(0.0, self.spread**2 - self.noise**2))

    @property
    def to_noise(self) -> float:
        """Signal over noise. 0 without any spread, infinite without noise, NaN if the noise is not known."""
        if self.spread == 0:
            return 0.0
        return self.signal / self.noise if self.noise else math.inf


@dataclass(frozen=True, kw_only=True)
class SignalQuality:
    """What a buffer's rewards can teach."""

    rewards: Mapping[str, RewardSignal]  # of `combined` and of each discriminator
    head_ranks: float  # mean over groups of Spearman's correlation of the discriminators' rewards of rollouts, -1..1
    clipped_rewards: float  # share of clips with a logit outside the bounds of a reward
    clipped_advantages: float  # share of advantages that were clipped
    num_twice: int  # groups of which at least two rollouts were scored twice

    @property
    def combined(self) -> RewardSignal:
        return self.rewards[COMBINED]


def reward_signal(table: Tensor, twice: Tensor, *, centre: str) -> RewardSignal:
    """The signal of rewards [G,1+P], the real clip first, and of groups scored twice [N,2,1+P].

    `centre` is what an advantage is centred by: the `group` or the whole `batch` (Objective.centre).
    """
    gaps = table[:, 0] - table[:, 1:].nanmean(dim=1)
    spread, noise = _pools(table[:, 1:], centre), _pools(twice[:, 0, 1:] - twice[:, 1, 1:], centre)
    return RewardSignal(
        gap=float(gaps.nanmean()),
        spread=_deviation(spread),
        noise=_deviation(noise) / math.sqrt(2),  # a difference of two draws has the variance of both
        auc=_auc(_known(table[:, 0]), _known(table[:, 1:])),
    )


def signal_quality(
    tables: Mapping[str, Tensor],
    twice: Mapping[str, Tensor],
    *,
    centre: str,
    clipped: Tensor,
    clipped_advantages: float,
) -> SignalQuality:
    """The quality of a buffer. `tables` [G,1+P] and `twice` [N,2,1+P] are by reward, see `reward_signal`.

    `clipped` [G,1+P] is 1 for a clipped reward, 0 for another (`clipped_table`).
    """
    both = (twice[COMBINED][:, :, 1:].isfinite().all(dim=1).sum(dim=1) > 1).sum()
    heads = [table[:, 1:] for name, table in tables.items() if name != COMBINED]
    return SignalQuality(
        rewards={name: reward_signal(table, twice[name], centre=centre) for name, table in tables.items()},
        head_ranks=_rank_agreement(heads[0], heads[1]),
        clipped_rewards=float(clipped.nanmean()),
        clipped_advantages=clipped_advantages,
        num_twice=int(both),
    )


def clipped_table(groups: Sequence[GroupRewards]) -> Tensor:
    """Whether each clip's reward was clipped, [G,1+P] in float64: 1, 0, or NaN without a reward."""
    rows = [[_flag(scored) for scored in (group.real, *group.rollouts)] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _flag(scored: ClipReward | None) -> float:
    return math.nan if scored is None else float(scored.clipped)


def _pools(values: Tensor, centre: str) -> list[Tensor]:
    """The known values of [G,P] that are centred together."""
    return [_known(row) for row in (values if centre == "group" else values.reshape(1, -1))]


def _known(values: Tensor) -> Tensor:
    return values[values.isfinite()]


def _deviation(pools: Sequence[Tensor]) -> float:
    """The standard deviation within pools, from all of them together. NaN if none has two values."""
    freedom = sum(max(0, len(pool) - 1) for pool in pools)
    if not freedom:
        return math.nan
    return math.sqrt(sum(float((pool - pool.mean()).square().sum()) for pool in pools if len(pool)) / freedom)


def _auc(real: Tensor, rollouts: Tensor) -> float:
    if not (len(real) and len(rollouts)):
        return math.nan
    ranks = rankdata(torch.cat([real, rollouts]).numpy())  # equal values share a rank
    above = ranks[: len(real)].sum() - len(real) * (len(real) + 1) / 2
    return float(above / (len(real) * len(rollouts)))


def _rank_agreement(ours: Tensor, theirs: Tensor) -> float:
    """The mean of Spearman's correlation of the rows of [G,P] and [G,P], over rows in which both have an order."""
    found = []
    for one, other in zip(ours, theirs, strict=True):
        known = one.isfinite() & other.isfinite()
        ranks = np.array([rankdata(row[known].numpy()) for row in (one, other)])
        if ranks.size and ranks.std(axis=1).all():
            found.append(float(np.corrcoef(ranks)[0, 1]))
    return sum(found) / len(found) if found else math.nan
