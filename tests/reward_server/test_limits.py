"""Tests what the doors bound before and around a request: headers, time, connections, requests in flight, uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from redis.asyncio import Redis

from protos import reward_pb2 as pb
from protos import reward_pb2_grpc as rpc
from protos.types import Context, Media, Submission
from reward_server.doors.connections import MAX_HEADERS
from reward_server.doors.gate import network_of
from reward_server.doors.key_file import KeyFile, Scope
from reward_server.doors.uploads import Turns, UploadRoom
from reward_server.errors import BadRequest, NotReady, Overloaded
from reward_server.queue import admission
from reward_server.queue.admission import NO_REFUSALS
from reward_server.queue.keys import Keys
from reward_server.queue.quota import Quota
from reward_server.settings import Settings
from tests import media
from tests.conftest import MakeSettings, OpenQueue
from tests.running import Doors, GrpcKnock, HttpKnock, Refused, knocking, open_doors

CLIP = media.tensor(np.full((12, 32, 48, 3), 100, dtype=np.uint8), 12.0)
MIB = 1024**2
FAST: dict[str, Any] = {"head_timeout_s": 0.3, "upload_min_bytes_per_s": MIB}
HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: video/mp4\r\n"


@pytest.fixture
async def doors(make_settings: MakeSettings) -> AsyncIterator[Doors]:
    async with open_doors(make_settings(**FAST)) as doors:
        yield doors


@asynccontextmanager
async def connection(doors: Doors) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = doors.http_url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def answered(doors: Doors, *sent: bytes) -> bytes:
    """What the HTTP door answers to raw bytes, until it closes."""
    async with connection(doors) as (reader, writer):
        for piece in sent:
            try:
                writer.write(piece)
                await writer.drain()
            except ConnectionError:
                break
        try:
            async with asyncio.timeout(20):
                return await reader.read(-1)
        except ConnectionError:
            return b""


# --- headers and time ---------------------------------------------------------------------------

FLOOD = [b"a" * MIB] * 20
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
TOO_LONG = {
    "many headers": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    "large headers in one piece": b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
}
ENDLESS = {
    "a header": b"GET / HTTP/1.1\r\nX: ",
    "a path": b"GET /",
    "a trailer": CHUNKED + b"2\r\nab\r\n0\r\nX: ",
    "an extension of a chunk": CHUNKED + b"1;x=",
}


async def test_a_header_is_refused_as_soon_as_it_is_too_long(doors: Doors) -> None:
    for name, sent in TOO_LONG.items():
        answer = await answered(doors, sent)
        assert answer.startswith(b"HTTP/1.1 431 ") and b"head_max_bytes" in answer, name
        assert b"x-content-type-options" in answer


async def test_what_does_not_end_is_cut_off(doors: Doors) -> None:
    """The door closes while the client still writes. It then sees a reset, and perhaps the answer before it."""
    for name, sent in ENDLESS.items():
        answer = await answered(doors, sent, *FLOOD)
        assert not answer or b" 431 " in answer or b" 400 " in answer, name


async def test_a_header_that_does_not_come_loses_its_connection(doors: Doors) -> None:
    for sent in (b"", b"GET / HT", b"\r\n"):
        answer = await answered(doors, sent)
        assert answer.startswith(b"HTTP/1.1 408 ") and b"0.3 s" in answer, sent


async def test_a_second_header_has_its_own_time(doors: Doors) -> None:
    async with connection(doors) as (reader, writer):
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.2)
        writer.write(b"GET /healthz HT")
        assert b"408" in await reader.read(-1)


async def test_a_body_that_stops_is_refused(doors: Doors) -> None:
    answer = await answered(doors, HEAD + b"Content-Length: 1000\r\n\r\n", b"abc")
    assert answer.startswith(b"HTTP/1.1 400 ") and b"3 bytes of the body" in answer


async def test_a_body_without_clips_is_limited(doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=doors.http_url) as client:
        answer = await client.post("/v1/refresh", content=b" " * (MIB + 1))
        assert answer.status_code == 413
        assert (await client.post("/v1/refresh", json={"run_id": ""})).status_code == 400


async def test_a_stream_that_stops_is_refused(doors: Doors) -> None:
    async with grpc.aio.insecure_channel(doors.grpc_url.removeprefix("grpc://")) as channel:
        call = rpc.MotionRewardStub(channel).Submit()  # type: ignore[no-untyped-call]
        await call.write(pb.SubmitRequest(header=pb.SubmitRequest.Header(media=pb.Media.TENSOR, size_bytes=9)))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "head_timeout_s" in await call.details()


async def test_a_message_that_does_not_come_is_refused(doors: Doors) -> None:
    """A method of one message, called with a stream that ends without one."""
    async with grpc.aio.insecure_channel(doors.grpc_url.removeprefix("grpc://")) as channel:
        call = channel.stream_unary("/motion_reward.v1.MotionReward/Score")()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_metadata_are_limited(doors: Doors) -> None:
    async with grpc.aio.insecure_channel(doors.grpc_url.removeprefix("grpc://")) as channel:
        stub: Any = rpc.MotionRewardStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetModel(pb.GetModelRequest(), metadata=(("x", "a" * 200_000),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# --- connections and requests in flight ---------------------------------------------------------


async def test_connections_over_a_limit_are_closed_and_the_place_is_free_again(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings(max_connections=2)) as doors:
        async with connection(doors), connection(doors):
            await asyncio.sleep(0.05)
            assert await answered(doors, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        await asyncio.sleep(0.05)
        async with httpx.AsyncClient(base_url=doors.http_url) as client:
            assert (await client.get("/healthz")).status_code == 200


async def test_requests_in_flight_are_limited_at_each_door(make_settings: MakeSettings) -> None:
    """Callers who wait for a job that nobody scores. Health answers all the same."""
    async with open_doors(make_settings(max_requests=2)) as doors, knocking(doors) as knocks:
        [job_id] = await submitted(knocks[0])
        for knock in knocks:
            waiting = [asyncio.create_task(knock.job(job_id, 5)) for _ in range(2)]
            await asyncio.sleep(0.3)
            refused = await knock.model()
            assert isinstance(refused, Refused) and refused.code == "overloaded" and refused.retry_after_s == 1
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        async with httpx.AsyncClient(base_url=doors.http_url) as client:
            assert (await client.get("/healthz")).status_code == 200


async def submitted(knock: HttpKnock | GrpcKnock, payload: bytes = CLIP) -> list[str]:
    answer = await knock.submit([Submission(payload=payload, media=Media.TENSOR, context=Context())])
    assert isinstance(answer, list), answer
    return answer


def test_an_address_of_ipv6_stands_for_its_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2%eth0") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:10.0.0.1") == "10.0.0.1" and network_of("::1") == "::1"


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)


# --- uploads ------------------------------------------------------------------------------------


async def test_held_uploads_take_disk_and_not_memory(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(upload_memory_bytes=4 * MIB, upload_dir=tmp_path / "uploads")
    async with open_doors(settings) as doors:
        room = doors.service.uploads
        async with connection(doors) as (_, one), connection(doors) as (_, other):
            for writer in (one, other):
                writer.write(HEAD + b"Content-Length: 9000000\r\n\r\n" + b"x" * (3 * MIB))
                await writer.drain()
            await until(lambda: room.disk.taken + room.memory.taken == 6 * MIB)
            assert room.memory.taken <= MIB
        await until(lambda: room.disk.taken + room.memory.taken == 0)
        assert not list((tmp_path / "uploads").iterdir())


async def test_an_upload_through_the_disk_arrives_whole(
    make_settings: MakeSettings, redis: Redis, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    payloads = [media.tensor(rng.integers(0, 256, (12, 160, 240, 3), dtype=np.uint8), 12.0) for _ in range(4)]
    settings = make_settings(upload_memory_bytes=4 * MIB, upload_dir=tmp_path / "uploads")
    async with open_doors(settings) as doors, knocking(doors) as knocks:
        clips = [Submission(payload=payload, media=Media.TENSOR, context=Context()) for payload in payloads]
        for knock in knocks:
            job_ids = await knock.submit(clips)
            assert isinstance(job_ids, list), job_ids
            kept = [await redis.get(Keys(profile=settings.profile).payload(job_id)) for job_id in job_ids]
            assert kept == payloads
            (tmp_path / "uploads").rmdir()  # it was used, and nothing is left in it


async def test_uploads_over_the_disk_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    room = UploadRoom(Settings(upload_memory_bytes=MIB, upload_disk_bytes=MIB, upload_dir=tmp_path))
    with room.spool() as spool:
        await spool.add(b"x" * (MIB // 2))
        with room.spool() as other, pytest.raises(Overloaded, match=r"524288 of 1048576 bytes \(upload_disk_bytes\)"):
            await other.add(b"y" * MIB)
        assert b"".join([piece async for piece in spool.chunks()]) == b"x" * (MIB // 2)
    assert room.memory.taken == room.disk.taken == 0


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file")
    room = UploadRoom(Settings(upload_memory_bytes=MIB, upload_dir=tmp_path / "uploads"))
    with room.spool() as spool, pytest.raises(NotReady, match="MOTION_REWARD_UPLOAD_DIR"):
        await spool.add(b"x" * MIB)


async def test_uploads_are_admitted_in_their_order_and_within_the_limit() -> None:
    turns, order = Turns(10), []

    async def go(name: str, num_bytes: int) -> None:
        with await turns.take(num_bytes):
            order.append(name)
            await asyncio.sleep(0)

    first = await turns.take(6)
    tasks = [asyncio.create_task(go(name, size)) for name, size in (("a", 99), ("b", 4), ("c", 6))]
    await asyncio.sleep(0.01)
    assert order == []  # the large one goes alone, and the small ones do not overtake it
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert order == ["b"]
    first.release()
    first.release()
    await asyncio.wait(tasks)
    assert order == ["b", "c"]
    (await turns.take(10)).release()


# --- what the queue counts ----------------------------------------------------------------------


async def test_bytes_on_their_way_count_until_they_are_admitted(
    make_settings: MakeSettings, open_queue: OpenQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many requests that upload at once once put any number of bytes into Redis."""
    monkeypatch.setattr(admission, "SENT_BYTES", 0)
    settings = make_settings(queue_max_bytes=int(1.5 * len(CLIP)))
    queue = (await open_queue(settings)).door
    clip = Submission(payload=CLIP, media=Media.TENSOR, context=Context())
    link, arrived, go_on = queue._link, asyncio.Event(), asyncio.Event()
    put = link.put

    async def slow(*args: Any, **kwargs: Any) -> None:
        arrived.set()
        await go_on.wait()
        await put(*args, **kwargs)

    monkeypatch.setattr(link, "put", slow)
    first = asyncio.create_task(queue.admit([clip]))
    await arrived.wait()
    with pytest.raises(Overloaded, match=f"{len(CLIP)} of"):
        await queue.admit([clip])
    first.cancel()  # the caller has left: nothing is reserved any more
    await asyncio.wait([first])
    go_on.set()
    await queue.admit([clip])
    assert not await redis.exists(f"{Keys(profile=settings.profile).prefix}:staged")


