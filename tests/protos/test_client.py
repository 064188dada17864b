"""Tests the client against the real server: both transports, blocking and async, give the same outcomes, and a busy,
unreachable or silent server is handled."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import stamina
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks

from protos import codec
from protos.client import (
    AsyncRewardClient,
    RequestRefused,
    RewardClient,
    RewardClientError,
    ServerBusy,
    ServerFailed,
    ServerSilent,
    submission,
)
from protos.client.client import TIMEOUT_S
from protos.client.grpc_transport import SCORE_BYTES
from protos.client.http_transport import _clips
from protos.error_codes import ErrorCode
from protos.types import Context, ContractError, Media, Model, Outcome, OutcomeKind, RefreshRequest, Submission
from reward_server.pipeline import Pipeline
from tests import media
from tests.conftest import MakeSettings
from tests.running import Doors, assert_alike, open_doors, working

FRAMES = media.texture(16, 32, 48)
TENSOR = media.tensor(FRAMES, 12.0)
TCHW = np.ascontiguousarray(FRAMES.transpose(0, 3, 1, 2))


@pytest.fixture
async def doors(make_settings: MakeSettings, small_pipeline: Pipeline) -> AsyncIterator[Doors]:
    settings = make_settings(lease_s=5.0)
    async with open_doors(settings) as doors, working(doors, small_pipeline):
        yield doors


@pytest.fixture
def retries() -> Iterator[list[RetryDetails]]:
    """Every retry that the clients of the test scheduled."""
    seen: list[RetryDetails] = []
    hooks = get_on_retry_hooks()
    set_on_retry_hooks([seen.append])
    yield seen
    set_on_retry_hooks(hooks)


def clip(payload: bytes = TENSOR, **context: object) -> Submission:
    return submission(payload, media=Media.TENSOR, context=Context(**context))  # type: ignore[arg-type]


def big_clip(seed: int) -> Submission:
    """A little more than half of what fits into one Score message."""
    frames = np.random.default_rng(seed).integers(0, 256, (10, 3, 240, 240), dtype=np.uint8)
    made = submission(frames, fps=12.0)
    assert SCORE_BYTES / 2 < len(made.payload) < SCORE_BYTES
    return made


async def score_blocking(url: str, clips: Sequence[Submission]) -> list[Outcome]:
    def score() -> list[Outcome]:
        with RewardClient(url) as client:
            return client.score(clips)

    return await asyncio.to_thread(score)


async def score_async(url: str, clips: Sequence[Submission]) -> list[Outcome]:
    async with AsyncRewardClient(url) as client:
        return await client.score(clips)


# --- making submissions -------------------------------------------------------------------------


def test_a_submission_from_a_file_takes_its_media_from_the_name(tmp_path: Path) -> None:
    for name, kind in (("a.mp4", Media.CONTAINER), ("b.safetensors", Media.TENSOR), ("c", Media.CONTAINER)):
        (tmp_path / name).write_bytes(name.encode())
        for source in (tmp_path / name, str(tmp_path / name)):
            assert submission(source) == Submission(payload=name.encode(), media=kind)


def test_a_submission_from_frames_is_lossless() -> None:
    made = submission(TCHW, fps=12.0, context=Context(group_id="g"))
    assert (made.media, made.context.group_id) == (Media.TENSOR, "g")
    assert np.array_equal(codec.tensor_to_clip(made.payload).frames, TCHW)
    floats = submission((TCHW / 255).astype(np.float64), fps=12.0)
    assert np.array_equal(codec.tensor_to_clip(floats.payload).frames, TCHW)


def test_frames_that_break_the_contract_are_not_sent() -> None:
    for make in (lambda: submission(TCHW), lambda: submission(FRAMES, fps=12.0), lambda: submission(TCHW, fps=0.0)):
        with pytest.raises(ContractError):
            make()
    with pytest.raises(FileNotFoundError):
        submission("no/such/file.mp4")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "grpc://", ""])
def test_a_url_of_no_server_is_refused(url: str) -> None:
    for kind in (RewardClient, AsyncRewardClient):
        with pytest.raises(ValueError, match="grpc://HOST:PORT"):
            kind(url)


# --- the same outcomes everywhere ---------------------------------------------------------------


async def test_both_transports_in_both_colours_give_the_same_outcomes(doors: Doors) -> None:
    clips = [clip(group_id="a", query_seed=3), submission(b"no video"), submission(TCHW, fps=12.0), submission(b"")]
    answers = [await score(url, clips) for url in doors.urls for score in (score_blocking, score_async)]
    for answer in answers:
        assert [outcome.kind.value for outcome in answer] == ["ok", "invalid", "ok", "invalid"]
        assert [outcome.context for outcome in answer] == [clip.context for clip in clips]
        assert_alike(answer, answers[0])


async def test_both_transports_return_an_explanation_to_who_asks(doors: Doors) -> None:
    answers = [await score_blocking(url, [clip(explain=True), clip()]) for url in doors.urls]
    for asked, plain in answers:
        assert asked.context.explain
        assert asked.reward and asked.reward.explanation
        assert len(asked.reward.explanation.windows) == len(asked.reward.windows)
        assert plain.reward and plain.reward.explanation is None
    assert_alike(*answers)


def test_only_what_a_context_says_is_sent() -> None:
    """An older server refuses fields that it does not know, so a client may not send them unless they are set."""
    contexts = _clips([clip(), clip(explain=True, query_seed=0)])["data"]["context"]
    assert json.loads(contexts) == [{}, {"explain": True, "query_seed": 0}]


async def test_large_clips_are_sent_in_chunks_and_answered_in_order(doors: Doors) -> None:
    clips = [big_clip(0), clip(group_id="small"), big_clip(1)]
    answers = [await score(url, clips) for url in doors.urls for score in (score_blocking, score_async)]
    for answer in answers:
        assert [outcome.kind for outcome in answer] == [OutcomeKind.OK] * 3
        assert_alike(answer, answers[0])


async def test_submitted_jobs_are_awaited(doors: Doors) -> None:
    for url in doors.urls:
        async with AsyncRewardClient(url) as client:
            job_ids = await client.submit([clip(), submission(b"")])
            awaited = {outcome.job_id: outcome.kind async for outcome in client.await_outcomes(job_ids)}
            assert awaited == dict(zip(job_ids, (OutcomeKind.OK, OutcomeKind.INVALID), strict=True))
            assert [outcome async for outcome in client.await_outcomes([])] == []
        blocking = RewardClient(url)
        first = await asyncio.to_thread(lambda: next(iter(blocking.await_outcomes(job_ids))))  # noqa: B023
        assert first.job_id in job_ids
        blocking.close()


async def test_no_clips_are_no_outcomes(doors: Doors) -> None:
    for url in doors.urls:
        assert await score_blocking(url, []) == await score_async(url, []) == []
        async with AsyncRewardClient(url) as client:
            assert await client.submit([]) == []


async def test_the_model_is_the_pipelines_own(doors: Doors, small_pipeline: Pipeline) -> None:
    settings, own = doors.settings, small_pipeline.model
    waits = replace(
        own.limits,
        score_timeout_s=settings.score_timeout_s,
        refresh_timeout_s=settings.refresh_timeout_s,
        refresh_step_s=settings.refresh_step_s,
    )
    for url in doors.urls:
        async with AsyncRewardClient(url) as client:
            assert await client.model() == replace(own, limits=waits)
        assert await asyncio.to_thread(model_blocking, url) == replace(own, limits=waits)


def model_blocking(url: str) -> Model:
    with RewardClient(url) as client:
        return client.model()


async def test_threads_may_share_a_blocking_client(doors: Doors) -> None:
    def score_from_threads(url: str) -> list[str]:
        with RewardClient(url) as client, ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda i: client.score([clip(group_id=str(i))])[0], range(8))
            return [outcome.context.group_id for outcome in answers]

    for url in doors.urls:
        assert await asyncio.to_thread(score_from_threads, url) == [str(i) for i in range(8)]


# --- a busy, lost or silent server --------------------------------------------------------------


async def test_an_overload_is_retried_until_there_is_room(
    make_settings: MakeSettings, small_pipeline: Pipeline, retries: list[RetryDetails]
) -> None:
    settings = make_settings(queue_max_jobs=1, lease_s=5.0)
    retried = asyncio.Event()
    set_on_retry_hooks([retries.append, lambda _: retried.set()])
    async with open_doors(settings) as doors:
        for url in doors.urls:
            async with AsyncRewardClient(url, attempts=20) as client:
                await client.submit([clip(run_id="fills the queue")])
                retried.clear()
                scoring = asyncio.create_task(client.score([clip()]))
                await retried.wait()
                async with working(doors, small_pipeline):
                    [outcome] = await scoring
                assert outcome.kind is OutcomeKind.OK
            assert all(str(retry.caused_by).startswith("overloaded") for retry in retries)


async def test_retries_are_bounded_and_the_error_says_why(
    make_settings: MakeSettings, retries: list[RetryDetails]
) -> None:
    async with open_doors(make_settings(queue_max_jobs=1)) as doors:
        async with AsyncRewardClient(doors.http_url) as client:
            await client.submit([clip()])
        for url in doors.urls:
            retries.clear()
            with stamina.set_testing(True, attempts=3):  # no pauses
                async with AsyncRewardClient(url) as client:
                    with pytest.raises(ServerBusy, match="overloaded") as busy:
                        await client.submit([clip()])
            assert busy.value.retry_after_s is not None
            assert busy.value.retry_after_s > 0


async def test_a_refusal_is_not_retried(doors: Doors, retries: list[RetryDetails]) -> None:
    refused: list[Callable[[AsyncRewardClient], object]] = [
        lambda client: client.score([clip()] * 65),
        lambda client: client.submit([clip(idempotency_key="k"), clip(media.tensor(FRAMES, 8.0), idempotency_key="k")]),
        lambda client: anext(client.await_outcomes(["no-such-job"])),
    ]
    for url in doors.urls:
        async with AsyncRewardClient(url) as client:
            codes = []
            for request in refused:
                with pytest.raises(RequestRefused) as error:
                    await request(client)  # type: ignore[misc]
                codes.append(error.value.code)
            assert codes == ["bad_request", "idempotency_conflict", "unknown_job"]
    assert retries == []


async def test_an_unreachable_server_is_an_error_after_the_attempts(retries: list[RetryDetails]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        for scheme in ("http", "grpc"):
            retries.clear()
            async with AsyncRewardClient(f"{scheme}://127.0.0.1:{taken.getsockname()[1]}", attempts=2) as client:
                with pytest.raises(ServerBusy) as error:
                    await client.score([clip()])
            assert error.value.code == "unreachable"
            assert len(retries) == 1


async def test_a_retry_finds_the_jobs_whose_answer_was_lost(
    doors: Doors, monkeypatch: pytest.MonkeyPatch, retries: list[RetryDetails]
) -> None:
    """Also without an idempotency key from the caller, a broken connection must not score a clip twice."""
    for url in doors.urls:
        async with AsyncRewardClient(url) as client:
            for name in ("submit", "score"):
                call = getattr(client._transport, name)

                async def losing_the_first(*given: object, call: Any = call) -> Any:
                    answer = await call(*given)
                    if not retries:
                        raise ServerBusy("unreachable", "the connection broke")
                    return answer

                retries.clear()
                monkeypatch.setattr(client._transport, name, losing_the_first)
                before = (await doors.service._queue.counts()).get("admitted", 0)
                assert len(await getattr(client, name)([clip(), clip()])) == 2
                assert (await doors.service._queue.counts())["admitted"] == before + 2 and len(retries) == 1


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"results": [3]}', '{"results": [{"outcome": "ok"}]}', '{"results": []}']
)
async def test_an_answer_of_another_form_is_an_error_of_the_client(body: str) -> None:
    """Such an answer may come from a proxy, or from a server of another version."""
    async with AsyncRewardClient("http://server") as client:
        answering = httpx.MockTransport(lambda _: httpx.Response(200, text=body))
        client._transport._client = httpx.AsyncClient(transport=answering, base_url="http://server")
        with pytest.raises(ServerFailed, match="bad_answer"):
            await client.score([clip()])


async def test_a_silent_server_is_an_error_once_the_time_is_up(retries: list[RetryDetails]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for scheme in ("http", "grpc"):
            url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
            async with AsyncRewardClient(url, timeout_s=0.3) as client:
                with pytest.raises(ServerSilent):
                    await client.model()
    assert retries == []


async def test_a_wait_of_zero_seconds_ends_at_once(
    make_settings: MakeSettings,
) -> None:
    async with open_doors(make_settings()) as doors, asyncio.timeout(30):  # no worker is there to score it
        for url in (doors.http_url, doors.grpc_url):
            async with AsyncRewardClient(url, timeout_s=600.0) as client:
                waiting = await client.submit([clip()])
                assert [outcome async for outcome in client.await_outcomes(waiting, 0.0)] == []


async def test_a_clip_not_scored_in_time_is_a_timeout(make_settings: MakeSettings) -> None:
    """Over gRPC the large request is submit and await, where the client's own timeout ends the wait."""
    async with open_doors(make_settings(score_timeout_s=0.5)) as doors:
        for url, clips in ((doors.http_url, [clip()]), (doors.grpc_url, [clip()]), (doors.grpc_url, [big_clip(0)] * 2)):
            async with AsyncRewardClient(url, timeout_s=1.0) as client:
                outcomes = await client.score(clips)
            assert [outcome.kind for outcome in outcomes] == [OutcomeKind.TIMEOUT] * len(clips)
            assert {outcome.error.code for outcome in outcomes if outcome.error} == {"deadline_passed"}


