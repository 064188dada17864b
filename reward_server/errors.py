"""Defines every error that a user can meet, as one tree, with its HTTP status and gRPC code.

    RewardServerError
    ├─ InvalidClip            outcome invalid: the clip cannot be scored, sending it again will not help
    │  ├─ EmptyPayload        zero bytes
    │  ├─ ClipTooLarge        bytes, frames, pixels or seconds over a limit
    │  ├─ ClipTooShort        fewer frames than the profile's minimum, after resampling
    │  ├─ UnreadableClip      not a video, truncated, no video stream, nothing decodes
    │  ├─ DecodeTooSlow       decoding passed its wall-time limit
    │  ├─ DecodeMemory        decoding needs more memory than one clip may take
    │  ├─ DecoderCrashed      the process that decoded the clip died
    │  └─ BadTensor           a tensor clip whose declaration or values break the contract
    ├─ DeadlinePassed         outcome timeout: the submitter's deadline passed first
    ├─ Overloaded             no outcome: the queue is full and refuses the call, retry after `retry_after_s`
    ├─ ScoringFailed          outcome failed: the server's fault
    │  ├─ NonFiniteLogit      a discriminator returned NaN or infinity
    │  └─ AttemptsExhausted   every attempt ended with a dead worker; the job is a dead letter
    ├─ VersionNotServed       outcome failed: the discriminator version is not kept, or no longer
    ├─ VersionConflict        the group is scored with another discriminator version than the pinned one
    ├─ BadRequest             the request itself is wrong, not one of its clips
    │  ├─ RequestTooLarge     the clips of one request are too many bytes together
    │  └─ UnsupportedMedia    the declared type is neither a video nor a safetensors file
    ├─ Unauthenticated        no key, or one that is not valid
    ├─ Forbidden              the key has not the scope, or the request's host or origin is not allowed
    ├─ UnknownJob             no such job, or its result has expired
    ├─ IdempotencyConflict    the idempotency key was used for another submission
    ├─ NotReady               no weights, no Redis or no live worker yet
    └─ RefreshError           no new discriminator version; the old one still serves
       ├─ UnknownRun          no clips of the run are kept
       ├─ TooFewClips         fewer clips of an origin than a refresh needs
       ├─ RefreshRunning      another refresh of the run is running
       ├─ RefreshRejected     the trained weights did not pass the checks
       ├─ GateFailed          they did, but are worse than their parent on the run's anchor set
       └─ RefreshFailed       the server's fault

Each class names its ErrorCode, which programs may act on. `DOORS` maps error classes to HTTP statuses
and names of gRPC codes. `OUTCOMES` gives the kind of outcome for an error that ends a single clip.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from protos.error_codes import ErrorCode
from protos.types import Context, Error, Outcome, OutcomeKind


class RewardServerError(Exception):
    """Base class of all errors. The message names the value, the limit and the next step."""

    code: ClassVar[ErrorCode] = ErrorCode.REWARD_SERVER_ERROR


class InvalidClip(RewardServerError):
    code = ErrorCode.INVALID_CLIP


class EmptyPayload(InvalidClip):
    code = ErrorCode.EMPTY_PAYLOAD


class ClipTooLarge(InvalidClip):
    code = ErrorCode.CLIP_TOO_LARGE


class ClipTooShort(InvalidClip):
    code = ErrorCode.CLIP_TOO_SHORT


class UnreadableClip(InvalidClip):
    code = ErrorCode.UNREADABLE_CLIP


class DecodeTooSlow(InvalidClip):
    code = ErrorCode.DECODE_TOO_SLOW


class DecodeMemory(InvalidClip):
    code = ErrorCode.DECODE_MEMORY


class DecoderCrashed(InvalidClip):
    code = ErrorCode.DECODER_CRASHED


class BadTensor(InvalidClip):
    code = ErrorCode.BAD_TENSOR


class DeadlinePassed(RewardServerError):
    code = ErrorCode.DEADLINE_PASSED


class Overloaded(RewardServerError):
    """Raised at admission. Nothing of the request was queued. `retry_after_s` is in seconds."""

    code = ErrorCode.OVERLOADED

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ScoringFailed(RewardServerError):
    code = ErrorCode.SCORING_FAILED


class NonFiniteLogit(ScoringFailed):
    code = ErrorCode.NON_FINITE_LOGIT


class AttemptsExhausted(ScoringFailed):
    code = ErrorCode.ATTEMPTS_EXHAUSTED


class VersionNotServed(RewardServerError):
    code = ErrorCode.VERSION_NOT_SERVED


class VersionConflict(RewardServerError):
    code = ErrorCode.VERSION_CONFLICT


class BadRequest(RewardServerError):
    code = ErrorCode.BAD_REQUEST


class RequestTooLarge(BadRequest):
    code = ErrorCode.REQUEST_TOO_LARGE


class UnsupportedMedia(BadRequest):
    code = ErrorCode.UNSUPPORTED_MEDIA


class Unauthenticated(RewardServerError):
    code = ErrorCode.UNAUTHENTICATED


class Forbidden(RewardServerError):
    code = ErrorCode.FORBIDDEN


class UnknownJob(RewardServerError):
    code = ErrorCode.UNKNOWN_JOB


class IdempotencyConflict(RewardServerError):
    code = ErrorCode.IDEMPOTENCY_CONFLICT


class NotReady(RewardServerError):
    """`retry_after_s` is in seconds."""

    code = ErrorCode.NOT_READY

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RefreshError(RewardServerError):
    code = ErrorCode.REFRESH_ERROR


class UnknownRun(RefreshError):
    code = ErrorCode.UNKNOWN_RUN


class TooFewClips(RefreshError):
    code = ErrorCode.TOO_FEW_CLIPS


class RefreshRunning(RefreshError):
    code = ErrorCode.REFRESH_RUNNING


class RefreshRejected(RefreshError):
    code = ErrorCode.REFRESH_REJECTED


class GateFailed(RefreshError):
    code = ErrorCode.GATE_FAILED


class RefreshFailed(RefreshError):
    code = ErrorCode.REFRESH_FAILED


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
    Unauthenticated: Door(401, "UNAUTHENTICATED"),
    Forbidden: Door(403, "PERMISSION_DENIED"),
    UnknownJob: Door(404, "NOT_FOUND"),
    IdempotencyConflict: Door(409, "ALREADY_EXISTS"),
    NotReady: Door(503, "UNAVAILABLE"),
    UnknownRun: Door(404, "NOT_FOUND"),
    TooFewClips: Door(409, "FAILED_PRECONDITION"),
    RefreshRunning: Door(409, "ABORTED"),
    RefreshRejected: Door(409, "FAILED_PRECONDITION"),
    GateFailed: Door(409, "FAILED_PRECONDITION"),
    RefreshError: Door(500, "INTERNAL"),
    RewardServerError: Door(500, "INTERNAL"),
}

OUTCOMES: dict[type[RewardServerError], OutcomeKind] = {
    InvalidClip: OutcomeKind.INVALID,
    DeadlinePassed: OutcomeKind.TIMEOUT,
    RewardServerError: OutcomeKind.FAILED,
}


def door(error: RewardServerError) -> Door:
    """The row of DOORS for the error's class, or for its nearest base class that has one."""
    return next(DOORS[kind] for kind in type(error).__mro__ if kind in DOORS)


def outcome_kind(error: RewardServerError) -> OutcomeKind:
    """The kind in OUTCOMES for the error's class, or for its nearest base class that has one."""
    return next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES)


def error_outcome(job_id: str, error: RewardServerError, context: Context) -> Outcome:
    """The outcome of a clip that `error` ended."""
    # A message may quote what a client sent. Lone surrogates in it cannot be sent, so they are escaped.
    message = str(error).encode("utf-8", "backslashreplace").decode()
    described = Error(code=error.code.value, message=message)
    return Outcome(job_id=job_id, kind=outcome_kind(error), error=described, context=context)