async def test_a_key_has_no_more_unfinished_work_than_its_quota(make_settings: MakeSettings, tmp_path: Path) -> None:
    file, both = KeyFile(tmp_path / "keys.json"), (Scope.SCORE, Scope.ADMIN)
    small = file.create("small", both, Quota(jobs=2, bytes=3 * len(CLIP)))
    other = file.create("other", both)
    assert [str(key.quota) for key in KeyFile(file.path).read()] == [f"2 jobs, {3 * len(CLIP)} bytes", "no limits"]
    clip = Submission(payload=CLIP, media=Media.TENSOR, context=Context())
    async with open_doors(make_settings(keys_file=file.path)) as doors, knocking(doors) as (http, _):
        http.client.headers["authorization"] = f"Bearer {small}"
        assert isinstance(await http.submit([clip]), list)
        assert isinstance(await http.submit([clip]), list)
        full = await http.client.post("/v1/jobs", content=CLIP, headers={"content-type": "application/vnd.safetensors"})
        assert full.status_code == 429 and full.headers["retry-after"] == "5"
        told = full.json()["error"]["message"]
        assert "2 unfinished jobs" in told and "quota is 2 jobs" in told and "retry in 5 s" in told
        channel = grpc.aio.insecure_channel(doors.grpc_url.removeprefix("grpc://"))
        stub: Any = rpc.MotionRewardStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            message = pb.ScoreRequest(clips=[pb.Clip(media=pb.Media.TENSOR, payload=CLIP)])
            await stub.Score(message, metadata=(("authorization", f"Bearer {small}"),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "quota" in str(refused.value.details())
        await channel.close()
        http.client.headers["authorization"] = f"Bearer {other}"
        assert isinstance(await http.submit([clip]), list)


async def test_a_quota_is_free_again_once_a_job_has_ended(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    clip = Submission(payload=CLIP, media=Media.TENSOR, context=Context(deadline_s=0.01))
    quota = Quota(jobs=1, cost=1.0)
    await queue.door.admit([clip], {0: BadRequest("ended already")}, "0123abcd", quota)
    assert not await redis.exists(f"{Keys(profile='embedded').prefix}:owned:0123abcd")
    [job_id] = await queue.door.admit([clip], NO_REFUSALS, "0123abcd", quota)  # alone, a clip of any cost is taken
    with pytest.raises(Overloaded, match="1 unfinished jobs"):
        await queue.door.admit([clip], NO_REFUSALS, "0123abcd", quota)
    with pytest.raises(BadRequest, match="never fits the quota"):
        await queue.door.admit([clip, clip], NO_REFUSALS, "0123abcd", quota)
    async with asyncio.timeout(20):
        async for outcome in queue.door.outcomes([job_id], 15):
            assert outcome.error and outcome.error.code == "deadline_passed"
    assert await queue.door.admit([clip], NO_REFUSALS, "0123abcd", quota)
