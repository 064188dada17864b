"""Defines the request to train discriminators further, and its answer.

The bounds of a request stand here too. The HTTP door, its OpenAPI document and the trainer's configuration use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from protos.error_codes import ContractError, ErrorCode
from protos.types.clip import END_OF_SEEDS, MAX_CHARACTERS

END_OF_COUNTS = 2**32  # uint32

MAX_STEPS = 100_000

MAX_CLIPS_PER_STEP = 1024

MAX_LEARNING_RATE = 1


@dataclass(frozen=True, kw_only=True)
class RefreshRequest:
    """A request to train a run's discriminators on its recent clips. reward.proto explains the fields."""

    run_id: str
    steps: int
    learning_rate: float = 1e-5
    ema: float = 0.99
    clips_per_step: int = 8
    seed: int = 0
    max_real: int = 0
    max_rollouts: int = 0
    deadline_s: float | None = None
    idempotency_key: str = ""
    max_passes: float = 0.0
    keep_optimizer: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.run_id) <= MAX_CHARACTERS:
            raise _bad_refresh(
                "run_id", f"1 to {MAX_CHARACTERS} characters, got {len(self.run_id)}; name the run to refresh"
            )
        if len(self.idempotency_key) > MAX_CHARACTERS:
            told = f"{MAX_CHARACTERS} characters at most, got {len(self.idempotency_key)}"
            raise _bad_refresh("idempotency_key", told)
        for name, most in (("steps", MAX_STEPS), ("clips_per_step", MAX_CLIPS_PER_STEP)):
            if not 1 <= getattr(self, name) <= most:
                raise _bad_refresh(name, f"in 1..{most}, got {getattr(self, name)}")
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise _bad_refresh("learning_rate", f"above 0 and at most {MAX_LEARNING_RATE}, got {self.learning_rate}")
        if not 0 <= self.ema < 1:
            raise _bad_refresh("ema", f"in 0..1 and below 1, got {self.ema}")
        for name, end in (("seed", END_OF_SEEDS), ("max_real", END_OF_COUNTS), ("max_rollouts", END_OF_COUNTS)):
            if not 0 <= getattr(self, name) < end:
                raise _bad_refresh(name, f"in 0..{end - 1}, got {getattr(self, name)}")
        if not (math.isfinite(self.max_passes) and self.max_passes >= 0):
            raise _bad_refresh("max_passes", f"a number that is not negative, got {self.max_passes}")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise _bad_refresh("deadline_s", f"a positive number of seconds, got {self.deadline_s}")


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a discriminator separates real clips from rollouts: the AUC, and the mean difference in logits."""

    auc: float
    logit_gap: float


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """A discriminator on the run's anchor set, before and after a refresh. reward.proto explains the fields."""

    before: Separation
    after: Separation
    drift: float
    saturation_before: float
    saturation_after: float
    copies_before: float | None = None
    copies_after: float | None = None
    amount_real_before: float | None = None
    amount_real_after: float | None = None
    amount_rollouts_before: float | None = None
    amount_rollouts_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class DiscriminatorRefresh:
    """What a refresh did to one discriminator: the loss per step, and held-out figures before and after.

    `anchor` is None if the run has no anchor set, or the server is too old for one.
    """

    losses: tuple[float, ...]
    before: Separation
    after: Separation
    anchor: Anchor | None = None


@dataclass(frozen=True, kw_only=True)
class RefreshResponse:
    """A published discriminator version and how it was trained. reward.proto explains the fields."""

    discriminator_version: str
    weights_digest: str
    previous_version: str
    steps: int
    num_real: int
    num_rollouts: int
    num_held_out: int
    instantaneous: DiscriminatorRefresh
    long_term: DiscriminatorRefresh
    seconds: float
    missing_real: tuple[str, ...] = ()
    missing_rollouts: tuple[str, ...] = ()
    scored_real: int = 0
    scored_rollouts: int = 0
    older_real: int = 0
    older_rollouts: int = 0
    anchor_real: int = 0
    anchor_rollouts: int = 0


@dataclass(frozen=True, kw_only=True)
class VersionHeader:
    """A version that a refresh published, without its files. reward.proto explains the fields."""

    run_id: str
    version: str
    base: str
    preprocessing_digest: str
    number: int
    scoring_digest: str
    training_digest: str
    record: RefreshResponse


def _bad_refresh(name: str, must_be: str) -> ContractError:
    return ContractError(ErrorCode.BAD_REFRESH, f"{name} must be {must_be}")
