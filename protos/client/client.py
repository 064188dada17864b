"""Calls the reward server, blocking or async. The URL decides between gRPC and HTTP.

    with RewardClient("http://127.0.0.1:8000") as client:
        outcomes = client.score([submission("clip.mp4")])

The client retries a call only if the server is busy or not reachable (429, 503, UNAVAILABLE,
RESOURCE_EXHAUSTED). It waits with backoff and jitter, and the number of attempts is limited. It never
makes up a reward: each clip gets an Outcome, and a request without outcomes raises RewardClientError.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import stamina

from protos.client.errors import RewardClientError, ServerBusy, ServerFailed
from protos.client.grpc_transport import AsyncGrpcTransport, GrpcTransport
from protos.client.http_transport import AsyncHttpTransport, HttpTransport
from protos.error_codes import ErrorCode
from protos.types import (
    REFRESH_TIMEOUT_S,
    SCORE_TIMEOUT_S,
    Error,
    Limits,
    Model,
    Outcome,
    OutcomeKind,
    RefreshRequest,
    RefreshResponse,
    Submission,
)

MARGIN_S = 30.0  # added to the server's own timeout, so that the server reports the timeout
TIMEOUT_S = SCORE_TIMEOUT_S + MARGIN_S
LOOK_S = 10.0  # time to ask the server for its timeouts
UPLOAD_BYTES_PER_S = 4 * 1024**2  # adds time for the upload of a large request
ATTEMPTS = 6


class RewardClient:
    """The blocking client. It is safe to share between threads.

    `timeout_s` limits one call with all its retries. Without it a call may take MARGIN_S longer than the server's own
    timeout, which the client asks for once. If the server cannot answer that, because no worker is alive, the limit is
    TIMEOUT_S. `attempts` is the largest number of attempts per call.
    """

    def __init__(self, url: str, *, timeout_s: float | None = None, attempts: int = ATTEMPTS) -> None:
        kind, target = _transport_of(url, {"grpc": GrpcTransport, "http": HttpTransport})
        self._transport: GrpcTransport | HttpTransport = kind(target)
        self._timeout_s, self._attempts = timeout_s, attempts
        self._limits: Limits | None = None

    def score(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Score clips and return one outcome per clip, in order. Raises subclasses of RewardClientError."""
        if not submissions:
            return []
        named, timeout_s = _each_once(submissions), _patience_s(submissions, self._call_s())
        if _fits_one_request(submissions, self._transport.one_request_bytes):
            outcomes = self._retrying(timeout_s)(self._transport.score, named, timeout_s)
            return _as_asked(submissions, outcomes)
        job_ids = self.submit(named)
        found = {outcome.job_id: outcome for outcome in self.await_outcomes(job_ids, timeout_s)}
        return _as_asked(submissions, _in_order(job_ids, submissions, found))

    def submit(self, submissions: Sequence[Submission]) -> list[str]:
        """Queue clips and return their job ids, in order.

        A clip without an idempotency key gets one, which appears in the context of its outcome.
        """
        if not submissions:
            return []
        named, timeout_s = _each_once(submissions), _patience_s(submissions, self._call_s())
        return self._retrying(timeout_s)(self._transport.submit, named, timeout_s)

    def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> Iterator[Outcome]:
        """Yield each outcome once it is ready, until all have come or `timeout_s` is over.

        A lost connection is opened again.
        """
        deadline = time.monotonic() + (self._call_s() if timeout_s is None else timeout_s)
        waiting = dict.fromkeys(job_ids)
        for attempt in stamina.retry_context(_retry_wait, **_policy(self._attempts, _left_s(deadline))):
            with attempt:
                for outcome in self._transport.outcomes(list(waiting), _left_s(deadline)) if waiting else ():
                    waiting.pop(outcome.job_id, None)
                    yield outcome

    def model(self, run_id: str = "") -> Model:
        """The served model. With a `run_id` it names the latest discriminator version of that run."""
        timeout_s = TIMEOUT_S if self._timeout_s is None else self._timeout_s
        return self._retrying(timeout_s)(self._transport.model, run_id, timeout_s)

    def refresh(self, request: RefreshRequest, timeout_s: float | None = None) -> RefreshResponse:
        """Train the run's discriminators on its recent clips. Returns once the new version serves the run.

        Retries do not train twice. Without `timeout_s` the call may take MARGIN_S longer than the server's own timeout.
        Raises subclasses of RewardClientError. After an error the old version still serves the run, unless a later
        call with the same idempotency_key returns a response.
        """
        timeout_s = self.refresh_timeout_s() if timeout_s is None else timeout_s
        return self._retrying(timeout_s)(self._transport.refresh, _once(request), timeout_s)

    def refresh_timeout_s(self) -> float:
        """How long `refresh` waits without a `timeout_s`, in seconds. Raises subclasses of RewardClientError."""
        return _beyond(self.model().limits.refresh_timeout_s, REFRESH_TIMEOUT_S)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call_s(self) -> float:
        """How long a call that scores or uploads may take, in seconds."""
        if self._timeout_s is not None:
            return self._timeout_s
        if self._limits is None:
            with suppress(RewardClientError):  # the call that follows reports what is wrong
                self._limits = self._transport.model("", LOOK_S).limits
        return _beyond(self._limits.score_timeout_s if self._limits else None, SCORE_TIMEOUT_S)

    def _retrying(self, timeout_s: float) -> stamina.BoundRetryingCaller:
        return stamina.RetryingCaller(**_policy(self._attempts, timeout_s)).on(_retry_wait)


