"""Tests both doors: every case is sent over HTTP and gRPC and must end the same way, as the error table says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from redis.asyncio import Redis

from protos import reward_pb2 as pb
from protos.types import Context, Media, Origin, Outcome, OutcomeKind, Submission
from reward_server import errors
from reward_server.doors.access import Access
from reward_server.doors.grpc_api import SERVICE
from reward_server.doors.intake import request_id
from reward_server.errors import DOORS, BadRequest, RewardServerError, door
from reward_server.pipeline import Pipeline
from reward_server.serving.serve import HttpDoor
from tests import media
from tests.conftest import MakeSettings
from tests.running import Answer, Doors, GrpcKnock, Knock, Refused, assert_alike, knocking, open_doors, parts, working

FRAMES = media.texture(16, 32, 48)
SMALL = {"max_frames": 40, "max_bytes": 300_000, "max_request_bytes": 400_000, "max_clips_per_request": 3}


@pytest.fixture
async def doors(make_settings: MakeSettings, small_pipeline: Pipeline) -> AsyncIterator[Doors]:
    settings = make_settings(**SMALL, lease_s=5.0, score_timeout_s=60.0)
    async with open_doors(settings) as doors, working(doors, small_pipeline):
        yield doors


@pytest.fixture
async def idle_doors(make_settings: MakeSettings) -> AsyncIterator[Doors]:
    """Both doors without a worker: no clip is scored, and no model is known."""
    async with open_doors(make_settings(**SMALL, queue_max_jobs=2)) as doors:
        yield doors


def clip(payload: bytes, kind: Media = Media.CONTAINER, **context: Any) -> Submission:
    return Submission(payload=payload, media=kind, context=Context(**context))


def mp4(num_frames: int = 16, **context: Any) -> Submission:
    return clip(media.video(media.texture(num_frames, 32, 48), fps=12.0), **context)


def tensor(**context: Any) -> Submission:
    return clip(media.tensor(FRAMES, 12.0), Media.TENSOR, **context)


def float_tensor_of_bytes() -> Submission:
    """Values 0..255 declared as float: the confusion of [0,1] and [0,255]."""
    lying = media.tensor(FRAMES, 12.0).replace(b'"range":"0-255"', b'"range":"0-1"  ')
    return clip(lying, Media.TENSOR)


# --- one clip, one outcome ----------------------------------------------------------------------

OUTCOMES: dict[str, tuple[Callable[[], Submission], OutcomeKind, str]] = {
    "mp4": (mp4, OutcomeKind.OK, ""),
    "tensor": (tensor, OutcomeKind.OK, ""),
    "gif": (lambda: clip(media.gif(FRAMES)), OutcomeKind.OK, ""),
    "webp": (lambda: clip(media.webp(FRAMES)), OutcomeKind.OK, ""),
    "every field of the context": (
        lambda: mp4(
            group_id="g",
            run_id="r",
            origin=Origin.ROLLOUT,
            query_seed=2**64 - 1,
            deadline_s=600.0,
            idempotency_key="k",
            policy_version="step-7",
            discriminator_version="untrained",
            explain=True,
        ),
        OutcomeKind.OK,
        "",
    ),
    "no bytes": (lambda: clip(b""), OutcomeKind.INVALID, "empty_payload"),
    "text renamed mp4": (lambda: clip(b"not a video at all, just some text"), OutcomeKind.INVALID, "unreadable_clip"),
    "half an mp4": (lambda: clip(mp4().payload[:-2000]), OutcomeKind.INVALID, "unreadable_clip"),
    "audio only": (lambda: clip(media.sound()), OutcomeKind.INVALID, "unreadable_clip"),
    "one frame": (lambda: mp4(1), OutcomeKind.INVALID, "clip_too_short"),
    "too many frames": (lambda: mp4(60), OutcomeKind.INVALID, "clip_too_large"),
    "a header of 20000 x 20000": (
        lambda: clip(media.with_declared_size(mp4().payload, 20000, 20000)),
        OutcomeKind.INVALID,
        "clip_too_large",
    ),
    "more bytes than max_bytes": (lambda: clip(bytes(300_001)), OutcomeKind.INVALID, "clip_too_large"),
    "a tensor in the wrong range": (float_tensor_of_bytes, OutcomeKind.INVALID, "bad_tensor"),
    "a video sent as a tensor": (lambda: replace(mp4(), media=Media.TENSOR), OutcomeKind.INVALID, "bad_tensor"),
    "a deadline that has passed": (lambda: mp4(deadline_s=1e-6), OutcomeKind.TIMEOUT, "deadline_passed"),
    "a version that is not served": (
        lambda: mp4(discriminator_version="of next year"),
        OutcomeKind.FAILED,
        "version_not_served",
    ),
}


@pytest.mark.parametrize("name", OUTCOMES)
async def test_a_clip_ends_alike_at_both_doors(doors: Doors, name: str) -> None:
    make, kind, code = OUTCOMES[name]
    submission = make()
    async with knocking(doors) as knocks:
        answers = [only(await knock.score([submission])) for knock in knocks]
    for outcome in answers:
        assert (outcome.kind, outcome.error.code if outcome.error else "") == (kind, code), outcome.error
        assert outcome.context == submission.context
        assert (outcome.reward is None) == (kind is not OutcomeKind.OK)
    assert_alike(answers[:1], answers[1:])


async def test_an_explanation_comes_at_both_doors_for_the_clip_that_asks(doors: Doors) -> None:
    clips = [tensor(), tensor(explain=True, query_seed=1)]
    async with knocking(doors) as knocks:
        answers = [outcomes(await knock.score(clips)) for knock in knocks]
        later = [outcomes(await knock.job(answers[0][1].job_id)) for knock in knocks]
    for plain, asked in answers:
        assert plain.reward and plain.reward.explanation is None
        assert asked.reward and asked.reward.explanation
        [window] = asked.reward.explanation.windows
        assert (len(window.tracks), window.residual.values().shape) == (16, (15, 43, 64))
    assert_alike(*answers)
    assert later == [[answers[0][1]]] * 2


async def test_an_explanation_is_kept_with_its_result_and_no_longer(doors: Doors, redis: Redis) -> None:
    """It is part of the stored outcome: it adds no key, and every key has an end."""
    [plain] = await doors.service.score([tensor()])
    before = {re.sub("[0-9a-f]{32}", "ID", key.decode()) for key in await redis.keys()}
    [asked] = await doors.service.score([tensor(explain=True)])
    keys = [key.decode() for key in await redis.keys()]
    assert {re.sub("[0-9a-f]{32}", "ID", key) for key in keys} == before
    jobs = [next(key for key in keys if one.job_id in key) for one in (plain, asked)]
    sizes = [await redis.memory_usage(job, samples=0) for job in jobs]  # 0: all fields
    assert sizes[1] - sizes[0] > 2 * 15 * 43 * 64
    for key in keys:
        if asked.job_id in key:
            assert 0 < await redis.ttl(key) <= doors.settings.result_ttl_s


async def test_a_key_that_was_used_without_an_explanation_conflicts_with_one(idle_doors: Doors) -> None:
    async with knocking(idle_doors) as knocks:
        for knock in knocks:
            assert isinstance(await knock.submit([tensor(idempotency_key="k")]), list)
            refused = await knock.submit([tensor(idempotency_key="k", explain=True)])
            assert isinstance(refused, Refused)
            assert refused.code == "idempotency_conflict"


async def test_results_keep_the_order_of_a_mixed_request(doors: Doors) -> None:
    mixed = [mp4(group_id="a"), clip(b"", group_id="b"), tensor(group_id="c")]
    async with knocking(doors) as knocks:
        answers = [outcomes(await knock.score(mixed)) for knock in knocks]
    for answer in answers:
        assert [outcome.context.group_id for outcome in answer] == ["a", "b", "c"]
        assert [outcome.kind.value for outcome in answer] == ["ok", "invalid", "ok"]
    assert_alike(*answers)


async def test_a_submitted_job_is_fetched_at_either_door(doors: Doors) -> None:
    async with knocking(doors) as knocks:
        for submitting, fetching in (knocks, knocks[::-1]):
            job_ids = await submitting.submit([tensor(), clip(b"")])
            assert isinstance(job_ids, list)
            fetched = [only(await fetching.job(job_id)) for job_id in job_ids]
            assert [outcome.job_id for outcome in fetched] == job_ids
            assert [outcome.kind.value for outcome in fetched] == ["ok", "invalid"]


async def test_a_run_is_awaited_by_cursor(doors: Doors) -> None:
    async with knocking(doors) as (http, grpc_knock):
        await http.submit([tensor(run_id="r", group_id=name) for name in "abc"])
        first = outcomes(await grpc_knock.awaited(run_id="r", timeout_s=60, at_most=3))
        assert sorted(outcome.context.group_id for outcome in first) == ["a", "b", "c"]
        rest = outcomes(await grpc_knock.awaited(run_id="r", after=first[0].cursor, timeout_s=0.2))
        assert rest == first[1:]
        other = outcomes(await grpc_knock.awaited(run_id="another", timeout_s=0.2))
        assert other == []


async def test_the_model_is_told_alike(doors: Doors, small_pipeline: Pipeline) -> None:
    async with knocking(doors) as knocks:
        told = [await knock.model() for knock in knocks]
    assert told[0] == told[1]
    assert isinstance(told[0], dict)
    assert told[0]["discriminator_version"] == small_pipeline.model.discriminator_version


# --- one request, refused as a whole ------------------------------------------------------------

BAD_REQUESTS: dict[str, tuple[Callable[[], list[Submission]], type[RewardServerError]]] = {
    "no clip": (list, BadRequest),
    "too many clips": (lambda: [clip(b"x")] * 4, BadRequest),
    "too many bytes together": (lambda: [clip(bytes(250_000))] * 2, errors.RequestTooLarge),
    "a group id of 300 characters": (lambda: [bad_context(group_id="g" * 300)], BadRequest),
    "a deadline in the past": (lambda: [bad_context(deadline_s=-1.0)], BadRequest),
    "a deadline that is no number": (lambda: [bad_context(deadline_s=float("nan"))], BadRequest),
    "one key for two different clips": (
        lambda: [tensor(idempotency_key="k"), mp4(idempotency_key="k")],
        errors.IdempotencyConflict,
    ),
}


def bad_context(**fields: Any) -> Submission:
    """A context that our types refuse, but that another program might send."""
    context = Context()
    for name, value in fields.items():
        object.__setattr__(context, name, value)
    return Submission(payload=b"x", media=Media.CONTAINER, context=context)


@pytest.mark.parametrize("name", BAD_REQUESTS)
@pytest.mark.parametrize("way", ["score", "submit"])
async def test_a_bad_request_is_refused_and_queues_nothing(idle_doors: Doors, name: str, way: str) -> None:
    make, error = BAD_REQUESTS[name]
    submissions = make()
    async with knocking(idle_doors) as knocks:
        for knock in knocks:
            assert await getattr(knock, way)(submissions) == refusal(knock, error)
    assert "motion_reward_queue_jobs 0.0" in await idle_doors.service.metrics_text()


async def test_a_key_gives_the_same_job_and_conflicts_for_other_bytes(idle_doors: Doors) -> None:
    async with knocking(idle_doors) as knocks:
        ids = [await knock.submit([tensor(idempotency_key="k")]) for knock in knocks]
        assert ids[0] == ids[1]
        for knock in knocks:
            refused = await knock.submit([mp4(idempotency_key="k")])
            assert refused == refusal(knock, errors.IdempotencyConflict)


async def test_a_full_queue_is_reported_with_a_retry_time(idle_doors: Doors) -> None:
    async with knocking(idle_doors) as knocks:
        assert isinstance(await knocks[0].submit([tensor(), tensor()]), list)
        for knock in knocks:
            refused = await knock.score([tensor()])
            assert isinstance(refused, Refused)
            assert replace(refused, retry_after_s=None) == refusal(knock, errors.Overloaded)
            assert refused.retry_after_s is not None
            assert refused.retry_after_s > 0


async def test_a_bound_address_is_taken_before_it_is_served(idle_doors: Doors) -> None:
    """Workers load their weights between `bind` and `start`. No other process may take the address meanwhile."""
    service, settings = idle_doors.service, idle_doors.settings
    access = Access(settings)
    first = HttpDoor(service, settings, access)
    address = first.bind()
    with pytest.raises(OSError, match=f"cannot listen on {address}"):
        HttpDoor(service, settings.model_copy(update={"http": address}), access).bind()
    await first.stop(0)


async def test_a_door_that_cannot_serve_says_so(idle_doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError("no more files")

    door = HttpDoor(idle_doors.service, idle_doors.settings, Access(idle_doors.settings))
    door.bind()
    monkeypatch.setattr(asyncio.get_running_loop(), "create_server", fail)
    with pytest.raises(OSError, match="no more files"):
        await asyncio.wait_for(door.start(), 10)
    await door.stop(0)


async def test_an_unknown_job_is_unknown_at_both_doors(idle_doors: Doors) -> None:
    async with knocking(idle_doors) as knocks:
        for knock in knocks:
            for wait_s in (0.01, 5):
                assert await knock.job("no-such-job", wait_s) == refusal(knock, errors.UnknownJob)


async def test_a_pending_job_has_a_state_and_no_result(idle_doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=idle_doors.http_url) as client, knocking(idle_doors) as (http, grpc_knock):
        job_ids = await http.submit([tensor()])
        assert isinstance(job_ids, list)
        answer = await client.get(f"/v1/jobs/{job_ids[0]}")
        assert (answer.status_code, answer.json()) == (200, {"id": job_ids[0], "state": "queued", "result": None})
        assert await grpc_knock.job(job_ids[0], 0.05) == []


def test_every_error_has_a_door() -> None:
    """Each error class has its own row or that of a base class, and the row's statuses exist."""
    leaves = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RewardServerError)]
    for kind in leaves:
        error = kind("x", retry_after_s=1.0) if kind is errors.Overloaded else kind("x")
        assert door(error).http in range(400, 600)
        assert door(error).grpc in grpc.StatusCode.__members__
    assert set(DOORS) <= set(leaves)


