"""Tests that a discriminator version lives as long as a job or a group is bound to it, and no longer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from protos.types import OutcomeKind
from reward_server.pipeline import Pipeline
from reward_server.queue.keys import Keys
from reward_server.queue.run_store import Version
from reward_server.queue.worker_queue import Job
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reward_server.test_jobs import PATIENCE_S, claim_one, model, ok, submission
from tests.reward_server.test_refresh import QUICK, RESPONSE, claimed, served
from tests.reward_server.test_refresh import submission as moving
from tests.run_clips import fill

KEYS = Keys(profile="embedded")


async def publish(queue: Queue, name: str, discriminators: bytes = b"discriminators") -> None:
    """Publish a version of run-1 that nobody has trained."""
    refresh = await claimed(queue, QUICK)
    await queue.worker.store.stage(name, discriminators, b"training")
    version = Version(name=name, digest="0", number=await queue.worker.store.next_number("run-1"))
    assert await queue.worker.refreshes.publish(refresh, version, replace(RESPONSE, discriminator_version=name))


async def opened(open_queue: OpenQueue, make_settings: MakeSettings, **settings: float) -> Queue:
    """A queue that keeps one version, with clips for refreshes, a live worker, and the version "old"."""
    queue = await open_queue(make_settings(versions_kept=1, **settings))
    await fill(queue.worker.store, "run-1", num=2)
    await queue.worker.announce("w1", model())
    await publish(queue, "old")
    return queue


async def parts_of(redis: Redis, version: str) -> list[int]:
    """Whether the file, the training weights, the record and the bindings of a version are there."""
    keys = KEYS.discriminators(version), KEYS.training(version), KEYS.version(version), KEYS.bound(version)
    return [await redis.exists(key) for key in keys]


HELD, GONE = [1, 0, 1, 1], [0, 0, 0, 0]


async def test_jobs_keep_their_version_through_any_number_of_refreshes(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    """Retention kept the four latest versions only, so jobs that had waited through four refreshes failed."""
    settings = make_settings(versions_kept=1)
    queue = await open_queue(settings)
    await fill(queue.worker.store, "run-1", num=2)
    async with served(settings, small_pipeline) as doors:
        first = await doors.service.refresh(replace(QUICK, steps=1))
    job_ids = await queue.door.admit([moving(seed, group_id=f"g{seed % 2}") for seed in range(6)])
    file = await queue.worker.store.discriminators(first.discriminator_version)
    for number in range(4):
        await publish(queue, f"later-{number}", file)
    async with served(settings, small_pipeline), asyncio.timeout(PATIENCE_S):
        outcomes = [outcome async for outcome in queue.door.outcomes(job_ids, PATIENCE_S)]
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.OK] * 6, outcomes
    versions = {outcome.reward.provenance.discriminator_version for outcome in outcomes if outcome.reward}
    assert versions == {first.discriminator_version}


async def test_a_replaced_version_goes_with_the_last_job_that_is_bound_to_it(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await opened(open_queue, make_settings)
    await queue.door.admit([submission(run_id="run-1")] * 2)
    await publish(queue, "new")
    for _ in range(2):
        assert await parts_of(redis, "old") == HELD  # without the weights that only a refresh needs
        job = await claim_one(queue.worker)
        assert job.version == "old"
        await queue.worker.finish(job, ok(job))
    assert await parts_of(redis, "old") == GONE


async def test_a_group_keeps_its_version_while_its_results_can_be_fetched(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await opened(open_queue, make_settings, result_ttl_s=1000)
    await queue.door.admit([submission(run_id="run-1", group_id="g")])
    await publish(queue, "new")
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    assert await parts_of(redis, "old") == HELD
    lives_s = [await redis.ttl(key) for key in (KEYS.discriminators("old"), KEYS.version("old"), KEYS.bound("old"))]
    assert all(990 <= life_s <= 1000 for life_s in lives_s)

    [late] = await queue.door.admit([submission(run_id="run-1", group_id="g")])  # a clip of the group that comes later
    job = await claim_one(queue.worker)
    assert (job.id, job.version) == (late, "old")
    assert await redis.ttl(KEYS.discriminators("old")) > 86000  # as long as this job may wait
    await queue.worker.finish(job, ok(job))
    assert await redis.ttl(KEYS.discriminators("old")) <= 1000


@pytest.mark.parametrize("end", ["deadline", "dead letter", "outcome"])
async def test_no_way_to_end_leaves_a_binding(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis, end: str
) -> None:
    queue = await opened(open_queue, make_settings, max_attempts=1, lease_s=0.05)
    deadline_s = 0.1 if end == "deadline" else None
    await queue.door.admit([submission(run_id="run-1", deadline_s=deadline_s)])
    await publish(queue, "new")
    if end != "deadline":
        job = await claim_one(queue.worker)
    if end == "outcome":
        await queue.worker.finish(job, ok(job))
    while (await queue.door.depth()).jobs:
        if end == "dead letter":
            await queue.worker.claim("w2", count=1, wait_ms=20)
        await asyncio.sleep(0.01)
    assert await parts_of(redis, "old") == GONE


async def test_a_script_that_is_sent_again_binds_and_releases_once(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    """Connections break after a command has run. What is bound is a set of names, so nothing is counted twice."""
    queue = await opened(open_queue, make_settings)
    clip = submission(run_id="run-1", idempotency_key="k")
    assert await queue.door.admit([clip]) == await queue.door.admit([clip])
    assert await redis.zcard(KEYS.bound("old")) == 1
    job = await claim_one(queue.worker)
    assert [await queue.worker.finish(job, ok(job)) for _ in range(2)] == [True, False]
    assert await redis.zcard(KEYS.bound("old")) == 0


async def test_a_job_handed_back_or_taken_over_stays_bound(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await opened(open_queue, make_settings)
    [job_id] = await queue.door.admit([submission(run_id="run-1")])
    await publish(queue, "new")

    async def bound(job: Job) -> bool:
        return job.version == "old" and await redis.zrange(KEYS.bound("old"), 0, -1) == [job_id.encode()]

    job = await claim_one(queue.worker, "leaving")
    await queue.worker.hand_back("leaving", [job])
    assert await bound(await claim_one(queue.worker, "dying"))
    assert await bound(await claim_one(queue.worker, "next"))
    await queue.door.return_all()
    assert await bound(await claim_one(queue.worker, "last"))


async def test_a_version_outlives_its_own_lifetime_while_jobs_wait_for_it(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await opened(open_queue, make_settings, version_ttl_s=1000, job_ttl_s=10000)
    assert await redis.ttl(KEYS.discriminators("old")) <= 1000
    await queue.door.admit([submission(run_id="run-1")])
    await fill(queue.worker.store, "run-1", num=3)  # a clip that comes later renews the versions, and must not cut this
    assert await redis.ttl(KEYS.discriminators("old")) > 10000


async def test_a_clip_renews_the_versions_of_its_run(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await opened(open_queue, make_settings, version_ttl_s=1000)
    parts = KEYS.discriminators("old"), KEYS.training("old"), KEYS.version("old"), KEYS.versions("run-1")
    for key in parts:
        await redis.expire(key, 500)
    await fill(queue.worker.store, "run-1", num=3)
    assert all([await redis.ttl(key) > 990 for key in parts])


async def test_versions_that_workers_bring_need_no_binding(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await open_queue(make_settings())
    await queue.worker.announce("w1", model())
    await queue.door.admit([submission(run_id="r", group_id="g"), submission(discriminator_version="v1"), submission()])
    assert await redis.keys("*:bound:*") == []
