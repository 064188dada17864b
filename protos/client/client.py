"""Calls the reward server, blocking or async. The URL decides between gRPC and HTTP.

    with RewardClient("http://127.0.0.1:8000") as client:
        outcomes = client.score([submission("clip.mp4")])

The client retries a call only if the server is busy or not reachable (429, 503, UNAVAILABLE,
RESOURCE_EXHAUSTED). It waits with backoff and jitter, and the number of attempts is limited. If the server
cannot be reached in several calls in a row, further ones fail at once for a while (circuit.py). It never makes up a
reward: each clip gets an Outcome, and a request without outcomes raises RewardClientError.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import stamina

from protos.client.api_key import api_key_of
from protos.client.circuit import Circuit
from protos.client.errors import RequestRefused, RewardClientError, ServerBusy, ServerFailed
from protos.client.grpc_transport import AsyncGrpcTransport, GrpcTransport
from protos.client.http_transport import AsyncHttpTransport, HttpTransport
from protos.client.tls import tls_of
from protos.error_codes import ErrorCode
from protos.tracing import span
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
    VersionHeader,
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
    TIMEOUT_S. `attempts` is the largest number of attempts per call. A server that requires keys gets `api_key`, or
    else MOTION_REWARD_API_KEY of the environment. With https:// and grpcs:// URLs the client trusts the certificates in
    the file `ca`, and presents `cert` with its key if the server asks; else MOTION_REWARD_CA, _CERT and _CERT_KEY.
    Raises ValueError for what cannot be a URL, a key or a certificate.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = None,
        attempts: int = ATTEMPTS,
        api_key: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        cert_key: str | Path | None = None,
    ) -> None:
        kind, target = _transport_of(url, {"grpc": GrpcTransport, "http": HttpTransport})
        self._transport: GrpcTransport | HttpTransport = kind(
            target, api_key_of(api_key), tls_of(url, ca=ca, cert=cert, cert_key=cert_key)
        )
        self._circuit = Circuit(url)
        self._timeout_s, self._attempts = timeout_s, attempts
        self._limits: Limits | None = None

    def score(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Score clips and return one outcome per clip, in order. Raises subclasses of RewardClientError."""
        if not submissions:
            return []
        named, timeout_s = _each_once(submissions), _patience_s(submissions, self._call_s())
        with _span("score", submissions):
            if _fits_one_request(submissions, self._transport.one_request_bytes):
                outcomes = self._retrying(timeout_s)(self._circuit.call, self._transport.score, named, timeout_s)
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
        with _span("submit", submissions):
            return self._retrying(timeout_s)(self._circuit.call, self._transport.submit, named, timeout_s)

    def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> Iterator[Outcome]:
        """Yield each outcome once it is ready, until all have come or `timeout_s` is over.

        A lost connection is opened again.
        """
        deadline = time.monotonic() + (self._call_s() if timeout_s is None else timeout_s)
        waiting = dict.fromkeys(job_ids)
        for attempt in stamina.retry_context(_retry_wait, **_policy(self._attempts, _left_s(deadline))):
            with attempt, self._circuit.passing():
                for outcome in self._transport.outcomes(list(waiting), _left_s(deadline)) if waiting else ():
                    waiting.pop(outcome.job_id, None)
                    yield outcome

    def model(self, run_id: str = "") -> Model:
        """The served model. With a `run_id` it names the latest discriminator version of that run."""
        timeout_s = TIMEOUT_S if self._timeout_s is None else self._timeout_s
        return self._retrying(timeout_s)(self._circuit.call, self._transport.model, run_id, timeout_s)

    def refresh(self, request: RefreshRequest, timeout_s: float | None = None) -> RefreshResponse:
        """Train the run's discriminators on its recent clips. Returns once the new version serves the run.

        Retries do not train twice. Without `timeout_s` the call may take MARGIN_S longer than the server's own timeout.
        Raises subclasses of RewardClientError. After an error the old version still serves the run, unless a later
        call with the same idempotency_key returns a response.
        """
        timeout_s = self.refresh_timeout_s(request.steps) if timeout_s is None else timeout_s
        return self._retrying(timeout_s)(self._circuit.call, self._transport.refresh, _once(request), timeout_s)

    def refresh_timeout_s(self, steps: int = 0) -> float:
        """How long `refresh` waits without a `timeout_s`, in seconds. Raises subclasses of RewardClientError."""
        return _refresh_s(self.model().limits, steps)

    def version(self, run_id: str, version: str) -> VersionHeader:
        """What a version of the run is: how it was trained, and the digests of its files.

        This call and the next two need gRPC. They raise subclasses of RewardClientError; RequestRefused with the code
        version_not_served if the server has no such version of the run.
        """
        return self._retrying(TIMEOUT_S)(self._circuit.call, self._files().version, run_id, version, TIMEOUT_S)

    def fetch_version(self, run_id: str, version: str, folder: Path, timeout_s: float) -> VersionHeader:
        """Write the files of a version of the run into a new folder."""
        return self._retrying(timeout_s)(
            self._circuit.call, self._files().fetch_version, run_id, version, folder, timeout_s
        )

    def restore_version(self, folder: Path, timeout_s: float) -> bool:
        """Upload a version again that the server has lost. False if it has the version."""
        return self._retrying(timeout_s)(self._circuit.call, self._files().restore_version, folder, timeout_s)

    def _files(self) -> GrpcTransport:
        if not isinstance(self._transport, GrpcTransport):
            raise RequestRefused(
                ErrorCode.BAD_REQUEST, "versions of runs go over gRPC only; give the server's grpc://HOST:PORT"
            )
        return self._transport

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
    """The async client, for one event loop. Methods are those of RewardClient, but for those of versions' files."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = None,
        attempts: int = ATTEMPTS,
        api_key: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        cert_key: str | Path | None = None,
    ) -> None:
        kind, target = _transport_of(url, {"grpc": AsyncGrpcTransport, "http": AsyncHttpTransport})
        self._transport: AsyncGrpcTransport | AsyncHttpTransport = kind(
            target, api_key_of(api_key), tls_of(url, ca=ca, cert=cert, cert_key=cert_key)
        )
        self._circuit = Circuit(url)
        self._timeout_s, self._attempts = timeout_s, attempts
        self._limits: Limits | None = None

    async def score(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Score clips and return one outcome per clip, in order. Raises subclasses of RewardClientError."""
        if not submissions:
            return []
        named, timeout_s = _each_once(submissions), _patience_s(submissions, await self._call_s())
        with _span("score", submissions):
            if _fits_one_request(submissions, self._transport.one_request_bytes):
                outcomes = await self._retrying(timeout_s)(self._circuit.acall, self._transport.score, named, timeout_s)
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
        with _span("submit", submissions):
            return await self._retrying(timeout_s)(self._circuit.acall, self._transport.submit, named, timeout_s)

    async def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> AsyncIterator[Outcome]:
        """Yield each outcome once it is ready, until all have come or `timeout_s` is over.

        A lost connection is opened again.
        """
        deadline = time.monotonic() + (await self._call_s() if timeout_s is None else timeout_s)
        waiting = dict.fromkeys(job_ids)
        async for attempt in stamina.retry_context(_retry_wait, **_policy(self._attempts, _left_s(deadline))):
            with attempt, self._circuit.passing():
                if not waiting:
                    continue
                async for outcome in self._transport.outcomes(list(waiting), _left_s(deadline)):
                    waiting.pop(outcome.job_id, None)
                    yield outcome

    async def model(self, run_id: str = "") -> Model:
        """The served model. With a `run_id` it names the latest discriminator version of that run."""
        timeout_s = TIMEOUT_S if self._timeout_s is None else self._timeout_s
        return await self._retrying(timeout_s)(self._circuit.acall, self._transport.model, run_id, timeout_s)

    async def refresh(self, request: RefreshRequest, timeout_s: float | None = None) -> RefreshResponse:
        """Train the run's discriminators on its recent clips. Returns once the new version serves the run.

        Retries do not train twice. Without `timeout_s` the call may take MARGIN_S longer than the server's own timeout.
        Raises subclasses of RewardClientError. After an error the old version still serves the run, unless a later
        call with the same idempotency_key returns a response.
        """
        timeout_s = await self.refresh_timeout_s(request.steps) if timeout_s is None else timeout_s
        return await self._retrying(timeout_s)(self._circuit.acall, self._transport.refresh, _once(request), timeout_s)

    async def refresh_timeout_s(self, steps: int = 0) -> float:
        """How long `refresh` waits without a `timeout_s`, in seconds. Raises subclasses of RewardClientError."""
        return _refresh_s((await self.model()).limits, steps)

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


def _span(call: str, submissions: Sequence[Submission]) -> AbstractContextManager[None]:
    """A span of one call with all its retries, if the program traces."""
    return span(f"motion_reward.{call}", "client", attributes={"clips": len(submissions)})


def _refresh_s(limits: Limits, steps: int) -> float:
    """How long a client waits for a refresh of this many steps."""
    return _beyond(limits.refresh_timeout_s, REFRESH_TIMEOUT_S) + steps * (limits.refresh_step_s or 0.0)


def _beyond(server_s: float | None, default_s: float) -> float:
    """MARGIN_S more than the server's own timeout, or than the default if the server does not report one."""
    return (default_s if server_s is None else server_s) + MARGIN_S


def _transport_of(url: str, kinds: dict[str, Any]) -> tuple[Any, str]:
    scheme, _, rest = url.partition("://")
    if scheme in ("grpc", "grpcs") and rest:
        return kinds["grpc"], rest.rstrip("/")
    if scheme in ("http", "https") and rest:
        return kinds["http"], url.rstrip("/")
    raise ValueError(
        f"'{url}' is not the URL of a server; give grpc://HOST:PORT or http://HOST:PORT, or with TLS grpcs:// or https://"
    )


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