REFRESHES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "no run": ({"run_id": "", "steps": 1}, 400, "INVALID_ARGUMENT", "bad_request"),
    "no steps": ({"run_id": "r", "steps": 0}, 400, "INVALID_ARGUMENT", "bad_request"),
    "an average that never moves": ({"run_id": "r", "steps": 1, "ema": 1.0}, 400, "INVALID_ARGUMENT", "bad_request"),
    "a run nobody knows": ({"run_id": "of next year", "steps": 1}, 404, "NOT_FOUND", "unknown_run"),
}


@pytest.mark.parametrize("name", REFRESHES)
async def test_a_refresh_is_refused_alike(doors: Doors, name: str) -> None:
    fields, http_status, grpc_status, code = REFRESHES[name]
    async with knocking(doors) as (http, knock):
        answer = await http.client.post("/v1/refresh", json=fields)
        assert (answer.status_code, answer.json()["error"]["code"]) == (http_status, code)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await knock.stub.Refresh(pb.RefreshRequest(**fields))
    assert refused.value.code().name == grpc_status
    assert dict(refused.value.trailing_metadata() or ())["error-code"] == code


# --- what only one door has ---------------------------------------------------------------------

STREAMS: dict[str, list[pb.SubmitRequest]] = {
    "a chunk before its header": [pb.SubmitRequest(chunk=b"x")],
    "an empty part": [pb.SubmitRequest()],
    "fewer bytes than declared": [*parts([clip(b"12345")])[:1], pb.SubmitRequest(chunk=b"1234")],
    "more bytes than declared": [*parts([clip(b"12345")]), pb.SubmitRequest(chunk=b"6")],
    "fewer clips than declared": parts([clip(b"12345")] * 2)[:2],
    "more clips than declared": [*parts([clip(b"12345")]), *parts([clip(b"1")])],
    "no media": [pb.SubmitRequest(header=pb.SubmitRequest.Header(size_bytes=1)), pb.SubmitRequest(chunk=b"1")],
    "a header that declares too much": [
        pb.SubmitRequest(header=pb.SubmitRequest.Header(media=pb.CONTAINER, size_bytes=2**40))
    ],
}


