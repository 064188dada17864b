"""Tests that the motion of scored clips is kept for refreshes as durably as outcomes, and that what is not is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from redis.asyncio import Redis

from protos.types import Origin, Outcome, OutcomeKind, Submission
from reward_server.errors import NotReady, UnknownRun
from reward_server.pipeline import Pipeline
from reward_server.queue.run_motion import RunMotion
from reward_server.scorer import Scored
from reward_server.worker import kept_clips
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import Pixels, PixelScorer, moving
from tests.reward_server.test_bindings import KEYS, publish
from tests.reward_server.test_refresh import QUICK, served
from tests.reward_server.test_worker import outcomes_of, working
from tests.run_clips import fill


@dataclass
class Packing(PixelScorer):
    """Packs the motion of a clip into ten bytes."""

    def score(self, prepared: Sequence[Pixels]) -> list[Scored]:
        return [replace(scored, features=(bytes(10),)) for scored in super().score(prepared)]


def clips(count: int) -> list[Submission]:
    return [moving(step, run_id="run-1", origin=Origin.REAL) for step in range(count)]


def warnings(outcome: Outcome) -> list[str]:
    return [warning.code for warning in outcome.reward.provenance.warnings] if outcome.reward else []


async def test_a_write_that_fails_is_repeated_until_redis_answers(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was tried once. 6 of 976 clips were lost while Redis was away, and only the worker's log told."""
    queue, keep, failures = await open_queue(), RunMotion.keep_clip, 0

    async def failing(motion: RunMotion, *args: object, **named: object) -> bool:
        nonlocal failures
        if (failures := failures + 1) <= 5:
            raise NotReady("Redis is away")
        return await keep(motion, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(RunMotion, "keep_clip", failing)
    job_ids = await queue.door.admit(clips(3))
    async with working(make_settings(), Packing()):
        outcomes = await outcomes_of(queue.door, job_ids)
    assert failures > 5 and [warnings(outcome) for outcome in outcomes] == [[]] * 3
    assert set(await redis.hkeys(KEYS.clips("real", "run-1"))) == {job_id.encode() for job_id in job_ids}


async def test_a_full_redis_is_told_to_the_caller_and_to_the_next_refresh(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 of 40 clips were lost in silence."""
    monkeypatch.setattr(kept_clips, "FULL_PAUSES_S", (0.0, 0.01))
    queue = await open_queue()
    job_ids = await queue.door.admit(clips(4))
    await redis.config_set("maxmemory", 1)
    try:
        async with working(make_settings(), Packing()):
            outcomes = await outcomes_of(queue.door, job_ids)
    finally:
        await redis.config_set("maxmemory", 0)
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.OK] * 4
    assert [warnings(outcome) for outcome in outcomes] == [["not_kept"]] * 4
    assert "memory limit" in outcomes[0].reward.provenance.warnings[0].message  # type: ignore[union-attr]
    assert sorted(await queue.door.store.motion.missing("run-1", Origin.REAL)) == sorted(job_ids)
    assert await queue.door.store.motion.missing("run-1", Origin.ROLLOUT) == ()
    assert (await queue.door.counts())["not_kept"] == 4
    with pytest.raises(UnknownRun, match="are kept: for 4 that were scored there was no room"):
        await queue.door.refreshes.admit(QUICK)
    assert 0 < await redis.ttl(KEYS.missing("real", "run-1")) <= 86400


async def test_memory_that_is_freed_in_time_keeps_the_clip(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_clips, "FULL_PAUSES_S", (0.0, 30.0))
    queue = await open_queue()
    job_ids = await queue.door.admit(clips(1))
    await redis.config_set("maxmemory", 1)
    tried, sleep = asyncio.Event(), asyncio.sleep

    async def short(seconds: float) -> None:
        if seconds == 30.0:
            tried.set()
            await redis.config_set("maxmemory", 0)
            seconds = 0.0
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", short)
    async with working(make_settings(), Packing()):
        [outcome] = await outcomes_of(queue.door, job_ids)
    assert tried.is_set() and warnings(outcome) == []
    assert await queue.door.store.motion.missing("run-1", Origin.REAL) == ()


async def test_a_clip_over_the_limit_of_its_run_is_told(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    settings = make_settings(feature_max_bytes=9)
    queue = await open_queue(settings)
    async with working(settings, Packing()):
        [outcome] = await outcomes_of(queue.door, await queue.door.admit(clips(1)))
    assert warnings(outcome) == ["not_kept"] and outcome.reward
    assert "takes 10 bytes, the limit is 9 (feature_max_bytes)" in outcome.reward.provenance.warnings[0].message


async def test_clips_without_an_origin_have_nothing_to_keep(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    settings = make_settings(feature_max_bytes=9)
    queue = await open_queue(settings)
    async with working(settings, Packing()):
        [outcome] = await outcomes_of(queue.door, await queue.door.admit([moving(1, run_id="run-1")]))
    assert warnings(outcome) == []


async def test_a_refresh_names_the_clips_that_it_missed(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    store = (await open_queue()).worker.store
    await fill(store, "run-1", num=2)
    await store.motion.miss_clip("run-1", Origin.ROLLOUT, "lost")
    await store.motion.miss_clip("run-2", Origin.ROLLOUT, "of another run")
    async with served(make_settings(), small_pipeline) as doors:
        first = await doors.service.refresh(replace(QUICK, steps=1))
        await store.motion.miss_clip("run-1", Origin.REAL, "later")
        second = await doors.service.refresh(replace(QUICK, steps=1))
        text = await doors.service.metrics_text()
    assert (first.missing_real, first.missing_rollouts) == ((), ("lost",))
    assert (second.missing_real, second.missing_rollouts) == (("later",), ())  # each is named once
    assert "motion_reward_clips_not_kept_total 3.0" in text


async def test_a_clip_that_is_kept_in_the_end_is_not_missed(open_queue: OpenQueue) -> None:
    """The worker that found no room died, and the next one found some."""
    queue = await open_queue()
    await queue.worker.announce("w1", PixelScorer().model)
    for _ in range(2):
        await queue.worker.store.motion.miss_clip("run-1", Origin.REAL, "job")
    assert (await queue.door.counts())["not_kept"] == 1
    await queue.worker.store.motion.keep_clip("run-1", Origin.REAL, "job", (b"motion",))
    assert await queue.door.store.motion.missing("run-1", Origin.REAL) == ()
    await fill(queue.worker.store, "run-1", num=2)
    await publish(queue, "v")
    assert await queue.door.store.motion.missing("run-1", Origin.REAL) == ()
