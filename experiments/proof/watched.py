"""Records what the advantages of each buffer favour, for any source of rewards.

It passes everything on unchanged, and measures the clips. An advantage that rises with stillness or with a bad look
explains the result of an arm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.proof.known_rewards import Measures, measures
from experiments.proof.learned import FAVOURS, advantage_correlation
from experiments.proof.wrapped import WrappedRewards
from trainer.objective import GroupRewards
from trainer.rewards.source import ClipGroup, Collected, RewardSource


class WatchedRewards(WrappedRewards):
    """`favours` holds, for each buffer, the rank correlation of the rollouts' advantages with each of FAVOURS."""

    def __init__(self, source: RewardSource) -> None:
        super().__init__(source)
        self._measures: dict[str, list[Measures]] = {}
        self.favours: list[dict[str, float]] = []

    def submit(self, group: ClipGroup) -> None:
        self._measures[group.key] = [measures(clip) for clip in group.clips]
        super().submit(group)

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        collected = super().collect(keys, num_clips)
        self.favours.append(self._favoured(keys, collected.groups))
        return collected

    def _favoured(self, keys: Sequence[str], groups: Sequence[GroupRewards]) -> dict[str, float]:
        """Correlations over the groups in which every clip has a reward. Empty if there is no such group."""
        rows = [
            ([scored.reward for scored in (group.real, *group.rollouts) if scored], self._measures[key])
            for key, group in zip(keys, groups, strict=True)
            if key in self._measures and None not in (group.real, *group.rollouts)
        ]
        if not rows:
            return {}
        rewards = np.array([row for row, _ in rows])
        return {
            name: advantage_correlation(rewards, np.array([[getattr(one, name) for one in of] for _, of in rows]))
            for name in FAVOURS
        }