@pytest.mark.parametrize("name", STREAMS)
async def test_a_broken_stream_is_an_invalid_argument(idle_doors: Doors, name: str) -> None:
    async with knocking(idle_doors) as (_, knock):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await knock.stub.Submit(STREAMS[name])
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "motion_reward_queue_jobs 0.0" in await idle_doors.service.metrics_text()


async def test_a_submit_given_up_between_two_clips_admits_none(idle_doors: Doors) -> None:
    """To the server such a stream looks complete. The number of clips in its first header shows that it is not."""
    async with knocking(idle_doors) as (_, knock):
        call = knock.stub.Submit()
        for part in parts([tensor(), tensor()])[:2]:
            await call.write(part)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await asyncio.sleep(0.3)  # there is no event for the moment when the server has seen it
    assert "motion_reward_jobs_admitted_total 0.0" in await idle_doors.service.metrics_text()


@pytest.mark.parametrize(
    "request_",
    [pb.AwaitRequest(), pb.AwaitRequest(job_ids=["a"], run_id="b"), pb.AwaitRequest(run_id="r", after="no cursor")],
)
async def test_a_bad_await_is_an_invalid_argument(idle_doors: Doors, request_: pb.AwaitRequest) -> None:
    async with knocking(idle_doors) as (_, knock):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await knock.stub.Await(request_).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_score_waits_no_longer_than_the_caller_does(idle_doors: Doors) -> None:
    """The caller's own deadline ends the wait with a timeout outcome, not with a failed call."""
    async with knocking(idle_doors) as (_, knock):
        message = pb.ScoreRequest(clips=[pb.Clip(media=pb.TENSOR, payload=tensor().payload)])
        answer = await knock.stub.Score(message, timeout=1.5)
    assert [outcome.kind for outcome in answer.outcomes] == [pb.TIMEOUT]


