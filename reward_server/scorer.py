"""What scores clips, as a worker and a refresh see it: `Scorer`, and the values that pass through it.

`pipeline.Pipeline` is the real one. This module loads no torch and no Redis, so both sides may import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from protos.types import Model, Reward, Submission
from reward_server.errors import RewardServerError


class Prepared(Protocol):
    """A decoded clip: those of one `shape` share a batch, `cost` (pixels) adds up to settings.batch_cost."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def cost(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What became of one clip of a batch, and its packed motion where a refresh may want it."""

    result: Reward | RewardServerError
    features: bytes = field(default=b"", repr=False)


class Scorer(Protocol):
    """What a worker needs of pipeline.Pipeline. `prepare` is called from several threads, `score` from one."""

    @property
    def model(self) -> Model: ...
    @property
    def profile(self) -> Any: ...
    @property
    def discriminators(self) -> Any:
        """The discriminators of `model`; `discriminators_of` makes those of another version from their file's bytes."""

    def discriminators_of(self, data: bytes) -> Any: ...
    def prepare(self, submission: Submission, discriminators: Any = None) -> Any:
        """To be judged by `discriminators`, by default its own."""

    def score(self, prepared: Sequence[Any]) -> Sequence[Scored]: ...