class AsyncRewardClient:
    """The async client, for one event loop. Its methods and arguments are those of RewardClient."""

    def __init__(self, url: str, *, timeout_s: float | None = None, attempts: int = ATTEMPTS) -> None:
        kind, target = _transport_of(url, {"grpc": AsyncGrpcTransport, "http": AsyncHttpTransport})
        self._transport: AsyncGrpcTransport | AsyncHttpTransport = kind(target)
        self._timeout_s, self._attempts = timeout_s, attempts
        self._limits: Limits | None = None

    async def score(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Score clips and return one outcome per clip, in order. Raises subclasses of RewardClientError."""
        if not submissions:
            return []
        named, timeout_s = _each_once(submissions), _patience_s(submissions, await self._call_s())
        if _fits_one_request(submissions, self._transport.one_request_bytes):
            outcomes = await self._retrying(timeout_s)(self._transport.score, named, timeout_s)
            return _as_asked(submissions, outcomes)
        job_ids = await self.submit(named)
        found = {outcome.job_id: outcome async for outcome in self.await_outcomes(job_ids, timeout_s)}
        return _as_asked(submissions, _in_order(job_ids, submissions, found))

    async def submit(self, submissions: Sequence[Submission]) -> list[str]:
        """Queue clips and return their job ids, in order.

        A clip without an idempotency key gets one, which appears in the context of its outcome.
        """
        if not submissions:
            return []
        named, timeout_s = _each_once(submissions), _patience_s(submissions, await self._call_s())
        return await self._retrying(timeout_s)(self._transport.submit, named, timeout_s)

    async def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> AsyncIterator[Outcome]:
        """Yield each outcome once it is ready, until all have come or `timeout_s` is over.

        A lost connection is opened again.
        """
        deadline = time.monotonic() + (await self._call_s() if timeout_s is None else timeout_s)
        waiting = dict.fromkeys(job_ids)
        async for attempt in stamina.retry_context(_retry_wait, **_policy(self._attempts, _left_s(deadline))):
            with attempt:
                if not waiting:
                    continue
                async for outcome in self._transport.outcomes(list(waiting), _left_s(deadline)):
                    waiting.pop(outcome.job_id, None)
                    yield outcome

    async def model(self, run_id: str = "") -> Model:
        """The served model. With a `run_id` it names the latest discriminator version of that run."""
        timeout_s = TIMEOUT_S if self._timeout_s is None else self._timeout_s
        return await self._retrying(timeout_s)(self._transport.model, run_id, timeout_s)

    async def refresh(self, request: RefreshRequest, timeout_s: float | None = None) -> RefreshResponse:
        """Train the run's discriminators on its recent clips. Returns once the new version serves the run.

        Retries do not train twice. Without `timeout_s` the call may take MARGIN_S longer than the server's own timeout.
        Raises subclasses of RewardClientError. After an error the old version still serves the run, unless a later
        call with the same idempotency_key returns a response.
        """
        timeout_s = await self.refresh_timeout_s() if timeout_s is None else timeout_s
        return await self._retrying(timeout_s)(self._transport.refresh, _once(request), timeout_s)

    async def refresh_timeout_s(self) -> float:
        """How long `refresh` waits without a `timeout_s`, in seconds. Raises subclasses of RewardClientError."""
        return _beyond((await self.model()).limits.refresh_timeout_s, REFRESH_TIMEOUT_S)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call_s(self) -> float:
        """How long a call that scores or uploads may take, in seconds."""
        if self._timeout_s is not None:
            return self._timeout_s
        if self._limits is None:
            with suppress(RewardClientError):  # the call that follows reports what is wrong
                self._limits = (await self._transport.model("", LOOK_S)).limits
        return _beyond(self._limits.score_timeout_s if self._limits else None, SCORE_TIMEOUT_S)

    def _retrying(self, timeout_s: float) -> stamina.BoundAsyncRetryingCaller:
        return stamina.AsyncRetryingCaller(**_policy(self._attempts, timeout_s)).on(_retry_wait)


def _beyond(server_s: float | None, default_s: float) -> float:
    """MARGIN_S more than the server's own timeout, or than the default if the server does not report one."""
    return (default_s if server_s is None else server_s) + MARGIN_S


def _transport_of(url: str, kinds: dict[str, Any]) -> tuple[Any, str]:
    scheme, _, rest = url.partition("://")
    if scheme == "grpc" and rest:
        return kinds["grpc"], rest.rstrip("/")
    if scheme in ("http", "https") and rest:
        return kinds["http"], url.rstrip("/")
    raise ValueError(f"'{url}' is not the URL of a server; give grpc://HOST:PORT or http://HOST:PORT")


def _policy(attempts: int, timeout_s: float) -> dict[str, Any]:
    return {"attempts": attempts, "timeout": timeout_s, "wait_initial": 0.2, "wait_max": 10.0}


def _retry_wait(error: Exception) -> bool | float:
    """Whether to try again, or the seconds to wait first if the server gave them.

    Up to half of that is added at random, so that clients do not all come back at the same time.
    """
    if not isinstance(error, ServerBusy):
        return False
    return error.retry_after_s * random.uniform(1.0, 1.5) if error.retry_after_s else True


def _each_once(submissions: Sequence[Submission]) -> list[Submission]:
    """The clips, each with an idempotency key, so that a retry finds the jobs of an attempt whose answer was lost."""
    names = [clip.context.idempotency_key or uuid.uuid4().hex for clip in submissions]
    return [
        replace(clip, context=replace(clip.context, idempotency_key=name))
        for clip, name in zip(submissions, names, strict=True)
    ]


def _as_asked(submissions: Sequence[Submission], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes with the callers' contexts, without the idempotency keys that were added for retries."""
    if len(outcomes) != len(submissions):
        raise ServerFailed(
            ErrorCode.BAD_ANSWER, f"the server returned {len(outcomes)} outcomes for {len(submissions)} clips"
        )
    return [replace(each, context=clip.context) for clip, each in zip(submissions, outcomes, strict=True)]


def _once(request: RefreshRequest) -> RefreshRequest:
    """The request with an idempotency key, so that a retry finds the refresh that an earlier attempt began."""
    return request if request.idempotency_key else replace(request, idempotency_key=uuid.uuid4().hex)


def _patience_s(submissions: Sequence[Submission], timeout_s: float) -> float:
    return timeout_s + _num_bytes(submissions) / UPLOAD_BYTES_PER_S


def _num_bytes(submissions: Sequence[Submission]) -> int:
    return sum(len(submission.payload) for submission in submissions)


def _fits_one_request(submissions: Sequence[Submission], max_bytes: int | None) -> bool:
    return max_bytes is None or _num_bytes(submissions) <= max_bytes


def _left_s(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _in_order(job_ids: Sequence[str], submissions: Sequence[Submission], outcomes: dict[str, Outcome]) -> list[Outcome]:
    late = Error(
        code=ErrorCode.DEADLINE_PASSED.value,
        message="no outcome came within the client's timeout; the job goes on, wait for it by its id",
    )
    return [
        outcomes.get(job_id) or Outcome(job_id=job_id, kind=OutcomeKind.TIMEOUT, error=late, context=submission.context)
        for job_id, submission in zip(job_ids, submissions, strict=True)
    ]
