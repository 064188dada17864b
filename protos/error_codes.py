"""`ErrorCode`: every stable name of an error that the server, the client or the values of the contract give.

Programs compare a code with a member: `outcome.error.code == ErrorCode.CLIP_TOO_SHORT`. The values are part of the
contract and are never changed. On the wire a code is a plain string, and stays one in Python (`Error.code`,
`RewardClientError.code`), so that a code of a newer server passes through an older client.

A client gives two more kinds that no list can hold: `http_<status>` for an answer of a proxy in between, and the name
of a gRPC status (`unimplemented`) for a call that no server of ours answered.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    # Of one clip: they end it as an outcome
    INVALID_CLIP = "invalid_clip"
    EMPTY_PAYLOAD = "empty_payload"
    CLIP_TOO_LARGE = "clip_too_large"
    CLIP_TOO_SHORT = "clip_too_short"
    UNREADABLE_CLIP = "unreadable_clip"
    DECODE_TOO_SLOW = "decode_too_slow"
    BAD_TENSOR = "bad_tensor"
    DEADLINE_PASSED = "deadline_passed"
    SCORING_FAILED = "scoring_failed"
    NON_FINITE_LOGIT = "non_finite_logit"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    VERSION_NOT_SERVED = "version_not_served"

    # Of a request: they refuse it as a whole
    REWARD_SERVER_ERROR = "reward_server_error"  # the server failed on it
    OVERLOADED = "overloaded"
    VERSION_CONFLICT = "version_conflict"
    BAD_REQUEST = "bad_request"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    UNKNOWN_JOB = "unknown_job"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    NOT_READY = "not_ready"
    NOT_FOUND = "not_found"  # HTTP: no such path
    METHOD_NOT_ALLOWED = "method_not_allowed"  # HTTP: no such method there

    # Of a refresh
    REFRESH_ERROR = "refresh_error"
    UNKNOWN_RUN = "unknown_run"
    TOO_FEW_CLIPS = "too_few_clips"
    REFRESH_RUNNING = "refresh_running"
    REFRESH_REJECTED = "refresh_rejected"
    REFRESH_FAILED = "refresh_failed"

    # Of the client: no answer, or none that it can read
    UNREACHABLE = "unreachable"
    NO_ANSWER = "no_answer"
    BAD_ANSWER = "bad_answer"

    # Of a value that breaks the contract (ContractError); a door tells a caller's own as bad_request or
    # unsupported_media
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
