"""Calls the server over HTTP, blocking and async. Both transports share their request bodies and errors."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx

from protos import tracing
from protos.client.api_key import ApiKey
from protos.client.errors import RequestRefused, ServerBusy, ServerFailed, ServerSilent
from protos.client.proxies import http_options
from protos.client.tls import Tls
from protos.error_codes import ErrorCode
from protos.json_codec import from_json, result_from_json, to_json
from protos.types import Context, Media, Model, Outcome, RefreshRequest, RefreshResponse, Submission

WAIT_S = 20.0  # length of one long poll; proxies cut connections that are silent for longer
WAY_BACK_S = 5.0  # added to a request's timeout, so that the server ends the wait it was asked for
FIELDS = {
    Media.CONTAINER: ("video", "clip", "application/octet-stream"),
    Media.TENSOR: ("tensor", "clip.safetensors", "application/vnd.safetensors"),
}


class HttpTransport:
    """The blocking transport. It is safe to share between threads."""

    one_request_bytes = None  # HTTP itself has no limit

    def __init__(self, url: str, api_key: ApiKey | None = None, tls: Tls | None = None) -> None:
        options = http_options(url, tls.http_context() if tls else None)
        self._client = httpx.Client(base_url=url, headers=_headers(api_key), **options)

    def score(self, submissions: Sequence[Submission], timeout_s: float) -> list[Outcome]:
        with _translated():
            return _outcomes(self._client.post("/v1/score", **_clips(submissions), timeout=timeout_s))

    def submit(self, submissions: Sequence[Submission], timeout_s: float) -> list[str]:
        with _translated():
            return _job_ids(self._client.post("/v1/jobs", **_clips(submissions), timeout=timeout_s))

    def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> Iterator[Outcome]:
        """Yield the outcomes in the order of `job_ids`, each once it and all before it are ready."""
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

    def ask(
        self, method: str, path: str, *, query: Any = None, body: Any = None, timeout_s: float = WAIT_S
    ) -> dict[str, Any]:
        """The JSON object that a route answers with. For routes that only HTTP has."""
        with _translated():
            return dict(_body(self._client.request(method, path, params=query, json=body, timeout=timeout_s)))

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    """The async transport, for one event loop."""

    one_request_bytes = None

    def __init__(self, url: str, api_key: ApiKey | None = None, tls: Tls | None = None) -> None:
        options = http_options(url, tls.http_context() if tls else None)
        self._client = httpx.AsyncClient(base_url=url, headers=_headers(api_key), **options)

    async def score(self, submissions: Sequence[Submission], timeout_s: float) -> list[Outcome]:
        with _translated():
            return _outcomes(await self._client.post("/v1/score", **_clips(submissions), timeout=timeout_s))

    async def submit(self, submissions: Sequence[Submission], timeout_s: float) -> list[str]:
        with _translated():
            return _job_ids(await self._client.post("/v1/jobs", **_clips(submissions), timeout=timeout_s))

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> AsyncIterator[Outcome]:
        """Yield the outcomes in the order of `job_ids`, each once it and all before it are ready."""
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


def _headers(api_key: ApiKey | None) -> dict[str, str]:
    return {"authorization": api_key.bearer} if api_key else {}


def _clips(submissions: Sequence[Submission]) -> dict[str, Any]:
    """A multipart body: the payloads as files, and one field with a JSON list of contexts. The trace is handed on."""
    files = []
    for submission in submissions:
        field, name, content_type = FIELDS[submission.media]
        files.append((field, (name, submission.payload, content_type)))
    contexts = json.dumps([_given(submission.context) for submission in submissions])
    return {"files": files, "data": {"context": contexts}, "headers": tracing.headers()}


def _given(context: Context) -> dict[str, Any]:
    """The fields that differ from their defaults, because an older server refuses fields that it does not know."""
    unset = to_json(Context())
    return {name: value for name, value in to_json(context).items() if value != unset[name]}


def _refresh(request: RefreshRequest, timeout_s: float) -> dict[str, Any]:
    """The request, with its timeout as deadline in the body, because HTTP has no deadlines of its own."""
    deadline_s = min(timeout_s, request.deadline_s or timeout_s)
    body = to_json(replace(request, deadline_s=deadline_s))
    return {"json": body, "timeout": timeout_s + WAY_BACK_S, "headers": tracing.headers()}


def _wait(left_s: float) -> dict[str, Any]:
    wait_s = min(left_s, WAIT_S)
    return {"params": {"wait_s": wait_s}, "timeout": wait_s + WAY_BACK_S, "headers": tracing.headers()}


def _outcomes(response: httpx.Response) -> list[Outcome]:
    return [result_from_json(result) for result in _body(response)["results"]]


def _job_ids(response: httpx.Response) -> list[str]:
    return [job["id"] for job in _body(response)["jobs"]]


def _job_outcome(response: httpx.Response) -> Outcome | None:
    result = _body(response)["result"]
    return result_from_json(result) if result else None


def _body(response: httpx.Response) -> Any:
    """The JSON of a successful answer. Raises subclasses of RewardClientError for any other answer."""
    if response.is_success:
        return response.json()
    code, message = _told(response)
    if response.status_code in (429, 503):
        after = response.headers.get("retry-after", "")
        raise ServerBusy(code, message, retry_after_s=float(after) if after.isdigit() else None)
    raise (ServerFailed if response.status_code >= 500 else RequestRefused)(code, message)


def _told(response: httpx.Response) -> tuple[str, str]:
    """Code and message from the server's error body, or made from the answer of a proxy."""
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
        raise ServerSilent(ErrorCode.NO_ANSWER, f"{error.request.url}: no answer within the timeout") from error
    except httpx.TransportError as error:
        raise ServerBusy(ErrorCode.UNREACHABLE, f"{error.request.url}: {error}") from error
    except (httpx.DecodingError, ValueError, KeyError, TypeError) as error:
        raise ServerFailed(ErrorCode.BAD_ANSWER, f"the answer does not follow the contract: {error!r}") from error
