"""Defines the sizes of a proof: full, long, third, short and pilot for less time, and a smoke run of the same code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from experiments.proof.base import BaseSize
from experiments.proof.base_training import BasePlan


@dataclass(frozen=True, kw_only=True)
class DiscriminatorsSize:
    """How the reward server's discriminators are pretrained, judged, and refreshed while the arms train."""

    num_scenes: int = 96  # real scenes, and as many rollouts of the base
    steps: int = 300
    num_held_out: int = 32  # scenes for judging whether the rewards point the right way
    per_clip: int = 6  # rollouts of each
    num_tracks: int = 64  # tracks per clip
    refresh_steps_per_step: float = 1.0
    refresh_lr: float = 1e-4
    refresh_ema: float = 0.95
    refresh_clips: int = 4  # clips of each origin per step


@dataclass(frozen=True, kw_only=True)
class ProofSize:
    """Counts and rates of a proof, without its seeds."""

    base: BaseSize = field(default_factory=BaseSize)
    num_train: int = 64  # scenes to fine-tune on
    num_held_out: int = 24  # first frames to measure on
    per_clip: int = 2  # fresh rollouts of each
    streams: int = 4  # fine-tunings of every arm; two did not show SHIFT's gain on every seed
    motion_streams: int = 2  # fine-tunings in Level 3, which has three seeds
    num_buffers: int = 3
    buffer_clips: int = 12
    num_rollouts: int = 6
    batch_clips: int = 4
    passes: int = 4
    lr: float = 2e-3
    rank: int = 16
    target_px: float = 1.2  # rewarded speed, pixels per frame
    lambdas: tuple[float, float, float] = (3.0, 10.0, 30.0)
    beta: float = 0.5  # of exp weights, in units of the reward
    pretrain_steps: int = 400  # of the flawed discriminator
    refresh_steps_per_step: float = 10.0  # many steps, because the discriminator is far smaller than the policy
    discriminator_lr: float = 5e-3
    ema: float = 0.98
    lambda_loophole: float = 1.0  # small, because logits spread several times as widely as the known reward
    discriminators: DiscriminatorsSize = field(default_factory=DiscriminatorsSize)
    logit_lambdas: tuple[float, float, float] = (0.3, 1.0, 3.0)  # of Level 3
    logit_beta: float = 1.0  # of exp weights, in logits
    static_share: float = 0.4  # of Level 3's second fine-tuning set
    dose: float = 0.5  # of the third plan: objective.aw_dose of every arm that trains on rollouts

    @property
    def num_steps(self) -> int:
        return self.num_buffers * self.passes * (self.buffer_clips // self.batch_clips)


FULL = ProofSize()
LONG = replace(FULL, num_buffers=6, lambdas=(1.0, 3.0, 10.0))
SHORT = ProofSize(
    base=BaseSize(
        plan=BasePlan(autoencoder_steps=1000, autoencoder_batch=4, denoiser_steps=1600, denoiser_batch=4, ema=0.99)
    ),
    streams=2,
    discriminators=DiscriminatorsSize(num_scenes=48, steps=200, num_held_out=24, per_clip=4),
)
THIRD = replace(
    FULL,
    base=BaseSize(plan=BasePlan(autoencoder_steps=1000, autoencoder_batch=4, denoiser_steps=3000, denoiser_batch=8)),
    num_buffers=4,
    static_share=0.45,
    discriminators=DiscriminatorsSize(steps=600),
)
PILOT = ProofSize(
    base=BaseSize(
        plan=BasePlan(autoencoder_steps=300, autoencoder_batch=4, denoiser_steps=800, denoiser_batch=8, ema=0.99)
    ),
    streams=1,
    motion_streams=1,
    num_held_out=16,
    num_buffers=2,
    buffer_clips=8,
    passes=6,
)
SMOKE = ProofSize(
    base=BaseSize(
        num_scenes=16,
        sampler_steps=3,
        plan=BasePlan(autoencoder_steps=20, denoiser_steps=30, denoiser_batch=4),
    ),
    streams=1,
    motion_streams=1,
    num_train=8,
    num_held_out=4,
    per_clip=1,
    num_buffers=2,
    buffer_clips=4,
    num_rollouts=3,
    batch_clips=4,
    passes=2,
    pretrain_steps=50,
    discriminators=DiscriminatorsSize(
        num_scenes=3, steps=2, num_held_out=2, per_clip=2, num_tracks=16, refresh_clips=2
    ),
)

SIZES = {"full": FULL, "long": LONG, "third": THIRD, "short": SHORT, "pilot": PILOT, "smoke": SMOKE}
