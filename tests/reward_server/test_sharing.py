"""A slow clip holds up nobody: jobs that a worker holds behind it go back to the queue if another worker is idle."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from protos.types import OutcomeKind, Submission
from reward_server.queue.door_queue import JobState
from reward_server.settings import Settings
from reward_server.worker import worker as worker_module
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import Pixels, PixelScorer, moving
from tests.reward_server.test_worker import number_running, outcomes_of, rewards, until, until_async, working


@dataclass
class SlowDecoder(PixelScorer):
    """Decodes clips of the policy "slow" only once `decoded` is set. `began` keeps the steps of all clips."""

    decoded: threading.Event = field(default_factory=threading.Event)
    began: list[int] = field(default_factory=list)

    def prepare(self, submission: Submission, discriminators: None = None) -> Pixels:
        pixels = super().prepare(submission)
        self.began.append(int(pixels.clip.frames[1, 0, 0, 0]))
        if submission.context.policy_version == "slow":
            assert self.decoded.wait(60)
        return pixels


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "SLOW_S", 0.05)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(batch_jobs=8, threads=1, lease_s=20)  # one decoder


async def test_jobs_behind_a_slow_clip_are_scored_by_an_idle_worker(open_queue: OpenQueue, settings: Settings) -> None:
    queue, busy, idle = (await open_queue()).door, SlowDecoder(), SlowDecoder()
    async with working(settings, busy):
        slow = await queue.admit([moving(1, policy_version="slow")])
        await until(lambda: busy.began == [1])
        others = await queue.admit([moving(step) for step in (2, 3, 4, 5)])
        await until_async(number_running(queue, others, 4))
        async with working(settings, idle):
            outcomes = await outcomes_of(queue, others)
            assert rewards(outcomes) == [2, 3, 4, 5]
            assert await queue.state(slow[0]) == JobState.RUNNING
            busy.decoded.set()
            assert rewards(await outcomes_of(queue, slow)) == [1]
    assert busy.began == [1] and idle.began == [2, 3, 4, 5]  # none twice, and in their order
    assert (await queue.depth()).jobs == 0


async def test_a_job_given_away_has_burnt_no_attempt(
    open_queue: OpenQueue, make_settings: MakeSettings, settings: Settings
) -> None:
    queue, busy, idle = (await open_queue()).door, SlowDecoder(), SlowDecoder()
    never_dies = make_settings(batch_jobs=8, threads=1, max_attempts=1, lease_s=20)
    async with working(never_dies, busy):
        slow = await queue.admit([moving(1, policy_version="slow")])
        await until(lambda: busy.began == [1])
        others = await queue.admit([moving(2), moving(3)])
        await until_async(number_running(queue, others, 2))
        async with working(never_dies, idle):
            assert [one.kind for one in await outcomes_of(queue, others)] == [OutcomeKind.OK] * 2
            busy.decoded.set()
            await outcomes_of(queue, slow)
    assert settings.redis_url
    async with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        assert b"redelivered" not in await redis.hgetall(f"motion-reward:{{{settings.profile}}}:counts")


async def test_without_an_idle_worker_the_jobs_stay_and_no_more_are_claimed(
    open_queue: OpenQueue, settings: Settings
) -> None:
    queue, busy = (await open_queue()).door, SlowDecoder()
    async with working(settings, busy):
        slow = await queue.admit([moving(1, policy_version="slow")])
        await until(lambda: busy.began == [1])
        held = await queue.admit([moving(2), moving(3)])
        await until_async(number_running(queue, held, 2))
        await asyncio.sleep(2.5)  # longer than its claim waits, so that it now knows that it is stuck
        later = await queue.admit([moving(4)])
        await asyncio.sleep(0.2)
        assert [await queue.state(job) for job in [*held, *later]] == [JobState.RUNNING] * 2 + [JobState.QUEUED]
        busy.decoded.set()
        assert rewards(await outcomes_of(queue, slow + held + later)) == [1, 2, 3, 4]
    assert busy.began == [1, 2, 3, 4]


async def test_a_worker_is_idle_if_it_is_live_holds_nothing_and_nothing_waits(
    open_queue: OpenQueue, settings: Settings
) -> None:
    queue = await open_queue(settings)
    model = SlowDecoder().model
    for name in ("asks", "idle", "holds"):
        await queue.worker.announce(name, model)
    await queue.door.admit([moving(1), moving(2)])
    await queue.worker.claim("gone", count=1, wait_ms=1)  # it never sent a heartbeat
    [held] = await queue.worker.claim("holds", count=1, wait_ms=1)
    for name in ("asks", "idle"):
        assert not await queue.worker.claim(name, count=1, wait_ms=1)
    assert await queue.worker.idle_workers("asks") == 1
    assert await queue.worker.idle_workers("holds") == 2
    await queue.door.admit([moving(3)])
    assert await queue.worker.idle_workers("asks") == 0  # they will claim that one first
    assert await queue.worker.claim("idle", count=1, wait_ms=1)
    assert await queue.worker.hand_back("holds", [held]) == 1
    assert await queue.worker.idle_workers("asks") == 0
    await queue.worker.claim("idle", count=1, wait_ms=1)
    assert await queue.worker.idle_workers("asks") == 1


async def test_nobody_is_idle_in_an_empty_redis(open_queue: OpenQueue, settings: Settings) -> None:
    assert await (await open_queue()).worker.idle_workers("asks") == 0