HTTP_BODIES: dict[str, tuple[dict[str, Any], int, str]] = {
    "text where a file belongs": ({"files": [("video", (None, "clip"))]}, 400, "curl -F video=@FILE"),
    "a file in an unknown field": ({"files": [("movie", ("a.mp4", b"x"))]}, 400, "movie"),
    "an unknown context field": ({"files": [("video", ("a", b"x"))], "data": {"groupid": "a"}}, 400, "groupid"),
    "a context that is not JSON": ({"files": [("video", ("a", b"x"))], "data": {"context": "{"}}, 400, "JSON"),
    "two contexts for one clip": ({"files": [("video", ("a", b"x"))], "data": {"context": "[{},{}]"}}, 400, "1 clip"),
    "a context of the wrong type": ({"files": [("video", ("a", b"x"))], "data": {"context": "[3]"}}, 400, "object"),
    "an unknown query": ({"files": [("video", ("a", b"x"))], "params": {"seed": "3"}}, 400, "seed"),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
    "garbage": ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}}, 400, "malformed"),
    "a lost end": (
        {
            "content": b'--a\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\nxx\r\n'
            b'--a\r\nContent-Disposition: form-data; name="video"; filename="w"\r\n\r\nyy',
            "headers": {"content-type": "multipart/form-data; boundary=a"},
        },
        400,
        "closing boundary",
    ),
    "no content type": ({"content": b"x"}, 415, "multipart/form-data"),
    "JSON": ({"json": {"video": "x"}}, 415, "application/json"),
    "a body over the limit": ({"content": bytes(500_000), "headers": {"content-type": "video/mp4"}}, 413, "400000"),
}


