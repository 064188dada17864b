"""Computes SHIFT's loss with pure functions: rewards -> advantages -> coefficients -> the hybrid loss, chunk by chunk.

    L = mean_b[(lambda_sft + asym max(0, A_b)) l(x_b)] + lambda_aw mean_pb[w(A~_pb) l(x~_pb)]       (Eq. 10, practical)

x are real clips, x~ are rollouts and l is the policy's diffusion loss per sample. A buffer has G groups; a group is a
real clip with its P rollouts; a step takes B groups. Source: SHIFT, arXiv 2603.17426, Sections 3.2-3.3. Where the
paper and its reference code differ (signed weights, centring by group), this follows the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from protos.types import DISCRIMINATORS, Dynamics
from trainer.errors import ConfigError, MixedVersions

STD_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The settings of the loss."""

    lambda_sft: float = 1.0  # weight of the real clips' loss
    lambda_aw: float = 0.001  # weight of the rollouts' advantage-weighted loss
    aw_dose: float = 0.0  # in place of lambda_aw: ratio of the gradients' norms, advantage-weighted over supervised
    lambda_aw_ramp_steps: int = 0  # optimizer steps over which either rises linearly from 0; 0: no ramp
    weighting: Literal["linear", "exp", "uniform"] = "linear"  # w(A): A, exp(A / beta) or 1 (plain replay)
    beta: float = 1.0  # temperature of `exp`
    pos_adv_lambda: float = 1.0  # factor in 0..1 on positive advantages; `linear` only
    neg_adv_lambda: float = 1.0  # the same on negative ones; 0: rollouts below the mean do not count
    asymmetric: bool = False  # add the real clip's own advantage to its weight
    adv_clip: float = 10.0  # rollouts' advantages are clipped to [-adv_clip, adv_clip], real clips' to [0, adv_clip]
    centre: Literal["group", "batch"] = "group"  # the mean reward to subtract: the group's or the batch's rollouts
    normalise_std: bool = False  # divide by the standard deviation of the same rollouts; for ablations
    per_discriminator: bool = False  # centre, normalise and clip each discriminator's advantages, then join them
    matched_noise: bool = True  # within a step, a real clip and its rollouts share sigma, noise and dropout

    def __post_init__(self) -> None:
        for name in ("lambda_sft", "lambda_aw", "aw_dose", "lambda_aw_ramp_steps"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("beta", "adv_clip"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("pos_adv_lambda", "neg_adv_lambda"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a number in 0..1")

        if self.aw_dose and self.lambda_aw:
            raise ConfigError(
                f"objective.aw_dose is {self.aw_dose:g} and objective.lambda_aw is {self.lambda_aw:g}, but both set "
                "how much rollouts count; leave one of them out, or set it to 0"
            )
        if self.aw_dose and not self.lambda_sft:
            raise ConfigError(
                f"objective.aw_dose is {self.aw_dose:g} times the supervised gradient, but objective.lambda_sft is 0, "
                "so there is none; set objective.lambda_aw instead"
            )

    def lambda_aw_at(self, step: int) -> float:
        """lambda_aw at optimizer step `step`, counted from 0."""
        return self.lambda_aw * self._ramp(step)

    def aw_dose_at(self, step: int) -> float:
        """aw_dose at optimizer step `step`, counted from 0."""
        return self.aw_dose * self._ramp(step)

    def _ramp(self, step: int) -> float:
        return min(1.0, step / self.lambda_aw_ramp_steps) if self.lambda_aw_ramp_steps else 1.0


def _require(holds: bool, name: str, value: float, limit: str) -> None:
    if not holds:
        raise ConfigError(f"objective.{name} is {value}; give {limit}")


@dataclass(frozen=True, kw_only=True)
class RewardWeights:
    """Weights of the discriminators in the combined reward, which is their weighted mean."""

    instantaneous: float = 1.0
    long_term: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in self._by_name.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"rewards.weights.{name} is {weight}; give 0 or more")
        if not any(self._by_name.values()):
            raise ConfigError("both rewards.weights are 0; give at least one of them more than 0")

    def mean(self, values: Mapping[str, Tensor]) -> Tensor:
        """The weighted mean of the discriminators' tensors of one shape. A weight of 0 leaves one out, NaN included."""
        counted = {name: weight for name, weight in self._by_name.items() if weight}
        terms = torch.stack([weight * values[name] for name, weight in counted.items()])
        return terms.sum(dim=0) / sum(counted.values())

    @property
    def _by_name(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in DISCRIMINATORS}


@dataclass(frozen=True, kw_only=True)
class ClipReward:
    """A clip's combined reward, the version of the discriminators that gave it, and the reward of each of them by name.

    `dynamics` is None if the server is too old to send it. Raises ValueError if the combined reward is not finite.
    """

    reward: float
    version: str
    discriminators: Mapping[str, float] = field(default_factory=dict)
    clipped: bool = False  # at least one discriminator's logit was outside the bounds of a reward
    dynamics: Dynamics | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(
                f"a reward must be finite, got {self.reward}; give None for a missing reward, never a number"
            )


@dataclass(frozen=True, kw_only=True)
class GroupRewards:
    """Rewards of a real clip and its rollouts. None means that there is no reward."""

    real: ClipReward | None
    rollouts: tuple[ClipReward | None, ...]


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """Advantages in float64. NaN means no reward: a forgotten mask then gives NaN instead of a plausible number."""

    real: Tensor  # [G], 0..adv_clip
    rollouts: Tensor  # [G,P], -adv_clip..adv_clip
    num_clipped: int  # how many of both were clipped

    @property
    def num_known(self) -> int:
        """Number of clips with an advantage, real clips and rollouts together."""
        return int(self.rollouts.isfinite().sum() + self.real.isfinite().sum())


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """The factor of each sample's diffusion loss in the total loss, with the lambdas and the division by counts."""

    real: Tensor  # [B]
    rollouts: Tensor  # [B,P], 0 where there was no reward


@dataclass(frozen=True, kw_only=True)
class HybridLoss:
    """The losses of a step, detached from the graph."""

    real: Tensor  # [B] diffusion losses
    rollouts: Tensor  # [B,P]
    sft_term: Tensor  # scalar
    aw_term: Tensor  # scalar

    @property
    def total(self) -> Tensor:
        return self.sft_term + self.aw_term


def reward_table(groups: Sequence[GroupRewards], *, centre: str = "group", discriminator: str | None = None) -> Tensor:
    """Rewards [G,1+P] in float64, the real clip first, NaN where missing.

    They are the combined rewards, or those of `discriminator` if one is named. Raises MixedVersions if rewards to be
    compared (within a group, or in the whole batch with `centre="batch"`) come from different discriminator versions.
    """
    for index, group in enumerate(groups):
        _check_versions(f"group {index}", [group])
    if centre == "batch":
        _check_versions("the batch", groups)
    rows = [[_number(scored, discriminator) for scored in (group.real, *group.rollouts)] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _check_versions(what: str, groups: Iterable[GroupRewards]) -> None:
    versions = {scored.version for group in groups for scored in (group.real, *group.rollouts) if scored}
    if len(versions) > 1:
        raise MixedVersions(
            f"{what} was scored by discriminator versions {sorted(versions)}; rewards of different versions cannot be "
            "compared; pin one version and score again"
        )


def _number(scored: ClipReward | None, discriminator: str | None) -> float:
    if scored is None:
        return math.nan
    return scored.reward if discriminator is None else scored.discriminators.get(discriminator, math.nan)


def advantages(rewards: Tensor, objective: Objective) -> Advantages:
    """Subtract the rollouts' mean from rewards [G,1+P] (see `reward_table`), and clip.

    `objective.centre` chooses the mean: over the rollouts of the group or of all groups. Without any rewarded rollout
    there is no mean, and the advantages are NaN.
    """
    real, rollouts = rewards[:, 0], rewards[:, 1:]
    pool = rollouts if objective.centre == "group" else rollouts.reshape(1, -1)
    mean = pool.nanmean(dim=1)
    scale = torch.ones_like(mean)
    if objective.normalise_std:  # of the population; the floor makes the advantages of equal rewards 0
        scale = ((pool - mean[:, None]) ** 2).nanmean(dim=1).sqrt().clamp(min=STD_FLOOR)
    raw_rollouts = (rollouts - mean[:, None]) / scale[:, None]
    raw_real = (real - mean) / scale
    clip = objective.adv_clip
    return Advantages(
        real=raw_real.clamp(0.0, clip),
        rollouts=raw_rollouts.clamp(-clip, clip),
        num_clipped=int((raw_rollouts.abs() > clip).sum() + (raw_real > clip).sum()),
    )


def joined(by_discriminator: Mapping[str, Advantages], weights: RewardWeights) -> Advantages:
    """The weighted mean of the discriminators' advantages, each already centred and clipped.

    `num_clipped` is the mean of theirs, rounded up.
    """
    clipped = [found.num_clipped for found in by_discriminator.values()]
    return Advantages(
        real=weights.mean({name: found.real for name, found in by_discriminator.items()}),
        rollouts=weights.mean({name: found.rollouts for name, found in by_discriminator.items()}),
        num_clipped=math.ceil(sum(clipped) / len(clipped)),
    )


def rollout_weights(advantages_: Tensor, objective: Objective) -> Tensor:
    """w(A~) of advantages of any shape: 0 where NaN. `uniform` needs no reward and gives 1 everywhere."""
    if objective.weighting == "uniform":
        return torch.ones_like(advantages_)
    if objective.weighting == "exp":
        weights = (advantages_ / objective.beta).exp()
    else:
        positive, negative = objective.pos_adv_lambda * advantages_, objective.neg_adv_lambda * advantages_
        weights = torch.where(advantages_ > 0, positive, negative)
    return torch.where(advantages_.isnan(), 0.0, weights)


def num_weighted(advantages_: Tensor, objective: Objective) -> int:
    """How many rollouts count in the advantage-weighted mean: those with an advantage, or all with `uniform`."""
    return advantages_.numel() if objective.weighting == "uniform" else int(advantages_.isfinite().sum())


def real_weights(advantages_: Tensor, objective: Objective) -> Tensor:
    """Weights [B] of real clips: lambda_sft, plus the clip's own advantage (0 where NaN) if `asymmetric`."""
    own = advantages_.nan_to_num(nan=0.0).clamp(min=0.0)
    return objective.lambda_sft + (own if objective.asymmetric else torch.zeros_like(own))


def coefficients(
    real: Tensor, rollouts: Tensor, objective: Objective, *, lambda_aw: float, num_real: float, num_known: float
) -> Coefficients:
    """Coefficients of a step's losses, from advantages [B] of real clips and [B,P] of rollouts.

    `lambda_aw` is the step's weight of the rollouts' term. `num_real` and `num_known` divide the two sums: the number
    of real clips and of weighted rollouts (`num_weighted`) in the step. With several processes, give the mean of each
    count over the processes. Gradients are averaged over processes, so the result then equals that of one process with
    all the samples.
    """
    return Coefficients(
        real=real_weights(real, objective) / num_real,
        rollouts=lambda_aw * rollout_weights(rollouts, objective) / max(num_known, 1e-12),
    )


def backward_by_chunk(
    chunks: Sequence[Callable[[], Tensor]],
    coefficients_: Coefficients,
    backward: Callable[[Tensor], None],
    scope: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> HybridLoss:
    """The hybrid loss and its gradient, with the graph of one chunk in memory at a time.

    Each of the 1+P `chunks` computes diffusion losses [B]: the first of the real clips, the second of each real clip's
    first rollout, and so on. `backward` accumulates the gradient of a scalar; together the chunks give the gradient of
    the whole loss. Chunk `i` is computed and differentiated within `scope(i)`.
    """
    columns = [coefficients_.real, *coefficients_.rollouts.unbind(dim=1)]
    losses, terms = [], []
    for index, (chunk, column) in enumerate(zip(chunks, columns, strict=True)):
        with scope(index):
            values = chunk()
            term = (column.to(values) * values).sum()
            backward(term)
        losses.append(values.detach())
        terms.append(term.detach())
    rollouts = torch.stack(losses[1:], dim=1) if len(losses) > 1 else losses[0].new_zeros(len(losses[0]), 0)
    aw_term = torch.stack(terms[1:]).sum() if len(terms) > 1 else torch.zeros_like(terms[0])
    return HybridLoss(real=losses[0], rollouts=rollouts, sft_term=terms[0], aw_term=aw_term)
