"""What both clients share: how long a call may take, when it is tried again, and what it returns."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from protos.client.errors import ServerBusy, ServerFailed
from protos.error_codes import ErrorCode
from protos.tracing import span
from protos.types import REFRESH_TIMEOUT_S, Error, Limits, Outcome, OutcomeKind, RefreshRequest, Submission

MARGIN_S = 30.0  # added to the server's own timeout, so that the server reports the timeout
UPLOAD_BYTES_PER_S = 4 * 1024**2  # adds time for the upload of a large request


def call_span(call: str, submissions: Sequence[Submission]) -> AbstractContextManager[None]:
    """A span of one call with all its retries, if the program traces."""
    return span(f"motion_reward.{call}", "client", attributes={"clips": len(submissions)})


def refresh_patience_s(limits: Limits, steps: int) -> float:
    """How long a client waits for a refresh of this many steps."""
    return beyond(limits.refresh_timeout_s, REFRESH_TIMEOUT_S) + steps * (limits.refresh_step_s or 0.0)


def beyond(server_s: float | None, default_s: float) -> float:
    """MARGIN_S more than the server's own timeout, or than the default if the server does not report one."""
    return (default_s if server_s is None else server_s) + MARGIN_S


def transport_of(url: str, kinds: dict[str, Any]) -> tuple[Any, str]:
    scheme, _, rest = url.partition("://")
    if scheme in ("grpc", "grpcs") and rest:
        return kinds["grpc"], rest.rstrip("/")
    if scheme in ("http", "https") and rest:
        return kinds["http"], url.rstrip("/")
    raise ValueError(
        f"'{url}' is not the URL of a server; give grpc://HOST:PORT or http://HOST:PORT, or with TLS grpcs:// or https://"
    )


def retry_policy(attempts: int, timeout_s: float) -> dict[str, Any]:
    return {"attempts": attempts, "timeout": timeout_s, "wait_initial": 0.2, "wait_max": 10.0}


def retry_wait(error: Exception) -> bool | float:
    """Whether to try again, or the seconds to wait first if the server gave them.

    Up to half of that is added at random, so that clients do not all come back at the same time.
    """
    if not isinstance(error, ServerBusy):
        return False
    return error.retry_after_s * random.uniform(1.0, 1.5) if error.retry_after_s else True


def each_once(submissions: Sequence[Submission]) -> list[Submission]:
    """The clips, each with an idempotency key, so that a retry finds the jobs of an attempt whose answer was lost."""
    names = [clip.context.idempotency_key or uuid.uuid4().hex for clip in submissions]
    return [
        replace(clip, context=replace(clip.context, idempotency_key=name))
        for clip, name in zip(submissions, names, strict=True)
    ]


def as_asked(submissions: Sequence[Submission], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the callers' contexts, without the idempotency keys that were added for retries."""
    if len(outcomes) != len(submissions):
        raise ServerFailed(
            ErrorCode.BAD_ANSWER, f"the server returned {len(outcomes)} outcomes for {len(submissions)} clips"
        )
    return [replace(each, context=clip.context) for clip, each in zip(submissions, outcomes, strict=True)]


def named_once(request: RefreshRequest) -> RefreshRequest:
    """The request with an idempotency key, so that a retry finds the refresh that an earlier attempt began."""
    return request if request.idempotency_key else replace(request, idempotency_key=uuid.uuid4().hex)


def patience_s(submissions: Sequence[Submission], timeout_s: float) -> float:
    return timeout_s + num_bytes(submissions) / UPLOAD_BYTES_PER_S


def num_bytes(submissions: Sequence[Submission]) -> int:
    return sum(len(submission.payload) for submission in submissions)


def fits_one_request(submissions: Sequence[Submission], max_bytes: int | None) -> bool:
    return max_bytes is None or num_bytes(submissions) <= max_bytes


def left_s(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def in_order(job_ids: Sequence[str], submissions: Sequence[Submission], outcomes: dict[str, Outcome]) -> list[Outcome]:
    late = Error(
        code=ErrorCode.DEADLINE_PASSED.value,
        message="no outcome came within the client's timeout; the job goes on, wait for it by its id",
    )
    return [
        outcomes.get(job_id) or Outcome(job_id=job_id, kind=OutcomeKind.TIMEOUT, error=late, context=submission.context)
        for job_id, submission in zip(job_ids, submissions, strict=True)
    ]
