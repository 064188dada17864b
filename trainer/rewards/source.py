"""Defines where the training loop gets rewards: every clip ends with a reward or with the reason why it has none.

`RemoteRewards` (remote.py) asks a reward server. `NoRewards` is for runs that need no rewards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protos.types import Clip
from trainer.errors import ConfigError
from trainer.objective import GroupRewards


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """Clips that are scored against each other. A `key` must always mean the same clips, also after a restart."""

    key: str
    real: Clip
    rollouts: tuple[Clip, ...]
    policy_version: str
    discriminator_version: str
    trains: bool = True  # whether a refresh may train on these clips

    @property
    def clips(self) -> tuple[Clip, ...]:
        return self.real, *self.rollouts


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Rewards of groups in the order of the request, and statistics of their clips."""

    groups: tuple[GroupRewards, ...]
    latencies_s: tuple[float, ...]
    errors: dict[str, int]  # number of clips without a reward, by reason
    num_clipped: int = 0  # clips with a discriminator logit outside the bounds of a reward


class RewardSource(Protocol):
    """A source of rewards."""

    def pin(self) -> str:
        """The discriminator version that scores the next buffer."""
        ...

    def knows(self, key: str, num_clips: int) -> bool:
        """Whether all outcomes of a group are stored, so that it need not be submitted."""
        ...

    def submit(self, group: ClipGroup) -> None:
        """Submit a group. Returns soon, unless too much is in flight."""
        ...

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        """Wait for groups of `num_clips` clips each. Raises MissingRewards and RewardsSilent."""
        ...

    def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
        """Let the next process submit those clips of these groups again that have no reward."""
        ...

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        """Train the discriminators on the run's clips and return the new version. Each `key` trains once.

        Raises GateFailed if the server refused the new version because of its figures, and ClipsLost if it no longer
        has the run's clips.
        """
        ...

    def restore(self, version: str) -> None:
        """Upload a version of the run again if the server has lost it and its files are here."""
        ...

    def own_versions(self, versions: Collection[str]) -> list[Path]:
        """Folders with the files of those of these versions that are the run's own. Others are not needed any more."""
        ...

    def adopt(self, folder: Path) -> None:
        """Take the files of versions from a checkpoint."""
        ...

    def sign_of_life(self) -> None:
        """Have the server keep the run's clips and versions. Call it often; it returns at once."""
        ...

    def close(self) -> None: ...


class NoRewards:
    """For runs without rewards: fine-tuning alone, or plain replay."""

    def pin(self) -> str:
        return ""

    def knows(self, key: str, num_clips: int) -> bool:
        return True

    def submit(self, group: ClipGroup) -> None:
        pass

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        nothing = GroupRewards(real=None, rollouts=(None,) * (num_clips - 1))
        return Collected(groups=(nothing,) * len(keys), latencies_s=(), errors={})

    def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
        pass

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        raise ConfigError("there are no discriminators to refresh without a reward server; set refresh.enabled=false")

    def restore(self, version: str) -> None:
        pass

    def own_versions(self, versions: Collection[str]) -> list[Path]:
        return []

    def adopt(self, folder: Path) -> None:
        pass

    def sign_of_life(self) -> None:
        pass

    def close(self) -> None:
        pass
