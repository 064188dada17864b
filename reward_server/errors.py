"""Every error a user can meet, as one tree, and what each means at the two doors.

    RewardServerError
    ├─ InvalidClip            outcome invalid: the clip cannot be scored, sending it again will not help
    │  ├─ EmptyPayload        zero bytes
    │  ├─ ClipTooLarge        bytes, frames, pixels or seconds over a limit
    │  ├─ ClipTooShort        fewer frames than the profile's minimum, after resampling
    │  ├─ UnreadableClip      not a video, truncated, no video stream, nothing decodes
    │  ├─ DecodeTooSlow       decoding passed its wall-time limit
    │  └─ BadTensor           a tensor clip whose declaration or values break the contract
    ├─ DeadlinePassed         outcome timeout: the submitter's deadline passed first
    ├─ Overloaded             outcome overloaded: the queue is full, retry after `retry_after_s`
    ├─ ScoringFailed          outcome failed: our fault
    │  ├─ NonFiniteLogit      a discriminator returned NaN or infinity
    │  └─ AttemptsExhausted   every attempt ended with a dead worker; the job is on the dead-letter stream
    ├─ VersionNotServed       outcome failed: the discriminator version is not kept (any more)
    ├─ VersionConflict        the group is judged by another discriminator version than the pinned one
    ├─ BadRequest             the request itself, not a clip, is wrong
    │  ├─ RequestTooLarge     the clips of one request are too many bytes together
    │  └─ UnsupportedMedia    neither a video nor a safetensors file is declared
    ├─ UnknownJob             no such job, or its result has expired
    ├─ IdempotencyConflict    the idempotency key was used for another submission
    ├─ NotReady               no weights, no Redis or no live worker yet
    └─ RefreshError           no new discriminator version; the one that served still serves
       ├─ UnknownRun          no clips of the run are kept
       ├─ TooFewClips         fewer clips of an origin than a refresh needs
       ├─ RefreshRunning      another refresh of the run is under way
       ├─ RefreshRejected     the candidate was judged unfit
       └─ RefreshFailed       our fault

`code` is the stable name programs may act on. `DOORS` is the one table from leaf to HTTP status and
gRPC code name; `OUTCOMES` says which errors end a single clip rather than a whole request.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from protos.types import Context, Error, Outcome, OutcomeKind


class RewardServerError(Exception):
    """Base of all. The message names the value, the limit and the next step."""

    @property
    def code(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class InvalidClip(RewardServerError):
    pass


class EmptyPayload(InvalidClip):
    pass


class ClipTooLarge(InvalidClip):
    pass


class ClipTooShort(InvalidClip):
    pass


class UnreadableClip(InvalidClip):
    pass


class DecodeTooSlow(InvalidClip):
    pass


class BadTensor(InvalidClip):
    pass


class DeadlinePassed(RewardServerError):
    pass


class Overloaded(RewardServerError):
    """Raised at admission; nothing of the request was queued."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ScoringFailed(RewardServerError):
    pass


class NonFiniteLogit(ScoringFailed):
    pass


class AttemptsExhausted(ScoringFailed):
    pass


class VersionNotServed(RewardServerError):
    pass


class VersionConflict(RewardServerError):
    pass


class BadRequest(RewardServerError):
    pass


class RequestTooLarge(BadRequest):
    pass


class UnsupportedMedia(BadRequest):
    pass


class UnknownJob(RewardServerError):
    pass


class IdempotencyConflict(RewardServerError):
    pass


class NotReady(RewardServerError):
    pass


class RefreshError(RewardServerError):
    pass


class UnknownRun(RefreshError):
    pass


class TooFewClips(RefreshError):
    pass


class RefreshRunning(RefreshError):
    pass


class RefreshRejected(RefreshError):
    pass


class RefreshFailed(RefreshError):
    pass


class Door(NamedTuple):
    http: int
    grpc: str  # name in grpc.StatusCode


DOORS: dict[type[RewardServerError], Door] = {
    InvalidClip: Door(422, "INVALID_ARGUMENT"),
    DeadlinePassed: Door(504, "DEADLINE_EXCEEDED"),
    Overloaded: Door(429, "RESOURCE_EXHAUSTED"),
    ScoringFailed: Door(500, "INTERNAL"),
    VersionNotServed: Door(409, "FAILED_PRECONDITION"),
    VersionConflict: Door(409, "FAILED_PRECONDITION"),
    BadRequest: Door(400, "INVALID_ARGUMENT"),
    RequestTooLarge: Door(413, "INVALID_ARGUMENT"),
    UnsupportedMedia: Door(415, "INVALID_ARGUMENT"),
    UnknownJob: Door(404, "NOT_FOUND"),
    IdempotencyConflict: Door(409, "ALREADY_EXISTS"),
    NotReady: Door(503, "UNAVAILABLE"),
    UnknownRun: Door(404, "NOT_FOUND"),
    TooFewClips: Door(409, "FAILED_PRECONDITION"),
    RefreshRunning: Door(409, "ABORTED"),
    RefreshRejected: Door(409, "FAILED_PRECONDITION"),
    RefreshError: Door(500, "INTERNAL"),
    RewardServerError: Door(500, "INTERNAL"),
}

OUTCOMES: dict[type[RewardServerError], OutcomeKind] = {
    InvalidClip: OutcomeKind.INVALID,
    DeadlinePassed: OutcomeKind.TIMEOUT,
    Overloaded: OutcomeKind.OVERLOADED,
    RewardServerError: OutcomeKind.FAILED,
}


def door(error: RewardServerError) -> Door:
    """The nearest row of DOORS up the tree."""
    return next(DOORS[kind] for kind in type(error).__mro__ if kind in DOORS)


def outcome_kind(error: RewardServerError) -> OutcomeKind:
    """The nearest row of OUTCOMES up the tree."""
    return next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES)


def error_outcome(job_id: str, error: RewardServerError, context: Context) -> Outcome:
    """The outcome of a clip that `error` ended."""
    # A text quotes what a client sent, lone surrogates too, which no wire can carry.
    message = str(error).encode("utf-8", "backslashreplace").decode()
    described = Error(code=error.code, message=message)
    return Outcome(job_id=job_id, kind=outcome_kind(error), error=described, context=context)
