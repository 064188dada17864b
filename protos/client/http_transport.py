"""The client's way over HTTP, sync and async: the same bodies, the same errors, two kinds of waiting."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from protos.client.errors import RequestRefused, ServerBusy, ServerFailed, ServerSilent
from protos.client.proxies import http_options
from protos.error_codes import ErrorCode
from protos.json_codec import from_json, result_from_json, to_json
from protos.types import Media, Model, Outcome, RefreshRequest, RefreshResponse, Submission

WAIT_S = 20.0  # of one long poll: short enough for proxies that cut quiet connections
WAY_BACK_S = 5.0  # a request outlives the wait it asks for by this, so that the server ends the wait
FIELDS = {
    Media.CONTAINER: ("video", "clip", "application/octet-stream"),
    Media.TENSOR: ("tensor", "clip.safetensors", "application/vnd.safetensors"),
}


class HttpTransport:
    """Blocking; safe to share between threads."""

    one_request_bytes = None  # no cap of the protocol's own

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, **http_options(url))

    def score(self, submissions: Sequence[Submission], timeout_s: float) -> list[Outcome]:
        with _translated():
            return _outcomes(self._client.post("/v1/score", **_clips(submissions), timeout=timeout_s))

    def submit(self, submissions: Sequence[Submission], timeout_s: float) -> list[str]:
        with _translated():
            return _job_ids(self._client.post("/v1/jobs", **_clips(submissions), timeout=timeout_s))

    def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> Iterator[Outcome]:
        """In the order given, each as soon as it and those before it are ready."""
        deadline = time.monotonic() + timeout_s
        for job_id in job_ids:
            outcome = None
            while outcome is None and (left_s := deadline - time.monotonic()) > 0:
                with _translated():
                    outcome = _job_outcome(self._client.get(f"/v1/jobs/{job_id}", **_wait(left_s)))
            if outcome is None:
                return
            yield outcome

    def model(self, run_id: str, timeout_s: float) -> Model:
        query = {"run_id": run_id} if run_id else {}
        with _translated():
            return from_json(Model, _body(self._client.get("/v1/model", params=query, timeout=timeout_s)))

    def refresh(self, request: RefreshRequest, timeout_s: float) -> RefreshResponse:
        with _translated():
            answer = self._client.post("/v1/refresh", **_refresh(request, timeout_s))
            return from_json(RefreshResponse, _body(answer))

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    """For one event loop."""

    one_request_bytes = None

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, **http_options(url))

    async def score(self, submissions: Sequence[Submission], timeout_s: float) -> list[Outcome]:
        with _translated():
            return _outcomes(await self._client.post("/v1/score", **_clips(submissions), timeout=timeout_s))

    async def submit(self, submissions: Sequence[Submission], timeout_s: float) -> list[str]:
        with _translated():
            return _job_ids(await self._client.post("/v1/jobs", **_clips(submissions), timeout=timeout_s))

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> AsyncIterator[Outcome]:
        """In the order given, each as soon as it and those before it are ready."""
        deadline = time.monotonic() + timeout_s
        for job_id in job_ids:
            outcome = None
            while outcome is None and (left_s := deadline - time.monotonic()) > 0:
                with _translated():
                    outcome = _job_outcome(await self._client.get(f"/v1/jobs/{job_id}", **_wait(left_s)))
            if outcome is None:
                return
            yield outcome

    async def model(self, run_id: str, timeout_s: float) -> Model:
        query = {"run_id": run_id} if run_id else {}
        with _translated():
            return from_json(Model, _body(await self._client.get("/v1/model", params=query, timeout=timeout_s)))

    async def refresh(self, request: RefreshRequest, timeout_s: float) -> RefreshResponse:
        with _translated():
            answer = await self._client.post("/v1/refresh", **_refresh(request, timeout_s))
            return from_json(RefreshResponse, _body(answer))

    async def close(self) -> None:
        await self._client.aclose()


def _clips(submissions: Sequence[Submission]) -> dict[str, Any]:
    """Multipart: the payloads as files, one JSON context per clip."""
    files = []
    for submission in submissions:
        field, name, content_type = FIELDS[submission.media]
        files.append((field, (name, submission.payload, content_type)))
    return {"files": files, "data": {"context": json.dumps([to_json(s.context) for s in submissions])}}


def _refresh(request: RefreshRequest, timeout_s: float) -> dict[str, Any]:
    """HTTP tells the server no deadline, so the body does."""
    deadline_s = min(timeout_s, request.deadline_s or timeout_s)
    return {"json": to_json(replace(request, deadline_s=deadline_s)), "timeout": timeout_s + WAY_BACK_S}


def _wait(left_s: float) -> dict[str, Any]:
    wait_s = min(left_s, WAIT_S)
    return {"params": {"wait_s": wait_s}, "timeout": wait_s + WAY_BACK_S}


def _outcomes(response: httpx.Response) -> list[Outcome]:
    return [result_from_json(result) for result in _body(response)["results"]]


def _job_ids(response: httpx.Response) -> list[str]:
    return [job["id"] for job in _body(response)["jobs"]]


def _job_outcome(response: httpx.Response) -> Outcome | None:
    result = _body(response)["result"]
    return result_from_json(result) if result else None


def _body(response: httpx.Response) -> Any:
    """The JSON of an answer that is one. Raises RewardClientError leaves."""
    if response.is_success:
        return response.json()
    code, message = _told(response)
    if response.status_code in (429, 503):
        after = response.headers.get("retry-after", "")
        raise ServerBusy(code, message, retry_after_s=float(after) if after.isdigit() else None)
    raise (ServerFailed if response.status_code >= 500 else RequestRefused)(code, message)


def _told(response: httpx.Response) -> tuple[str, str]:
    """Code and message of our error body, or of a proxy in between."""
    try:
        error = response.json()["error"]
        return error["code"], error["message"]
    except (ValueError, KeyError, TypeError):
        return f"http_{response.status_code}", response.text[:200] or response.reason_phrase


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise ServerSilent(ErrorCode.NO_ANSWER, f"{error.request.url}: no answer in time") from error
    except httpx.TransportError as error:
        raise ServerBusy(ErrorCode.UNREACHABLE, f"{error.request.url}: {error}") from error
    except (httpx.DecodingError, ValueError, KeyError, TypeError) as error:
        raise ServerFailed(ErrorCode.BAD_ANSWER, f"the answer is not in the contract's form: {error!r}") from error
