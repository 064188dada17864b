"""What the loop asks of a reward: groups of clips go in, every clip ends as a reward or a named lack.

`RemoteRewards` (remote_rewards.py) asks a reward server; `NoRewards` is for runs that need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protos.types import Clip
from trainer.errors import ConfigError
from trainer.objective import GroupRewards


@dataclass(frozen=True, kw_only=True)
class ClipGroup:
    """Clips to be scored against each other. The same `key` must mean the same clips, also after a restart."""

    key: str
    real: Clip
    rollouts: tuple[Clip, ...]
    policy_version: str
    discriminator_version: str

    @property
    def clips(self) -> tuple[Clip, ...]:
        return self.real, *self.rollouts


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Rewards of groups in the order asked for, and how their clips fared."""

    groups: tuple[GroupRewards, ...]
    latencies_s: tuple[float, ...]
    errors: dict[str, int]  # number of clips without a reward, by reason
    num_clipped: int = 0  # clips of which a discriminator's logit was beyond the bounds of a reward


class RewardSource(Protocol):
    """Where a run's rewards come from."""

    def pin(self) -> str:
        """The discriminator version that the next buffer is to be scored with."""
        ...

    def knows(self, key: str, num_clips: int) -> bool:
        """Whether all outcomes of a group are at hand, so that it need not be submitted."""
        ...

    def submit(self, group: ClipGroup) -> None:
        """Returns soon; waits only while too much is in flight."""
        ...

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        """Waits for groups of `num_clips` clips each. Raises MissingRewards and RewardsSilent."""
        ...

    def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
        """Clips of these groups that ended without a reward are to be submitted anew by the next process."""
        ...

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        """Trains the discriminators on the run's clips; the new version. The same key trains once."""
        ...

    def close(self) -> None: ...


class NoRewards:
    """For objectives that ask for none: fine-tuning alone, and plain replay."""

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

    def close(self) -> None:
        pass
