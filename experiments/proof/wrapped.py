"""Passes everything on to another source of rewards, for classes that stand between the loop and a source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from trainer.rewards.source import ClipGroup, Collected, RewardSource


class WrappedRewards:
    """A source of rewards that changes nothing (trainer/rewards/source.py). Subclasses change what they need."""

    def __init__(self, source: RewardSource) -> None:
        self._source = source

    def pin(self) -> str:
        return self._source.pin()

    def knows(self, key: str, num_clips: int) -> bool:
        return self._source.knows(key, num_clips)

    def submit(self, group: ClipGroup) -> None:
        self._source.submit(group)

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        return self._source.collect(keys, num_clips)

    def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
        self._source.forget_missing(keys, num_clips)

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        return self._source.refresh(steps, seed=seed, key=key)

    def restore(self, version: str) -> None:
        self._source.restore(version)

    def own_versions(self, versions: Collection[str]) -> list[Path]:
        return self._source.own_versions(versions)

    def adopt(self, folder: Path) -> None:
        self._source.adopt(folder)

    def sign_of_life(self) -> None:
        self._source.sign_of_life()

    def close(self) -> None:
        self._source.close()
