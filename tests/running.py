"""Runs both doors with a real queue and a real worker in the test's event loop, and sends requests to them.

`Knock` sends the same clips to either door without our client, so that the doors are tested through
their protocols alone. It returns the outcomes, or the status and code with which the door refused.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest

from protos import codec, json_codec
from protos import reward_pb2 as pb
from protos import reward_pb2_grpc as rpc
from protos.client.http_transport import FIELDS
from protos.json_codec import result_from_json
from protos.types import Outcome, Submission, Timings
from reward_server.doors.access import Access
from reward_server.doors.grpc_api import GrpcDoor
from reward_server.doors.http_server import HttpDoor
from reward_server.doors.metrics import Metrics
from reward_server.doors.service import Service
from reward_server.queue.door_queue import DoorQueue
from reward_server.queue.redis_link import connect
from reward_server.settings import Settings
from reward_server.worker.worker import Scorer, run_worker

TOLERANCE = 1e-4  # for logits of a clip in different batches; see pipeline.py


@dataclass(frozen=True, kw_only=True)
class Doors:
    """The addresses of both doors, and the objects behind them."""

    http_url: str
    grpc_url: str
    service: Service
    settings: Settings

    @property
    def urls(self) -> tuple[str, str]:
        return self.http_url, self.grpc_url


@asynccontextmanager
async def open_doors(settings: Settings, http: str = "127.0.0.1:0", grpc: str = "127.0.0.1:0") -> AsyncIterator[Doors]:
    """Both doors without a worker, on free ports unless the settings name others."""
    settings = settings.model_copy(update={"http": http, "grpc": grpc})
    queue = DoorQueue(connect(settings), settings)
    await queue.open()
    service = Service(queue, settings, Metrics())
    access = Access(settings)
    http_door, grpc_door = HttpDoor(service, settings, access), GrpcDoor(service, settings, access)
    addresses = http_door.bind(), grpc_door.bind()
    await asyncio.gather(http_door.start(), grpc_door.start())
    try:
        secure = "s" if settings.tls_cert else ""
        yield Doors(
            http_url=f"http{secure}://{addresses[0]}",
            grpc_url=f"grpc{secure}://{addresses[1]}",
            service=service,
            settings=settings,
        )
    finally:
        await asyncio.gather(http_door.stop(1), grpc_door.stop(1))
        await queue.close()


@asynccontextmanager
async def working(doors: Doors, scorer: Scorer) -> AsyncIterator[None]:
    """A worker in this event loop. It is announced before the block begins and drained after it ends."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_worker(doors.settings, scorer, stop=stop))
    try:
        while not (await doors.service.readiness()).ready:
            await asyncio.wait([task], timeout=0.02)
        yield
    finally:
        stop.set()
        await task


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A request that failed as a whole: the status of the door, and the error code, which both doors share."""

    status: int | str
    code: str
    retry_after_s: float | None = None


Answer = list[Outcome] | Refused


class HttpKnock:
    """Sends requests over HTTP as a program without our client would."""

    def __init__(self, doors: Doors) -> None:
        self.client = httpx.AsyncClient(base_url=doors.http_url, timeout=60)

    async def score(self, submissions: Sequence[Submission]) -> Answer:
        return self._answer(await self.client.post("/v1/score", **multipart(submissions)))

    async def submit(self, submissions: Sequence[Submission]) -> list[str] | Refused:
        response = await self.client.post("/v1/jobs", **multipart(submissions))
        return [job["id"] for job in response.json()["jobs"]] if response.is_success else self._refused(response)

    async def job(self, job_id: str, wait_s: float = 20) -> Answer:
        response = await self.client.get(f"/v1/jobs/{job_id}", params={"wait_s": wait_s})
        return [result_from_json(response.json()["result"])] if response.is_success else self._refused(response)

    async def model(self) -> dict[str, Any] | Refused:
        response = await self.client.get("/v1/model")
        return dict(response.json()) if response.is_success else self._refused(response)

    async def close(self) -> None:
        await self.client.aclose()

    def _answer(self, response: httpx.Response) -> Answer:
        if response.is_success:
            return [result_from_json(result) for result in response.json()["results"]]
        return self._refused(response)

    def _refused(self, response: httpx.Response) -> Refused:
        after = response.headers.get("retry-after")
        code = response.json()["error"]["code"]
        return Refused(status=response.status_code, code=code, retry_after_s=float(after) if after else None)


class GrpcKnock:
    """Sends requests over gRPC with the generated stub alone."""

    def __init__(self, doors: Doors) -> None:
        self.channel = grpc.aio.insecure_channel(doors.grpc_url.removeprefix("grpc://"))
        self.stub: Any = rpc.MotionRewardStub(self.channel)

    async def score(self, submissions: Sequence[Submission]) -> Answer:
        clips = [codec.submission_to_message(submission) for submission in submissions]
        answer = await self._called(self.stub.Score(pb.ScoreRequest(clips=clips)))
        return answer if isinstance(answer, Refused) else list(map(codec.outcome_from_message, answer.outcomes))

    async def submit(self, submissions: Sequence[Submission]) -> list[str] | Refused:
        answer = await self._called(self.stub.Submit(parts(submissions)))
        return answer if isinstance(answer, Refused) else list(answer.job_ids)

    async def job(self, job_id: str, wait_s: float = 20) -> Answer:
        return await self.awaited(job_ids=[job_id], timeout_s=wait_s)

    async def awaited(self, at_most: int = 1000, **request: Any) -> Answer:
        """The outcomes until the stream ends, or the first `at_most`."""
        call, answer = self.stub.Await(pb.AwaitRequest(**request)), []
        try:
            async for message in call:
                answer.append(codec.outcome_from_message(message))
                if len(answer) == at_most:
                    call.cancel()
                    break
        except grpc.aio.AioRpcError as error:
            return _refused(error)
        return answer

    async def model(self) -> dict[str, Any] | Refused:
        answer = await self._called(self.stub.GetModel(pb.GetModelRequest()))
        return answer if isinstance(answer, Refused) else dict(json_codec.to_json(codec.model_from_message(answer)))

    async def close(self) -> None:
        await self.channel.close()

    async def _called(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            return _refused(error)


Knock = HttpKnock | GrpcKnock


@asynccontextmanager
async def knocking(doors: Doors) -> AsyncIterator[tuple[HttpKnock, GrpcKnock]]:
    knocks = HttpKnock(doors), GrpcKnock(doors)
    try:
        yield knocks
    finally:
        for knock in knocks:
            await knock.close()


def multipart(submissions: Sequence[Submission]) -> dict[str, Any]:
    files = [(FIELDS[clip.media][0], ("clip", clip.payload)) for clip in submissions]
    # a multipart body needs a part even if there is no clip
    return {
        "files": files or [("context", (None, "{}"))],
        "data": {"context": json.dumps([json_codec.to_json(clip.context) for clip in submissions])} if files else {},
    }


def parts(submissions: Sequence[Submission], chunk_bytes: int = 50_000) -> list[pb.SubmitRequest]:
    """The stream of Submit: a header and its chunks for each clip."""
    stream = []
    for number, clip in enumerate(submissions):
        header = pb.SubmitRequest.Header(
            media=pb.Media.Value(clip.media.name),
            size_bytes=len(clip.payload),
            context=codec.context_to_message(clip.context),
            num_clips=0 if number else len(submissions),
        )
        stream.append(pb.SubmitRequest(header=header))
        starts = range(0, len(clip.payload), chunk_bytes)
        stream += [pb.SubmitRequest(chunk=clip.payload[start : start + chunk_bytes]) for start in starts]
    return stream


def assert_alike(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> None:
    """Checks that two scorings of the same clips agree: equal except for job and times, numbers within TOLERANCE."""
    for one, other in zip(ours, theirs, strict=True):
        assert dict(_leaves(_lasting(one))) == pytest.approx(dict(_leaves(_lasting(other))), abs=TOLERANCE)


def _lasting(outcome: Outcome) -> Any:
    """The outcome without the fields that differ between two scorings of one clip."""
    reward = outcome.reward
    if reward:
        reward = replace(reward, provenance=replace(reward.provenance, timings=Timings()))
    error = outcome.error and replace(outcome.error, message=outcome.error.message.replace(outcome.job_id, "JOB"))
    return json_codec.to_json(replace(outcome, job_id="", reward=reward, error=error, cursor=""))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def _refused(error: grpc.aio.AioRpcError) -> Refused:
    trailing = dict(error.trailing_metadata() or ())
    after = trailing.get("retry-after-s")
    code = str(trailing.get("error-code", ""))
    return Refused(status=error.code().name, code=code, retry_after_s=float(after) if after else None)
