"""Floors advantages by dynamics: a rollout that moves too little gets the lowest advantage of its group.

`train.py` applies it to a buffer's advantages if rewards.min_dynamics is above 0. The dynamics are the server's, of the
rollouts and of the real clip of their group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protos.types import DYNAMICS
from trainer.errors import ConfigError
from trainer.objective import Advantages, ClipReward, GroupRewards


@dataclass(frozen=True, kw_only=True)
class Floored:
    """Advantages after the floor, and what it did."""

    advantages: Advantages
    rollouts: Tensor  # [G,P] bool: those that the floor gave the lowest advantage of their group
    num_groups_below: int  # groups in which every rollout is below the floor, left as they were
    num_groups_unknown: int  # groups whose real clip has no reward and so no dynamics, left as they were

    @property
    def share(self) -> float:
        """Share of the rollouts with an advantage that were floored, 0..1."""
        return int(self.rollouts.sum()) / max(1, int(self.advantages.rollouts.isfinite().sum()))


def dynamics_table(groups: Sequence[GroupRewards]) -> Tensor:
    """Dynamics [G,1+P,D] in float64, in the order of DYNAMICS, the real clip first, NaN where a clip has none."""
    rows = [[_numbers(scored) for scored in (group.real, *group.rollouts)] for group in groups]
    return torch.tensor(rows, dtype=torch.float64)


def _numbers(scored: ClipReward | None) -> list[float]:
    found = scored.dynamics if scored else None
    return [getattr(found, name) for name in DYNAMICS] if found else [math.nan] * len(DYNAMICS)


def floored(advantages: Advantages, motion: Tensor, min_dynamics: float) -> Floored:
    """Give each rollout that moves too little the lowest advantage of its group.

    `motion` [G,1+P] is total motion, the real clip first, NaN where a clip has no reward. A rollout moves too little if
    it moves less than `min_dynamics` times its real clip. A group is left as it was if all its rollouts do, as there is
    none to prefer, or if its real clip has no dynamics. Raises ConfigError if a rollout has an advantage but no
    dynamics.
    """
    rollouts = advantages.rollouts
    known = rollouts.isfinite()
    require_dynamics(not bool((known & motion[:, 1:].isnan()).any()))
    real = motion[:, :1]
    below = known & (motion[:, 1:] < min_dynamics * real)  # a comparison with NaN is false
    all_below = known.any(dim=1) & (below == known).all(dim=1)
    chosen = below & ~all_below[:, None]
    lowest = torch.where(known, rollouts, math.inf).amin(dim=1, keepdim=True)
    return Floored(
        advantages=replace(advantages, rollouts=torch.where(chosen, lowest, rollouts)),
        rollouts=chosen,
        num_groups_below=int(all_below.sum()),
        num_groups_unknown=int((real.isnan()[:, 0] & known.any(dim=1)).sum()),
    )


def require_dynamics(sent: bool) -> None:
    """Raises ConfigError if the reward server sent rewards without dynamics."""
    if not sent:
        raise ConfigError(
            "rewards.min_dynamics is above 0, but the reward server sends rewards without dynamics; update the server, "
            "or set rewards.min_dynamics=0"
        )
