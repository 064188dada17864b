"""Calls the reward server, blocking or async. The URL decides between gRPC and HTTP.

    with RewardClient("http://127.0.0.1:8000") as client:
        outcomes = client.score([submission("clip.mp4")])

The client retries a call only if the server is busy or not reachable (429, 503, UNAVAILABLE,
RESOURCE_EXHAUSTED). It waits with backoff and jitter, and the number of attempts is limited. If the server
cannot be reached in several calls in a row, further ones fail at once for a while (circuit.py). It never makes up a
reward: each clip gets an Outcome, and a request without outcomes raises RewardClientError.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import stamina

from protos.client.api_key import api_key_of
from protos.client.calls import (
    MARGIN_S,
    as_asked,
    beyond,
    call_span,
    each_once,
    fits_one_request,
    in_order,
    left_s,
    named_once,
    patience_s,
    refresh_patience_s,
    retry_policy,
    retry_wait,
    transport_of,
)
from protos.client.circuit import Circuit
from protos.client.errors import RequestRefused, RewardClientError
from protos.client.grpc_transport import AsyncGrpcTransport, GrpcTransport
from protos.client.http_transport import AsyncHttpTransport, HttpTransport
from protos.client.tls import tls_of
from protos.error_codes import ErrorCode
from protos.types import (
    SCORE_TIMEOUT_S,
    Limits,
    Model,
    Outcome,
    RefreshRequest,
    RefreshResponse,
    Submission,
    VersionHeader,
)

TIMEOUT_S = SCORE_TIMEOUT_S + MARGIN_S
LOOK_S = 10.0  # time to ask the server for its timeouts
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
        kind, target = transport_of(url, {"grpc": GrpcTransport, "http": HttpTransport})
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
        named, timeout_s = each_once(submissions), patience_s(submissions, self._call_s())
        with call_span("score", submissions):
            if fits_one_request(submissions, self._transport.one_request_bytes):
                outcomes = self._retrying(timeout_s)(self._circuit.call, self._transport.score, named, timeout_s)
                return as_asked(submissions, outcomes)
            job_ids = self.submit(named)
            found = {outcome.job_id: outcome for outcome in self.await_outcomes(job_ids, timeout_s)}
            return as_asked(submissions, in_order(job_ids, submissions, found))

    def submit(self, submissions: Sequence[Submission]) -> list[str]:
        """Queue clips and return their job ids, in order.

        A clip without an idempotency key gets one, which appears in the context of its outcome.
        """
        if not submissions:
            return []
        named, timeout_s = each_once(submissions), patience_s(submissions, self._call_s())
        with call_span("submit", submissions):
            return self._retrying(timeout_s)(self._circuit.call, self._transport.submit, named, timeout_s)

    def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> Iterator[Outcome]:
        """Yield each outcome once it is ready, until all have come or `timeout_s` is over.

        A lost connection is opened again.
        """
        deadline = time.monotonic() + (self._call_s() if timeout_s is None else timeout_s)
        waiting = dict.fromkeys(job_ids)
        for attempt in stamina.retry_context(retry_wait, **retry_policy(self._attempts, left_s(deadline))):
            with attempt, self._circuit.passing():
                for outcome in self._transport.outcomes(list(waiting), left_s(deadline)) if waiting else ():
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
        return self._retrying(timeout_s)(self._circuit.call, self._transport.refresh, named_once(request), timeout_s)

    def refresh_timeout_s(self, steps: int = 0) -> float:
        """How long `refresh` waits without a `timeout_s`, in seconds. Raises subclasses of RewardClientError."""
        return refresh_patience_s(self.model().limits, steps)

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
        return beyond(self._limits.score_timeout_s if self._limits else None, SCORE_TIMEOUT_S)

    def _retrying(self, timeout_s: float) -> stamina.BoundRetryingCaller:
        return stamina.RetryingCaller(**retry_policy(self._attempts, timeout_s)).on(retry_wait)


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
        kind, target = transport_of(url, {"grpc": AsyncGrpcTransport, "http": AsyncHttpTransport})
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
        named, timeout_s = each_once(submissions), patience_s(submissions, await self._call_s())
        with call_span("score", submissions):
            if fits_one_request(submissions, self._transport.one_request_bytes):
                outcomes = await self._retrying(timeout_s)(self._circuit.acall, self._transport.score, named, timeout_s)
                return as_asked(submissions, outcomes)
            job_ids = await self.submit(named)
            found = {outcome.job_id: outcome async for outcome in self.await_outcomes(job_ids, timeout_s)}
            return as_asked(submissions, in_order(job_ids, submissions, found))

    async def submit(self, submissions: Sequence[Submission]) -> list[str]:
        """Queue clips and return their job ids, in order.

        A clip without an idempotency key gets one, which appears in the context of its outcome.
        """
        if not submissions:
            return []
        named, timeout_s = each_once(submissions), patience_s(submissions, await self._call_s())
        with call_span("submit", submissions):
            return await self._retrying(timeout_s)(self._circuit.acall, self._transport.submit, named, timeout_s)

    async def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> AsyncIterator[Outcome]:
        """Yield each outcome once it is ready, until all have come or `timeout_s` is over.

        A lost connection is opened again.
        """
        deadline = time.monotonic() + (await self._call_s() if timeout_s is None else timeout_s)
        waiting = dict.fromkeys(job_ids)
        async for attempt in stamina.retry_context(retry_wait, **retry_policy(self._attempts, left_s(deadline))):
            with attempt, self._circuit.passing():
                if not waiting:
                    continue
                async for outcome in self._transport.outcomes(list(waiting), left_s(deadline)):
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
        return await self._retrying(timeout_s)(
            self._circuit.acall, self._transport.refresh, named_once(request), timeout_s
        )

    async def refresh_timeout_s(self, steps: int = 0) -> float:
        """How long `refresh` waits without a `timeout_s`, in seconds. Raises subclasses of RewardClientError."""
        return refresh_patience_s((await self.model()).limits, steps)

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
        return beyond(self._limits.score_timeout_s if self._limits else None, SCORE_TIMEOUT_S)

    def _retrying(self, timeout_s: float) -> stamina.BoundAsyncRetryingCaller:
        return stamina.AsyncRetryingCaller(**retry_policy(self._attempts, timeout_s)).on(retry_wait)
