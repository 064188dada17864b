"""Calls the server over gRPC, blocking and async. Both transports share their messages and errors.

A few small clips are sent with one Score call. Clips over gRPC's message limit are sent with Submit in
chunks of 1 MiB, and Await streams their outcomes back. `client.py` decides between the two.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from protos import codec, tracing
from protos import reward_pb2 as pb
from protos import reward_pb2_grpc as rpc
from protos.client.api_key import ApiKey
from protos.client.errors import RequestRefused, RewardClientError, ServerBusy, ServerFailed, ServerSilent
from protos.client.proxies import grpc_options
from protos.client.tls import Tls
from protos.client.version_files import header_in, read_version, write_version
from protos.error_codes import ErrorCode
from protos.types import ContractError, Model, Outcome, RefreshRequest, RefreshResponse, Submission, VersionHeader

CHUNK_BYTES = 1024**2
SCORE_BYTES = 3 * 1024**2  # fits a message of 4 MiB, gRPC's default limit, with room for contexts
WAY_BACK_S = 1.0  # added to a call's timeout, so that the server ends the wait it was asked for
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # despite its name: how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 2000),
)
SILENT = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


class GrpcTransport:
    """The blocking transport. It is safe to share between threads."""

    one_request_bytes = SCORE_BYTES

    def __init__(self, target: str, api_key: ApiKey | None = None, tls: Tls | None = None) -> None:
        self._target = target
        self._api_key = api_key
        options = (*OPTIONS, *grpc_options(target))
        self._channel = (
            grpc.secure_channel(target, tls.grpc_credentials(), options)
            if tls
            else grpc.insecure_channel(target, options)
        )
        self._stub = _stub(self._channel)

    def score(self, submissions: Sequence[Submission], timeout_s: float) -> list[Outcome]:
        with _translated(self._target):
            return _outcomes(self._stub.Score(_score_request(submissions), **self._call(timeout_s)))

    def submit(self, submissions: Sequence[Submission], timeout_s: float) -> list[str]:
        with _translated(self._target):
            return list(self._stub.Submit(_parts(submissions), **self._call(timeout_s)).job_ids)

    def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> Iterator[Outcome]:
        with _translated(self._target), _until_deadline():
            for message in self._stub.Await(_await_request(job_ids, timeout_s), **self._call(timeout_s + WAY_BACK_S)):
                yield codec.outcome_from_message(message)

    def model(self, run_id: str, timeout_s: float) -> Model:
        with _translated(self._target):
            request = pb.GetModelRequest(run_id=run_id)
            return codec.model_from_message(self._stub.GetModel(request, **self._call(timeout_s)))

    def refresh(self, request: RefreshRequest, timeout_s: float) -> RefreshResponse:
        with _translated(self._target):
            message = codec.refresh_to_message(request)
            return codec.refreshed_from_message(self._stub.Refresh(message, **self._call(timeout_s)))

    def version(self, run_id: str, version: str, timeout_s: float) -> VersionHeader:
        with _translated(self._target):
            request = pb.FetchVersionRequest(run_id=run_id, version=version, header_only=True)
            return header_in(iter(self._stub.FetchVersion(request, **self._call(timeout_s))))

    def fetch_version(self, run_id: str, version: str, folder: Path, timeout_s: float) -> VersionHeader:
        with _translated(self._target):
            request = pb.FetchVersionRequest(run_id=run_id, version=version)
            return write_version(self._stub.FetchVersion(request, **self._call(timeout_s)), folder)

    def restore_version(self, folder: Path, timeout_s: float) -> bool:
        with _translated(self._target):
            return bool(self._stub.RestoreVersion(read_version(folder), **self._call(timeout_s)).restored)

    def close(self) -> None:
        self._channel.close()

    def _call(self, timeout_s: float) -> dict[str, Any]:
        return _call_options(self._api_key, timeout_s)


class AsyncGrpcTransport:
    """The async transport, for one event loop."""

    one_request_bytes = SCORE_BYTES

    def __init__(self, target: str, api_key: ApiKey | None = None, tls: Tls | None = None) -> None:
        self._target = target
        self._api_key = api_key
        options = (*OPTIONS, *grpc_options(target))
        self._channel = (
            grpc.aio.secure_channel(target, tls.grpc_credentials(), options)
            if tls
            else grpc.aio.insecure_channel(target, options)
        )
        self._stub = _stub(self._channel)

    async def score(self, submissions: Sequence[Submission], timeout_s: float) -> list[Outcome]:
        with _translated(self._target):
            return _outcomes(await self._stub.Score(_score_request(submissions), **self._call(timeout_s)))

    async def submit(self, submissions: Sequence[Submission], timeout_s: float) -> list[str]:
        with _translated(self._target):
            return list((await self._stub.Submit(_parts(submissions), **self._call(timeout_s))).job_ids)

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> AsyncIterator[Outcome]:
        with _translated(self._target), _until_deadline():
            async for message in self._stub.Await(
                _await_request(job_ids, timeout_s), **self._call(timeout_s + WAY_BACK_S)
            ):
                yield codec.outcome_from_message(message)

    async def model(self, run_id: str, timeout_s: float) -> Model:
        with _translated(self._target):
            request = pb.GetModelRequest(run_id=run_id)
            return codec.model_from_message(await self._stub.GetModel(request, **self._call(timeout_s)))

    async def refresh(self, request: RefreshRequest, timeout_s: float) -> RefreshResponse:
        with _translated(self._target):
            message = codec.refresh_to_message(request)
            return codec.refreshed_from_message(await self._stub.Refresh(message, **self._call(timeout_s)))

    async def close(self) -> None:
        await self._channel.close()

    def _call(self, timeout_s: float) -> dict[str, Any]:
        return _call_options(self._api_key, timeout_s)


def _stub(channel: Any) -> Any:
    return rpc.MotionRewardStub(channel)  # type: ignore[no-untyped-call]


def _call_options(api_key: ApiKey | None, timeout_s: float) -> dict[str, Any]:
    """Keyword arguments of every call."""
    key = {"authorization": api_key.bearer} if api_key else {}
    metadata = tuple((key | tracing.headers()).items())
    return {"timeout": timeout_s, "metadata": metadata or None}


def _score_request(submissions: Sequence[Submission]) -> pb.ScoreRequest:
    return pb.ScoreRequest(clips=[codec.submission_to_message(submission) for submission in submissions])


def _outcomes(response: pb.ScoreResponse) -> list[Outcome]:
    return [codec.outcome_from_message(outcome) for outcome in response.outcomes]


def _await_request(job_ids: Sequence[str], timeout_s: float) -> pb.AwaitRequest:
    return pb.AwaitRequest(job_ids=job_ids, timeout_s=timeout_s)


def _parts(submissions: Sequence[Submission]) -> Iterator[pb.SubmitRequest]:
    """The stream of Submit: a header and its chunks for each clip."""
    for number, submission in enumerate(submissions):
        payload = memoryview(submission.payload)
        header = pb.SubmitRequest.Header(
            media=pb.Media.Value(submission.media.name),
            size_bytes=len(payload),
            context=codec.context_to_message(submission.context),
            num_clips=0 if number else len(submissions),
        )
        yield pb.SubmitRequest(header=header)
        for start in range(0, len(payload), CHUNK_BYTES):
            yield pb.SubmitRequest(chunk=bytes(payload[start : start + CHUNK_BYTES]))


@contextmanager
def _translated(target: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _client_error(error, target) from error
    except ContractError as error:
        raise ServerFailed(ErrorCode.BAD_ANSWER, f"{target}: the answer breaks the contract: {error}") from error


@contextmanager
def _until_deadline() -> Iterator[None]:
    """End a stream of outcomes without an error when the call's deadline passes."""
    try:
        yield
    except grpc.RpcError as error:
        if cast(Any, error).code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise


def _client_error(error: Any, target: str) -> RewardClientError:
    """The client's error for a grpc.Call or an AioRpcError. Both have code, details and trailing metadata."""
    status, message = error.code(), error.details() or "no details"
    trailing = dict(error.trailing_metadata() or ())
    code = str(trailing.get("error-code", status.name.lower()))
    after_s = float(trailing.get("retry-after-s", 0)) or None
    if status is grpc.StatusCode.UNAVAILABLE:
        told = code if "error-code" in trailing else ErrorCode.UNREACHABLE
        return ServerBusy(told, f"{target}: {message}", retry_after_s=after_s)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "error-code" in trailing:  # without it: gRPC's message limit
        return ServerBusy(code, message, retry_after_s=after_s)
    if status in SILENT:
        return ServerSilent(ErrorCode.NO_ANSWER, f"{target}: {message}")
    return (ServerFailed if status in FAILED else RequestRefused)(code, message)
