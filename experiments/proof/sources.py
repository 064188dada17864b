"""Provides rewards that need no server: a known function of the clip, and a small discriminator with a planted flaw.

Both are `RewardSource`s (trainer/rewards/source.py): the loop submits groups of decoded clips and collects rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.proof.known_rewards import Measures, Reward, measures
from protos.types import Clip
from trainer.objective import ClipReward, GroupRewards
from trainer.rewards.source import ClipGroup, Collected, NoRewards

REWARD_CLIP = 10.0
CUES = ("speed_px", "acceleration_px", "size_drift", "glow", "flicker")


class KnownRewards(NoRewards):
    """Rewards from a function of the clip, available at once."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._groups: dict[str, GroupRewards] = {}

    def pin(self) -> str:
        return "known"

    def knows(self, key: str, num_clips: int) -> bool:
        return key in self._groups

    def submit(self, group: ClipGroup) -> None:
        real, *rollouts = (
            ClipReward(reward=self._reward(clip), version=group.discriminator_version) for clip in group.clips
        )
        self._groups[group.key] = GroupRewards(real=real, rollouts=tuple(rollouts))

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        return Collected(groups=tuple(self._groups[key] for key in keys), latencies_s=(), errors={})

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        raise TypeError("a known reward has nothing to refresh; set refresh.enabled=false")


class CueDiscriminator(nn.Module):
    """Tells real clips from rollouts by their CUES [B,5], as logits [B]. Standardises by the first training data."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, first_cues: Tensor) -> None:
        super().__init__()
        deviation, mean = torch.std_mean(first_cues, dim=0)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation.clamp(min=1e-3))
        self.layers = nn.Sequential(nn.Linear(len(CUES), 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, cues: Tensor) -> Tensor:
        logits: Tensor = self.layers((cues - self.mean) / self.deviation)[:, 0]
        return logits


class DiscriminatorRewards(KnownRewards):
    """The clipped logit of a `CueDiscriminator`. `refresh` trains it on the newest buffer; its EMA scores."""

    def __init__(self, discriminator: CueDiscriminator, *, lr: float, ema: float) -> None:
        super().__init__(lambda clip: logit(self._scoring, clip))
        self._trained, self._lr, self._ema = discriminator, lr, ema
        average: Any = torch.optim.swa_utils.get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
        self._scoring = torch.optim.swa_utils.AveragedModel(discriminator, multi_avg_fn=average)
        self._version = 0
        self._real: list[Tensor] = []
        self._rollouts: list[Tensor] = []

    def pin(self) -> str:
        return str(self._version)

    def submit(self, group: ClipGroup) -> None:
        super().submit(group)
        real, *rollouts = (cues(measures(clip)) for clip in group.clips)
        self._real.append(real)
        self._rollouts += rollouts

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        real, rollouts = torch.stack(self._real), torch.stack(self._rollouts)
        generator = torch.Generator().manual_seed(seed)
        train_discriminator(
            self._trained, real, rollouts, steps=steps, lr=self._lr, generator=generator, average=self._scoring
        )
        self._real, self._rollouts = [], []
        self._version += 1
        return self.pin()


def train_discriminator(
    discriminator: nn.Module,
    real: Tensor,
    rollouts: Tensor,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
    average: torch.optim.swa_utils.AveragedModel | None = None,
    per_step: int = 16,
) -> None:
    """Train on cues [N,5] with binary cross-entropy, real as 1 and rollouts as 0 (Eq. 7)."""
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=1e-2)
    for _ in range(steps):
        losses = [
            nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
            for pool, label in ((real, 1.0), (rollouts, 0.0))
            for logits in [discriminator(pool[torch.randint(len(pool), (per_step,), generator=generator)])]
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if average is not None:
            average.update_parameters(discriminator)


def cues(of: Measures) -> Tensor:
    """The CUES of a clip's measures, [5]."""
    return torch.tensor([getattr(of, name) for name in CUES])


@torch.no_grad()
def logits(discriminator: nn.Module, cues_B5: Tensor) -> NDArray[np.float64]:
    """Clipped logits [B] of cues [B,5]."""
    found: NDArray[np.float64] = discriminator(cues_B5).double().numpy()
    return found.clip(-REWARD_CLIP, REWARD_CLIP)


def logit(discriminator: nn.Module, clip: Clip) -> float:
    """The clipped logit of a clip."""
    return float(logits(discriminator, cues(measures(clip))[None])[0])
