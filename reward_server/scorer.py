"""Defines `Scorer`, the interface through which a worker and a refresh score clips, and the values it exchanges.

`pipeline.Pipeline` implements it. This module imports neither torch nor Redis, so any module may import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from protos.types import Model, Reward, Submission
from reward_server.errors import RewardServerError


class Prepared(Protocol):
    """A decoded clip. Clips of one `shape` share a batch; `cost` in pixels counts towards settings.batch_cost."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def cost(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of one clip: its reward or error, and the parts of its packed motion if a refresh may train on it."""

    result: Reward | RewardServerError
    features: tuple[bytes, ...] = field(default=(), repr=False)


class Scorer(Protocol):
    """What a worker needs from pipeline.Pipeline. `prepare` is called from several threads, `score` from one."""

    @property
    def model(self) -> Model: ...
    @property
    def profile(self) -> Any: ...
    @property
    def discriminators(self) -> Any:
        """The loaded discriminators, whose version `model` names."""

    def discriminators_of(self, data: bytes) -> Any:
        """Load the discriminators of another version from the bytes of their checkpoint file."""

    def prepare(self, submission: Submission, discriminators: Any = None) -> Any:
        """Decode one clip. `discriminators` will score it; the default is the loaded ones."""

    def score(self, prepared: Sequence[Any]) -> Sequence[Scored]:
        """Score prepared clips of one shape and one discriminator version, in order."""
