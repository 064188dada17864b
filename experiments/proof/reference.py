"""Gives the discriminators a reference set for their positives, in place of the clips that are fine-tuned on.

Advantages do not change: they are centred by the rollouts of a group alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from experiments.proof.wrapped import WrappedRewards
from protos.types import Clip
from trainer.rewards.source import ClipGroup, RewardSource


class ReferenceRewards(WrappedRewards):
    """Submits each group with the next clip of the reference set as its real clip, and passes the rest on unchanged."""

    def __init__(self, source: RewardSource, clips: Sequence[Clip]) -> None:
        super().__init__(source)
        self._clips, self._used = clips, 0

    def submit(self, group: ClipGroup) -> None:
        super().submit(replace(group, real=self._clips[self._used % len(self._clips)]))
        self._used += 1
