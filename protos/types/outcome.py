"""Defines how a clip ends: with a reward or with an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from protos.error_codes import ContractError, ErrorCode
from protos.types.clip import Context
from protos.types.reward import Reward


class OutcomeKind(StrEnum):
    """How a clip ends. OVERLOADED is reserved and not used: a full queue refuses the call, and nothing is queued."""

    OK = "ok"
    INVALID = "invalid"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Error:
    """Why there is no reward. `message` names the value, the limit and the next step.

    `code` is for programs: compare it with members of ErrorCode. It is a plain string, because a newer server may send
    codes that this ErrorCode does not have yet.
    """

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one submitted clip: a reward if `kind` is OK, otherwise an error."""

    job_id: str
    kind: OutcomeKind
    reward: Reward | None = None
    error: Error | None = None
    context: Context = field(default_factory=Context)
    cursor: str = ""

    def __post_init__(self) -> None:
        ok = self.kind is OutcomeKind.OK
        if (self.reward is not None) != ok or (self.error is not None) == ok:
            raise ContractError(
                ErrorCode.BAD_OUTCOME, f"outcome '{self.kind}' must hold only {'a reward' if ok else 'an error'}"
            )
