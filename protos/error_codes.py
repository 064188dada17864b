"""Lists the stable error codes of the server, the client and the values of the contract, and defines ContractError.

Programs compare a code with a member: `outcome.error.code == ErrorCode.CLIP_TOO_SHORT`. The values are part of the
contract and never change. A code is a plain string on the wire and in Python (`Error.code`, `RewardClientError.code`),
so that an older client can pass on the codes of a newer server.

A client can also return codes that are not in this list: `http_<status>` if a proxy answered instead of the server,
and the name of a gRPC status (`unimplemented`) if a program other than this server answered.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    # One clip failed. The clip's outcome carries the code.
    INVALID_CLIP = "invalid_clip"
    EMPTY_PAYLOAD = "empty_payload"
    CLIP_TOO_LARGE = "clip_too_large"
    CLIP_TOO_SHORT = "clip_too_short"
    UNREADABLE_CLIP = "unreadable_clip"
    DECODE_TOO_SLOW = "decode_too_slow"
    DECODE_MEMORY = "decode_memory"
    DECODER_CRASHED = "decoder_crashed"
    BAD_TENSOR = "bad_tensor"
    DEADLINE_PASSED = "deadline_passed"
    SCORING_FAILED = "scoring_failed"
    NON_FINITE_LOGIT = "non_finite_logit"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    VERSION_NOT_SERVED = "version_not_served"

    # A whole request failed.
    REWARD_SERVER_ERROR = "reward_server_error"  # an unexpected error in the server
    OVERLOADED = "overloaded"
    VERSION_CONFLICT = "version_conflict"
    BAD_REQUEST = "bad_request"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    UNKNOWN_JOB = "unknown_job"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    NOT_READY = "not_ready"
    NOT_FOUND = "not_found"  # HTTP: no such path
    METHOD_NOT_ALLOWED = "method_not_allowed"  # HTTP: no such method there

    # A refresh failed.
    REFRESH_ERROR = "refresh_error"
    UNKNOWN_RUN = "unknown_run"
    TOO_FEW_CLIPS = "too_few_clips"
    REFRESH_RUNNING = "refresh_running"
    REFRESH_REJECTED = "refresh_rejected"
    GATE_FAILED = "gate_failed"
    REFRESH_FAILED = "refresh_failed"

    # The client got no answer, or one that it cannot read.
    UNREACHABLE = "unreachable"
    NO_ANSWER = "no_answer"
    BAD_ANSWER = "bad_answer"

    # A value breaks the contract (ContractError). The server reports such values in a request as bad_request or
    # unsupported_media.
    BAD_FRAMES = "bad_frames"
    BAD_FPS = "bad_fps"
    BAD_CONTEXT = "bad_context"
    BAD_MEDIA = "bad_media"
    BAD_BOUNDS = "bad_bounds"
    BAD_REWARD = "bad_reward"
    BAD_OUTCOME = "bad_outcome"
    BAD_REFRESH = "bad_refresh"
    BAD_RESULT = "bad_result"
    BAD_JSON = "bad_json"
    NON_FINITE = "non_finite"


class ContractError(ValueError):
    """A value breaks the contract. `code` is stable. The message names the value, the limit and the next step."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
