"""Tests that workers claim only what they can judge, while workers with different checkpoints share one queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from protos.types import Model, Outcome, OutcomeKind
from reward_server.doors.metrics import Metrics
from reward_server.doors.service import Service
from reward_server.errors import VersionConflict
from reward_server.queue.door_queue import JobState
from reward_server.queue.run_store import Version
from reward_server.queue.scripts import GROUP
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.pixel_scorer import MODEL, PixelScorer, moving
from tests.reward_server.test_bindings import KEYS
from tests.reward_server.test_jobs import PATIENCE_S, ok, submission, until
from tests.reward_server.test_refresh import QUICK, RESPONSE, claimed
from tests.reward_server.test_worker import outcomes_of, working
from tests.run_clips import fill

OLD, NEW = MODEL, replace(MODEL, discriminator_version="pixels-2")


def versions(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.reward.provenance.discriminator_version for outcome in outcomes if outcome.reward]


async def claims(queue: Queue, model: Model, worker: str = "") -> list[str]:
    """The ids of the jobs that a worker with this model claims now."""
    worker = worker or f"worker of {model.discriminator_version}"
    return [job.id for job in await queue.worker.claim(worker, count=8, wait_ms=0, model=model)]


async def announce(queue: Queue, *models: Model) -> None:
    for model in models:
        await queue.worker.announce(f"worker of {model.discriminator_version}", model)


async def test_a_rolling_update_of_the_checkpoint_fails_no_job(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    """Workers claimed whatever came, so while two checkpoints were served, 26 to 29 of 40 jobs failed."""
    queue, settings = await open_queue(), make_settings(batch_jobs=2)
    async with working(settings, PixelScorer(model=OLD)), working(settings, PixelScorer(model=NEW)):
        await until(queue.door.models, lambda models: len(models) == 2)
        job_ids, wanted = [], []
        for number in range(40):
            pin = (OLD, NEW)[number % 2].discriminator_version if number % 4 < 2 else ""
            clip = moving(number % 5, run_id="r", group_id=f"g{number // 2 if not pin else number}")
            clip = replace(clip, context=replace(clip.context, discriminator_version=pin))
            job_ids += await queue.door.admit([clip])
            wanted.append(pin)
        outcomes = await outcomes_of(queue.door, job_ids)
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.OK] * 40, outcomes
    judged = versions(outcomes)
    assert all(pin in ("", version) for pin, version in zip(wanted, judged, strict=True))
    groups: dict[str, set[str]] = {}
    for outcome, version in zip(outcomes, judged, strict=True):
        groups.setdefault(outcome.context.group_id, set()).add(version)
    assert all(len(found) == 1 for found in groups.values())


async def test_a_job_goes_on_to_a_worker_that_can_judge_it(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    old, new, anyone = await queue.door.admit(
        [submission(discriminator_version=model.discriminator_version) for model in (OLD, NEW)] + [submission()]
    )
    assert await claims(queue, NEW) == [new, anyone]
    assert await queue.door.state(old) is JobState.QUEUED
    [job] = await queue.worker.claim("w", count=8, wait_ms=0, model=OLD)
    assert (job.id, job.attempts) == (old, 1)  # passing it on was no attempt
    assert await queue.worker.renew("w", [job]) == {old}
    assert await queue.worker.finish(job, ok(job))
    lane = KEYS.lane(OLD.discriminator_version)
    assert await redis.xlen(lane) == 0 == (await redis.xpending(lane, GROUP))["pending"]


async def test_a_worker_that_holds_a_job_of_its_lane_is_not_idle(open_queue: OpenQueue) -> None:
    """Else jobs that wait behind a slow clip would be given to a worker that is busy too."""
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    [old] = await queue.door.admit([submission(discriminator_version=OLD.discriminator_version)])
    assert await claims(queue, NEW) == []  # it passed the job on
    assert await queue.worker.idle_workers("asks") == 2
    assert await claims(queue, OLD) == [old]
    assert await queue.worker.idle_workers("asks") == 1


async def test_a_waiting_worker_is_woken_by_its_lane(open_queue: OpenQueue) -> None:
    """Redis gives a new job to the worker that has waited longest, here to the one that cannot judge it."""
    queue, other = await open_queue(), await open_queue()
    await announce(queue, OLD, NEW)
    waiting = []
    for side, model in ((queue, NEW), (other, OLD)):
        claim = side.worker.claim(f"waits with {model.discriminator_version}", count=1, wait_ms=5000, model=model)
        waiting.append(asyncio.create_task(claim))
        await asyncio.sleep(0.2)
    [job_id] = await (await open_queue()).door.admit([submission(discriminator_version="pixels-1")])
    new, old = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
    assert new == [] and [job.id for job in old] == [job_id]


async def test_what_no_live_worker_can_judge_waits_and_is_told(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    settings = make_settings(lease_s=1000)
    queue = await open_queue(settings)
    service = Service(queue.door, settings, Metrics())
    await announce(queue, OLD, NEW)
    job_ids = await queue.door.admit([submission(discriminator_version="pixels-1", deadline_s=1000)] * 2)
    assert await claims(queue, NEW) == []
    assert (await service.readiness()).waiting == ()
    await queue.worker.leave("worker of pixels-1")

    readiness = await service.readiness()
    assert readiness.ready and len(readiness.waiting) == 1
    assert "'pixels-1', which no live worker has loaded: 2; start a worker" in readiness.waiting[0]
    told = 'motion_reward_queue_unjudged_jobs{discriminator_version="pixels-1"} 2.0'
    assert told in await service.metrics_text()

    await announce(queue, OLD)
    assert (await service.readiness()).waiting == () and "pixels-1" not in await service.metrics_text()
    assert await claims(queue, OLD) == job_ids


async def test_a_job_that_waits_for_a_worker_ends_at_its_deadline(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    [job_id] = await queue.door.admit([submission(discriminator_version="pixels-1", deadline_s=0.2)])
    assert await claims(queue, NEW) == []
    [outcome] = await outcomes_of(queue.door, [job_id])
    assert outcome.kind is OutcomeKind.TIMEOUT
    assert await redis.xlen(KEYS.lane("pixels-1")) == 0


async def test_a_version_that_nobody_knows_fails_at_once(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue()
    async with working(make_settings(), PixelScorer(model=NEW)):
        [outcome] = await outcomes_of(queue.door, await queue.door.admit([moving(1, discriminator_version="typo")]))
    assert outcome.error and outcome.error.code == "version_not_served"


async def test_a_silent_workers_lane_job_goes_only_to_its_like(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    [job_id] = await queue.door.admit([submission(discriminator_version="pixels-1")])
    assert await claims(queue, NEW) == []
    assert await claims(queue, OLD, "dying") == [job_id]
    await until(lambda: queue.worker.abandoned(OLD), bool)
    assert not await queue.worker.abandoned(NEW) and await claims(queue, NEW) == []
    [job] = await queue.worker.claim("next", count=8, wait_ms=0, model=OLD)
    assert (job.id, job.attempts) == (job_id, 2)


async def test_a_job_that_the_wrong_worker_takes_over_keeps_its_attempts(open_queue: OpenQueue) -> None:
    """The job was claimed from the queue, before there was a worker that could not judge it."""
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    [job_id] = await queue.door.admit([submission(discriminator_version="pixels-1")])
    assert await claims(queue, OLD, "dying") == [job_id]
    await until(lambda: queue.worker.abandoned(NEW), bool)
    assert await claims(queue, NEW) == []
    [job] = await queue.worker.claim("next", count=8, wait_ms=0, model=OLD)
    assert (job.id, job.attempts) == (job_id, 2)


async def test_lane_jobs_come_back_from_a_worker_that_leaves_and_from_a_server_that_starts(
    open_queue: OpenQueue,
) -> None:
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    [job_id] = await queue.door.admit([submission(discriminator_version="pixels-1")])
    assert await claims(queue, NEW) == []
    [job] = await queue.worker.claim("leaving", count=8, wait_ms=0, model=OLD)
    assert await queue.worker.hand_back("leaving", [job]) == 1
    assert await claims(queue, NEW) == []
    assert await claims(queue, OLD, "killed") == [job_id]
    assert await queue.door.return_all() == 1
    assert await queue.door.models() == []
    await announce(queue, OLD)
    assert await claims(queue, OLD) == [job_id]


async def test_new_groups_go_to_a_version_that_stays(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    """A worker that drains claims nothing more, so a group that is bound to its version would wait in vain."""
    queue, draining = await open_queue(), PixelScorer(model=OLD)
    async with working(make_settings(), PixelScorer(model=NEW)), working(make_settings(), draining) as stop:
        await until(queue.door.models, lambda models: len(models) == 2)
        held = await queue.door.admit([moving(1, discriminator_version="pixels-1", policy_version="held")])
        await until(lambda: _true(len(draining.batches) == 1), bool)
        stop.set()
        await until(queue.door.models, lambda models: models == [NEW])
        outcomes = await outcomes_of(queue.door, await queue.door.admit([moving(1, run_id="r", group_id="g")] * 2))
        assert versions(outcomes) == ["pixels-2"] * 2
        draining.release.set()
        assert versions(await outcomes_of(queue.door, held)) == ["pixels-1"]


async def test_a_group_without_a_run_is_judged_by_one_version(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    """Only groups of a run were bound, so workers with different checkpoints shared the clips of other groups."""
    queue, settings = await open_queue(), make_settings(batch_jobs=1)
    async with working(settings, PixelScorer(model=OLD)), working(settings, PixelScorer(model=NEW)):
        await until(queue.door.models, lambda models: len(models) == 2)
        pair = [moving(1, group_id=group, policy_version="slow:0.01") for group in "gh"]
        job_ids = [job_id for _ in range(12) for job_id in await queue.door.admit(pair)]
        judged = versions(await outcomes_of(queue.door, job_ids))
    assert len(set(judged[::2])) == len(set(judged[1::2])) == 1 and len(judged) == 24


async def test_a_group_of_a_run_is_apart_from_one_without(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    for run_id, version in (("", "pixels-1"), ("r", "pixels-2")):
        await queue.door.admit([submission(run_id=run_id, group_id="g", discriminator_version=version)])
    with pytest.raises(VersionConflict, match="'g' is scored with discriminator version 'pixels-1', not 'pixels-2'"):
        await queue.door.admit([submission(group_id="g", discriminator_version="pixels-2")])


async def test_a_group_whose_version_went_with_an_update_is_refused_by_name(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await announce(queue, OLD)
    await queue.door.admit([submission(group_id="g"), submission(run_id="r", group_id="g")])
    await queue.worker.leave("worker of pixels-1")
    await queue.door.admit([submission(group_id="g")])  # nobody is there: the same checkpoint may come back
    await announce(queue, NEW)
    with pytest.raises(VersionConflict, match=r"'g' .* 'pixels-1', which no live worker has loaded; give"):
        await queue.door.admit([submission(group_id="g")])
    await queue.door.admit([submission(group_id="new"), submission(run_id="r", group_id="g")])
    await announce(queue, OLD)
    await queue.door.admit([submission(group_id="g")])


async def _true(value: bool) -> bool:
    return value


@pytest.mark.parametrize(("fits", "claimed_by_new"), [("none", True), ("other", False), ("", True)])
async def test_a_runs_version_goes_to_workers_whose_preprocessing_it_was_trained_on(
    open_queue: OpenQueue, fits: str, claimed_by_new: bool
) -> None:
    """A release with new motion features cannot load the versions of a run that began before."""
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    await fill(queue.worker.store, "run-1", num=2)
    refresh = await claimed(queue, QUICK)
    version = Version(name="v", digest="0", number=1, base="pixels-1", preprocessing_digest=fits)
    await queue.worker.store.stage("v", b"discriminators", b"training")
    await queue.worker.refreshes.publish(refresh, version, RESPONSE)
    [job_id] = await queue.door.admit([submission(run_id="run-1")])
    assert await claims(queue, NEW) == ([job_id] if claimed_by_new else [])
    assert await claims(queue, OLD) == ([] if claimed_by_new else [job_id])


async def test_a_lane_ends_after_its_last_worker_and_its_last_job(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await announce(queue, OLD, NEW)
    lane = KEYS.lane("pixels-1")
    assert 86000 < await redis.ttl(lane) <= 86400
    await redis.expire(lane, 100)
    await queue.door.admit([submission(discriminator_version="pixels-1", deadline_s=5000)])
    assert await claims(queue, NEW) == []
    assert 5000 < await redis.ttl(lane) < 5100
    await redis.delete(lane)
    await announce(queue, NEW)
    assert await redis.smembers(f"{KEYS.prefix}:lanes") == {b"pixels-2"}


async def test_the_lanes_of_an_emptied_redis_are_made_again(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await announce(queue, OLD)
    await redis.flushall()
    assert await claims(queue, OLD) == []
    [job_id] = await queue.door.admit([submission()])
    assert await claims(queue, OLD) == [job_id]


async def test_workers_leave_no_consumer_behind(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await announce(queue, OLD)
    assert await claims(queue, OLD) == []
    await queue.worker.leave("worker of pixels-1")
    assert await redis.xinfo_consumers(KEYS.queue, GROUP) == []
    assert await redis.xinfo_consumers(KEYS.lane("pixels-1"), GROUP) == []