class Waits:
    """A transport that only records its timeouts. It asks for the model over the real transport."""

    one_request_bytes = None

    def __init__(self, real: Any, seen: list[float]) -> None:
        self._real, self._seen = real, seen
        self.model, self.close = real.model, real.close

    def score(self, _: object, timeout_s: float) -> Any:
        self._seen.append(round(timeout_s, 1))
        raise ServerFailed(ErrorCode.BAD_ANSWER, "noted")

    submit = refresh = score


async def ask_for_everything(url: str, **options: Any) -> list[float]:
    """The timeouts that the blocking and the async client use for score, submit and refresh."""
    seen: list[float] = []
    blocking, client = RewardClient(url, **options), AsyncRewardClient(url, **options)
    blocking._transport, client._transport = Waits(blocking._transport, seen), Waits(client._transport, seen)  # type: ignore[assignment]
    for call, given in (("score", [clip()]), ("submit", [clip()]), ("refresh", RefreshRequest(run_id="r", steps=1))):
        with pytest.raises(ServerFailed, match="noted"):
            await asyncio.to_thread(getattr(blocking, call), given)
        with pytest.raises(ServerFailed, match="noted"):
            await getattr(client, call)(given)
    blocking.close()
    await client.close()
    return seen


async def test_a_client_waits_longer_than_the_server_by_default(
    make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    settings = make_settings(score_timeout_s=500.0, refresh_timeout_s=7000.0, refresh_step_s=3.0, lease_s=5.0)
    async with open_doors(settings) as doors, working(doors, small_pipeline):
        for url in doors.urls:
            assert await ask_for_everything(url) == [530.0] * 4 + [7033.0] * 2
            assert await ask_for_everything(url, timeout_s=9.0) == [9.0] * 4 + [7033.0] * 2
            async with AsyncRewardClient(url) as client:
                client._transport = Waits(client._transport, seen := [])  # type: ignore[assignment]
                with pytest.raises(ServerFailed, match="noted"):
                    await client.refresh(RefreshRequest(run_id="r", steps=1), 3.0)
            assert seen == [3.0]


async def test_without_the_servers_timeout_the_default_is_used(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings()) as doors:  # no worker lives: there is no model to ask for
        assert doors.settings.score_timeout_s < TIMEOUT_S
        for url in doors.urls:
            async with AsyncRewardClient(url) as client:
                client._transport = Waits(client._transport, seen := [])  # type: ignore[assignment]
                with pytest.raises(ServerFailed, match="noted"):
                    await client.score([clip()])
                assert seen == [TIMEOUT_S]


async def test_awaiting_survives_a_restart_of_the_doors(make_settings: MakeSettings, small_pipeline: Pipeline) -> None:
    """The job is in Redis, so a lost connection only delays the outcome."""
    settings = make_settings(lease_s=5.0)
    async with open_doors(settings) as first:
        addresses = {"http": first.http_url.partition("//")[2], "grpc": first.grpc_url.partition("//")[2]}
        clients = [AsyncRewardClient(url, attempts=20) for url in first.urls]
        job_ids = await clients[0].submit([clip()])
        waiting = [asyncio.create_task(collect(client, job_ids)) for client in clients]
        await asyncio.sleep(0.3)
    async with open_doors(settings, **addresses) as second, working(second, small_pipeline):
        for outcomes in await asyncio.gather(*waiting):
            assert [(outcome.job_id, outcome.kind) for outcome in outcomes] == [(job_ids[0], OutcomeKind.OK)]
    for client in clients:
        await client.close()


async def collect(client: AsyncRewardClient, job_ids: list[str]) -> list[Outcome]:
    return [outcome async for outcome in client.await_outcomes(job_ids)]


def test_every_error_of_the_client_is_one_of_its_tree() -> None:
    for kind in (RequestRefused, ServerBusy, ServerSilent):
        error = kind("code", "text")
        assert isinstance(error, RewardClientError)
        assert (error.code, str(error)) == ("code", "code: text")