@pytest.mark.parametrize("name", HTTP_BODIES)
async def test_a_malformed_body_is_refused_with_a_hint(idle_doors: Doors, name: str) -> None:
    body, status, hint = HTTP_BODIES[name]
    async with httpx.AsyncClient(base_url=idle_doors.http_url) as client:
        answer = await client.post("/v1/jobs", **body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert hint in answer.json()["error"]["message"]


async def test_an_undeclared_length_is_stopped_as_it_is_passed(idle_doors: Doors) -> None:
    """Chunked transfer declares no size, so the door must count and stop reading long before the end."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100_000
            yield bytes(100_000)
            await asyncio.sleep(0)

    async with httpx.AsyncClient(base_url=idle_doors.http_url) as client:
        try:
            answer = await client.post("/v1/jobs", content=endless(), headers={"content-type": "video/mp4"})
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the door closed the connection during the upload, which is fine too
    assert sent < 50_000_000


async def test_a_bare_body_with_its_context_in_the_query_is_a_clip(doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=doors.http_url, timeout=60) as client:
        for content, kind in (
            (media.tensor(FRAMES, 12.0), "application/vnd.safetensors"),
            (mp4().payload, "video/mp4; x=y"),
        ):
            query = {"group_id": "g", "query_seed": 5, "origin": "real", "explain": "true"}
            answer = await client.post("/v1/score", content=content, headers={"content-type": kind}, params=query)
            [result] = answer.json()["results"]
            assert result["outcome"] == "ok", result["error"]
            assert (result["context"]["group_id"], result["context"]["origin"]) == ("g", "real")
            assert result["provenance"]["query_seed"] == 5
            assert len(result["reward"]["explanation"]["windows"][0]["tracks"]) == 16


async def test_contexts_come_as_fields_as_one_object_or_one_per_clip(idle_doors: Doors) -> None:
    """The more specific value is used: a context per clip, then single fields, then the query."""
    files = [("video", ("a", b"")), ("tensor", ("b", b""))]
    cases: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
        ({}, {"group_id": "f"}, ["f", "f"]),
        ({"group_id": "q"}, {}, ["q", "q"]),
        ({"group_id": "q"}, {"group_id": "f"}, ["f", "f"]),
        ({"group_id": "q"}, {"context": '{"group_id": "o"}'}, ["o", "o"]),
        ({"group_id": "q"}, {"context": '[{"group_id": "1"}, {"query_seed": 3}]'}, ["1", "q"]),
    ]
    async with httpx.AsyncClient(base_url=idle_doors.http_url) as client:
        for params, data, groups in cases:
            answer = await client.post("/v1/score", files=files, params=params, data=data)
            assert [result["context"]["group_id"] for result in answer.json()["results"]] == groups


async def test_a_request_id_is_kept_if_it_is_plain_and_made_if_not(idle_doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=idle_doors.http_url) as client, knocking(idle_doors) as (_, knock):
        for given, kept in (("train-7/step:3", True), ("a" * 129, False), ('"; drop', False), (None, False)):
            headers = {"x-request-id": given} if given else {}
            echoed = [(await client.get(path, headers=headers)).headers["x-request-id"] for path in ("/nope", "/ready")]
            call = knock.stub.GetModel(pb.GetModelRequest(), metadata=tuple(headers.items()))
            echoed.append(dict(await call.initial_metadata())["x-request-id"])
            await asyncio.gather(call, return_exceptions=True)
            for identity in echoed:
                assert (identity == given) == kept
                assert request_id(identity) == identity
            assert kept or len(set(echoed)) == len(echoed)


async def test_an_unknown_path_or_method_is_an_error_of_the_same_form(idle_doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=idle_doors.http_url) as client:
        missing, wrong = await client.get("/v1/nothing"), await client.put("/v1/score")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_reflection_lists_the_service_and_health(idle_doors: Doors) -> None:
    async with knocking(idle_doors) as (_, knock):
        stub = reflection_pb2_grpc.ServerReflectionStub(knock.channel)
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        [answer] = [message async for message in stub.ServerReflectionInfo(iter([listing]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


# --- health -------------------------------------------------------------------------------------

READY_PATHS = ("/readyz", "/ready", "/v2/health/ready")


async def test_health_follows_the_worker_and_redis(make_settings: MakeSettings, small_pipeline: Pipeline) -> None:
    """Not ready without a worker, ready with one, not ready once it has ended. Alive all the time."""
    settings = make_settings()
    async with open_doors(settings) as doors, knocking(doors) as (http, knock):
        watch = health_pb2_grpc.HealthStub(knock.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert await next_health(watch) == "NOT_SERVING"
        assert await ready(http.client) == {503}
        assert await http.model() == refusal(http, errors.NotReady)
        assert await knock.model() == refusal(knock, errors.NotReady)
        async with working(doors, small_pipeline):
            assert await next_health(watch) == "SERVING"
            assert await ready(http.client) == {200}
        assert await next_health(watch) == "NOT_SERVING"
        assert await ready(http.client) == {503}
        reasons = (await http.client.get("/readyz")).json()["reasons"]
        assert "motion-reward worker" in reasons[0]
        for path in ("/healthz", "/v2/health/live"):
            assert (await http.client.get(path)).status_code == 200
        watch.cancel()


async def ready(client: httpx.AsyncClient) -> set[int]:
    return {(await client.get(path)).status_code for path in READY_PATHS}


async def next_health(watch: Any) -> str:
    status = health_pb2.HealthCheckResponse.ServingStatus
    return str(status.Name((await asyncio.wait_for(watch.read(), 30)).status))


async def test_metrics_count_what_came_through(doors: Doors) -> None:
    async with knocking(doors) as (http, knock):
        for one in (http, knock):
            await one.score([tensor(), clip(b"")])
        text = (await http.client.get("/metrics")).text
    assert 'motion_reward_outcomes_total{kind="ok"} 2.0' in text
    assert 'motion_reward_outcomes_total{kind="invalid"} 2.0' in text


# --- helpers ------------------------------------------------------------------------------------


def outcomes(answer: Answer) -> list[Outcome]:
    assert isinstance(answer, list), answer
    return answer


def only(answer: Answer) -> Outcome:
    [outcome] = outcomes(answer)
    return outcome


def refusal(knock: Knock, kind: type[RewardServerError]) -> Refused:
    """The status of an error class at a door, from the error table."""
    error = kind("x", retry_after_s=1.0) if kind is errors.Overloaded else kind("x")  # type: ignore[call-arg]
    status = door(error).grpc if isinstance(knock, GrpcKnock) else door(error).http
    return Refused(status=status, code=error.code, retry_after_s=1.0 if kind is errors.NotReady else None)
