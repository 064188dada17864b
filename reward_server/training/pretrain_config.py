"""Says how pretraining trains each discriminator: the sizes and rates of a profile, and what restrains its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from protos.types import DISCRIMINATORS, DiscriminatorName
from reward_server.profiles import ProfileName
from reward_server.training.discriminator_trainer import TrainingConfig
from reward_server.training.samples import CacheConfig

AMOUNT_WEIGHT = 0.3  # of `losses.amount_slope`, for `embedded`
# Against generated clips alone. experiments/proof/RECIPE.md has the experiment behind the noise.
STOP_AUC = 0.98
INSTANCE_NOISE = 0.1
STOP_EVERY = 100  # steps between evaluations if training may stop at an AUC


def configs(
    profile: ProfileName, *, steps: int, seed: int
) -> tuple[CacheConfig, dict[DiscriminatorName, TrainingConfig]]:
    """What to cache and how to train each discriminator for a profile.

    The instantaneous discriminator of `embedded` needs fewer steps. `shift` uses the learning rate, weight decay,
    gradient clipping and loss of the paper (arXiv 2603.17426). Unlike the paper, it uses batches of 6 without
    accumulation, and 256 of the cached tracks per step.
    """
    if profile == "embedded":
        training = TrainingConfig(steps=steps, seed=seed, symmetries=True, amount_weight=AMOUNT_WEIGHT)
        return CacheConfig(seed=seed), {
            "instantaneous": replace(training, steps=math.ceil(steps / 2)),
            "long_term": training,
        }
    cache = CacheConfig(profile=profile, frames_per_view=12, num_tracks=512, num_pairs=12, seed=seed)
    training = TrainingConfig(
        steps=steps,
        seed=seed,
        views_per_step=6,
        views_at_once=1,
        negatives_per_view=1,
        tracks_per_step=256,
        pairs_per_step=6,
        learning_rate=2e-4,
        pair_weight=0.0,
        ema=0.99,
        evaluate_tracks=512,
    )
    return cache, dict.fromkeys(DISCRIMINATORS, training)


@dataclass(frozen=True, kw_only=True)
class Restraint:
    """What keeps the logits from growing beyond the evidence. 0 leaves each of them off."""

    stop_auc: float = 0.0  # held-out AUC at which training stops
    instance_noise: float = 0.0
    label_smoothing: float = 0.0
    logit_penalty: float = 0.0

    @classmethod
    def of(
        cls,
        *,
        generated_alone: bool,
        stop_auc: float | None = None,
        instance_noise: float | None = None,
        label_smoothing: float = 0.0,
        logit_penalty: float = 0.0,
    ) -> Restraint:
        """The values that are not None. The others are on against generated clips alone, and off against faults."""
        return cls(
            stop_auc=stop_auc if stop_auc is not None else STOP_AUC * generated_alone,
            instance_noise=instance_noise if instance_noise is not None else INSTANCE_NOISE * generated_alone,
            label_smoothing=label_smoothing,
            logit_penalty=logit_penalty,
        )

    def on(self, config: TrainingConfig) -> TrainingConfig:
        """`config` with this restraint."""
        config = replace(
            config,
            instance_noise=self.instance_noise,
            label_smoothing=self.label_smoothing,
            penalty_weight=self.logit_penalty,
        )
        return _stopping(config, self.stop_auc) if self.stop_auc else config


def _stopping(config: TrainingConfig, stop_auc: float) -> TrainingConfig:
    """`config` that stops at a held-out AUC and keeps the average of the lowest held-out loss.

    It is for training against generated clips. A policy climbs the logits of these discriminators, so they should be
    calibrated, not as far apart as they can get.
    """
    patience = config.patience * config.evaluate_every // STOP_EVERY
    return replace(config, stop_auc=stop_auc, keep="loss", evaluate_every=STOP_EVERY, patience=patience)
