"""Tests the queue on a real redis-server: admission, claims, outcomes, deadlines, dead workers and outages of Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from protos.codec import clip_to_tensor
from protos.types import (
    Bounds,
    Clip,
    Context,
    Input,
    Limits,
    Logits,
    Media,
    Model,
    Origin,
    Outcome,
    OutcomeKind,
    Provenance,
    Reward,
    Source,
    Submission,
)
from reward_server.errors import (
    BadRequest,
    IdempotencyConflict,
    NonFiniteLogit,
    NotReady,
    Overloaded,
    UnknownJob,
    UnreadableClip,
    VersionConflict,
    error_outcome,
)
from reward_server.queue import admission, scripts
from reward_server.queue.door_queue import DoorQueue, JobState
from reward_server.queue.finished import Finished
from reward_server.queue.keys import Keys
from reward_server.queue.records import pack_outcome
from reward_server.queue.redis_link import RedisLink, connect
from reward_server.queue.scripts import GROUP
from reward_server.queue.worker_queue import Job, WorkerQueue
from tests.conftest import MakeSettings, OpenQueue, Queue

KEYS = Keys(profile="embedded")
PATIENCE_S = 20.0  # far longer than anything here takes; reaching it is a failure


@pytest.fixture(params=[0, admission.SENT_BYTES], ids=["staged", "sent"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads are stored before their jobs are admitted, or go with them."""
    monkeypatch.setattr(admission, "SENT_BYTES", request.param)


def submission(payload: bytes = b"clip", media: Media = Media.CONTAINER, **context: object) -> Submission:
    return Submission(payload=payload, media=media, context=Context(**context))  # type: ignore[arg-type]


def reward(value: float = 1.0) -> Reward:
    logits, bounds = Logits(instantaneous=value, long_term=value), Bounds(min=-10, max=10)
    source = Source(frames=16, fps=12, duration_s=1.3, height_px=64, width_px=64, codec="h264")
    provenance = Provenance(
        profile="embedded",
        discriminator_version="v1",
        weights_digest="w",
        preprocessing_digest="p",
        query_seed=1,
        num_tracks=16,
        source=source,
        fps_used=12,
        frames_used=16,
        height_px=64,
        width_px=64,
        mean_visibility=1,
        mean_confidence=1,
    )
    return Reward(
        combined=value,
        instantaneous=value,
        long_term=value,
        logits=logits,
        clipped=False,
        bounds=bounds,
        windows=(),
        provenance=provenance,
    )


def model(version: str = "v1") -> Model:
    return Model(
        profile="embedded",
        discriminator_version=version,
        weights_digest="w",
        preprocessing_digest="p",
        bounds=Bounds(min=-10, max=10),
        weights=Logits(instantaneous=1, long_term=1),
        limits=Limits(max_bytes=1, max_frames=2, max_frame_pixels=1, max_duration_s=1, max_clips_per_request=1),
        input=Input(
            fps=12, window_frames=16, min_frames=8, num_tracks=256, area_px=36864, containers=("mp4",), tensor_forms=()
        ),
    )


def ok(job: Job, value: float = 1.0) -> Outcome:
    return Outcome(job_id=job.id, kind=OutcomeKind.OK, reward=reward(value), context=job.context)


async def claim_one(queue: WorkerQueue, worker: str = "w1") -> Job:
    """The next job, also one of a silent worker. Waits for the end of a lease if necessary."""
    async with asyncio.timeout(PATIENCE_S):
        while not (jobs := await queue.claim(worker, count=1, wait_ms=50)):
            pass
    return jobs[0]


async def until(look: Callable[[], Awaitable[Any]], satisfied: Callable[[Any], bool]) -> None:
    """Repeat `look` until its result is satisfying. For changes that come with the end of a lease."""
    async with asyncio.timeout(PATIENCE_S):
        while not satisfied(await look()):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.02)


async def collect(stream: AsyncIterator[Outcome]) -> list[Outcome]:
    async with asyncio.timeout(PATIENCE_S):
        return [outcome async for outcome in stream]


# --- admission ------------------------------------------------------------------------------------


async def test_jobs_keep_their_order_and_their_bytes_and_context(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await queue.worker.announce("w1", model())
    clips = [submission(bytes([i]) * (i + 1), group_id=f"g{i}", query_seed=2**64 - 1 - i) for i in range(5)]
    job_ids = await queue.door.admit(clips)
    jobs = await queue.worker.claim("w1", count=5, wait_ms=0)
    assert [job.id for job in jobs] == job_ids and len(set(job_ids)) == 5
    assert [await queue.worker.payload(job) for job in jobs] == [clip.payload for clip in clips]
    assert [job.context for job in jobs] == [clip.context for clip in clips]
    assert [job.attempts for job in jobs] == [1] * 5


async def test_states_and_outcome_of_a_job(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    [job_id] = await queue.door.admit([submission()])
    assert (await queue.door.state(job_id), await queue.door.outcome(job_id)) == (JobState.QUEUED, None)
    job = await claim_one(queue.worker)
    assert (await queue.door.state(job_id), await queue.door.outcome(job_id)) == (JobState.RUNNING, None)
    assert await queue.worker.finish(job, ok(job))
    assert (await queue.door.state(job_id), await queue.door.outcome(job_id)) == (JobState.DONE, ok(job))


async def test_unknown_jobs_are_named(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    for call in (queue.door.state("nope"), queue.door.outcome("nope"), collect(queue.door.outcomes(["nope"], 1))):
        with pytest.raises(UnknownJob, match="nope"):
            await call


@pytest.mark.parametrize(
    "bound",
    [{"queue_max_jobs": 3}, {"queue_max_bytes": 30}, {"queue_max_cost": 32 * 30}],
    ids=["jobs", "bytes", "cost"],
)
@pytest.mark.usefixtures("way")
async def test_each_limit_refuses_whole_requests_until_jobs_end(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis, bound: dict[str, int]
) -> None:
    queue = await open_queue(make_settings(**bound))
    await queue.door.admit([submission(b"x" * 10)] * 2)
    with pytest.raises(Overloaded) as refused:
        await queue.door.admit([submission(b"x" * 10)] * 2)
    assert 1 <= refused.value.retry_after_s <= 60
    assert (await queue.door.depth()).jobs == 2 and len(
        await redis.keys("*payload*")
    ) == 2  # nothing of the request is kept
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    await queue.door.admit([submission(b"x" * 10)] * 2)
    depth = await queue.door.depth()
    assert (depth.jobs, depth.cost, depth.bytes) == (3, 3 * 10 * 32, 30)


async def test_a_request_that_can_never_fit_is_not_told_to_retry(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue = await open_queue(make_settings(queue_max_jobs=2, queue_max_bytes=100))
    for clips in ([submission()] * 3, [submission(b"x" * 101)]):
        with pytest.raises(BadRequest, match="never fits"):
            await queue.door.admit(clips)


async def test_an_empty_queue_takes_a_clip_of_any_estimated_cost(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue = await open_queue(make_settings(queue_max_cost=1))
    await queue.door.admit([submission()])
    with pytest.raises(Overloaded):
        await queue.door.admit([submission()])


async def test_cost_of_a_tensor_is_its_pixels(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    clip = Clip(frames=np.zeros((8, 3, 16, 32), np.uint8), fps=12)
    await queue.door.admit([submission(clip_to_tensor(clip), Media.TENSOR)])
    assert (await queue.door.depth()).cost == 8 * 16 * 32


async def test_retry_after_follows_throughput(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue(make_settings(queue_max_jobs=40))

    async def retry_after_s() -> float:
        with pytest.raises(Overloaded) as refused:
            await queue.door.admit([submission()] * 2)
        return refused.value.retry_after_s

    await queue.door.admit([submission()] * 39)
    assert await retry_after_s() == 5.0  # no job has ended yet, so the rate is unknown
    for job in await queue.worker.claim("w1", count=30, wait_ms=0):
        await queue.worker.finish(job, ok(job))
    await queue.door.admit([submission()] * 30)
    assert await retry_after_s() < 5.0  # 30 jobs in well under 15 s: a quarter of 39 in under 5 s


# --- idempotency ----------------------------------------------------------------------------------


async def test_same_key_and_bytes_is_the_same_job_even_after_its_end(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    clip = submission(b"a", idempotency_key="k")
    first = await queue.door.admit([clip])
    assert await queue.door.admit([clip]) == first
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    assert await queue.door.admit([clip, submission(b"b")]) != first
    assert (await queue.door.admit([clip])) == first
    assert (await queue.door.depth()).jobs == 1


async def test_same_key_twice_in_one_request(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    a, b = submission(b"a", idempotency_key="k"), submission(b"b", idempotency_key="k")
    first, other, again = await queue.door.admit([a, submission(b"c"), a])
    assert first == again != other
    assert (await queue.door.depth()).jobs == 2
    with pytest.raises(IdempotencyConflict, match="'k'"):
        await queue.door.admit([submission(b"d"), a, b])
    assert (await queue.door.depth()).jobs == 2


@pytest.mark.parametrize(
    "other",
    [
        submission(b"b", idempotency_key="k"),
        submission(b"a", Media.TENSOR, idempotency_key="k"),
        submission(b"a", idempotency_key="k", group_id="g"),
        submission(b"a", idempotency_key="k", query_seed=1),
        submission(b"a", idempotency_key="k", discriminator_version="v"),
        submission(b"a", idempotency_key="k", origin=Origin.REAL),
    ],
)
async def test_a_key_used_for_another_submission_is_a_conflict(
    open_queue: OpenQueue, redis: Redis, other: Submission
) -> None:
    queue = await open_queue()
    await queue.worker.announce("w1", model())
    [job_id] = await queue.door.admit([submission(b"a", idempotency_key="k")])
    with pytest.raises(IdempotencyConflict, match=job_id):
        await queue.door.admit([submission(b"new"), other])
    assert (await queue.door.depth()).jobs == 1 and len(await redis.keys("*payload*")) == 1


async def test_a_key_counts_within_its_run_and_its_owner(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    clips = [submission(idempotency_key="k", run_id=run_id) for run_id in ("", "r", "r:k", "1")]
    job_ids = await queue.door.admit(clips)
    assert len(set(job_ids)) == len(clips)
    owned = await queue.door.admit(clips, owner="5f0c9a3e")
    assert not set(owned) & set(job_ids)
    assert await queue.door.admit(clips) == job_ids
    assert await queue.door.admit(clips, owner="5f0c9a3e") == owned


async def test_a_known_key_needs_no_room(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue(make_settings(queue_max_jobs=1))
    clip = submission(idempotency_key="k")
    first = await queue.door.admit([clip])
    assert await queue.door.admit([clip]) == first


@pytest.mark.usefixtures("way")
async def test_racing_submissions_of_one_key_are_one_job(open_queue: OpenQueue) -> None:
    queues = [await open_queue() for _ in range(4)]
    clip = submission(b"a" * 1000, idempotency_key="k")
    ids = await asyncio.gather(*(queue.door.admit([clip]) for queue in queues * 5))
    assert len({job_id for [job_id] in ids}) == 1
    assert (await queues[0].door.depth()).jobs == 1


@pytest.mark.usefixtures("way")
async def test_a_refused_clip_is_a_finished_job(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    bad, good = await queue.door.admit([submission(b"", run_id="r"), submission()], {0: UnreadableClip("why")})
    [outcome] = await collect(queue.door.outcomes([bad], PATIENCE_S))
    assert (outcome.kind, outcome.error and outcome.error.message) == (OutcomeKind.INVALID, "why")
    assert [o.job_id for o in await collect(queue.door.run_outcomes("r", "", 0))] == [bad]
    assert (await queue.door.depth()).jobs == 1 and await queue.door.state(good) is JobState.QUEUED
    assert len(await redis.keys("*payload*")) == 1


# --- exactly one outcome --------------------------------------------------------------------------


async def test_finishing_twice_has_one_effect(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.door.admit([submission(run_id="r")])
    job = await claim_one(queue.worker)
    failed = error_outcome(job.id, NonFiniteLogit("nan"), job.context)
    results = await asyncio.gather(*(queue.worker.finish(job, outcome) for outcome in (ok(job), failed, ok(job, 2.0))))
    assert sorted(results) == [False, False, True]
    counts = await queue.door.counts()
    assert counts["finished"] == 1 and counts.get("ok", 0) + counts.get("failed", 0) == 1
    assert len(await collect(queue.door.run_outcomes("r", "", 0))) == 1
    assert (await queue.door.depth()).jobs == 0 == (await queue.door.depth()).bytes


async def test_nothing_of_a_finished_job_stays_but_its_outcome(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.door.admit([submission(idempotency_key="k", deadline_s=1000)])
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    assert await redis.xlen(KEYS.queue) == 0
    assert (await redis.xpending(KEYS.queue, GROUP))["pending"] == 0
    assert await redis.keys("*payload*") == [] and await redis.zcard(f"{KEYS.prefix}:due") == 0
    assert 0 < await redis.ttl(KEYS.job(job.id)) <= 3600
    assert 0 < await redis.ttl(f"{KEYS.prefix}:idempotency::0::k") <= 3600


async def test_every_key_but_the_bounded_ones_has_a_lifetime(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.door.admit(
        [submission(run_id="r", idempotency_key="k"), submission(b"", run_id="r")], {1: UnreadableClip("x")}
    )
    await queue.worker.announce("w1", model())
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    forever = {
        key.decode().removeprefix(f"{KEYS.prefix}:") for key in await redis.keys("*") if await redis.ttl(key) == -1
    }
    assert forever <= {"queue", "depth", "counts", "workers", "models", "loaded", "lanes", "base"}


async def test_results_expire(open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis) -> None:
    queue = await open_queue(make_settings(result_ttl_s=1))
    [job_id] = await queue.door.admit([submission(run_id="r", idempotency_key="k")])
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    assert await queue.door.outcome(job_id)
    for key in (KEYS.job(job_id), KEYS.run("r")):
        await redis.pexpire(key, 1)  # the second itself need not be waited for
    await asyncio.sleep(0.01)
    with pytest.raises(UnknownJob, match="expired"):
        await queue.door.outcome(job_id)
    assert await collect(queue.door.run_outcomes("r", "", 0)) == []
    assert await queue.door.admit([submission(run_id="r", idempotency_key="k")]) != [job_id]


async def test_acknowledged_entries_go_and_pending_ones_stay(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.door.admit([submission() for _ in range(20)])
    jobs = await queue.worker.claim("w1", count=10, wait_ms=0)
    for job in jobs[:5]:
        await queue.worker.finish(job, ok(job))
    left = [entry.decode() for entry, _ in await redis.xrange(KEYS.queue)]
    assert left[:5] == [job.entry for job in jobs[5:]] and len(left) == 5 + 4  # the others wait for their turn


# --- dead and living workers ----------------------------------------------------------------------


async def test_a_dead_workers_job_goes_to_another_after_its_lease(open_queue: OpenQueue) -> None:
    queue, other = await open_queue(), await open_queue()
    [job_id] = await queue.door.admit([submission(b"bytes")])
    await claim_one(queue.worker, "dead")
    job = await claim_one(other.worker, "alive")
    assert (job.id, job.attempts) == (job_id, 2)
    assert await other.worker.payload(job) == b"bytes"
    assert await other.worker.finish(job, ok(job))
    assert (await queue.door.counts())["redelivered"] == 1


async def test_a_suspect_comes_alone_and_before_new_jobs(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    dead_ids = await queue.door.admit([submission(), submission()])
    await queue.worker.claim("dead", count=2, wait_ms=0)
    new_ids = await queue.door.admit([submission(), submission()])
    await until(queue.worker.abandoned, bool)
    batches = [[job.id for job in await queue.worker.claim("w1", count=8, wait_ms=0)] for _ in range(3)]
    assert batches == [[dead_ids[0]], [dead_ids[1]], new_ids]


async def test_renewal_keeps_a_job_from_others(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await queue.door.admit([submission()])
    job = await claim_one(queue.worker, "slow")
    for _ in range(6):  # twice the lease in all
        await asyncio.sleep(0.1)
        assert await queue.worker.renew("slow", [job]) == {job.id}
        assert await queue.worker.claim("other", count=1, wait_ms=0) == []
    assert job.attempts == 1 and (await queue.door.counts()).get("redelivered", 0) == 0


async def test_a_lost_lease_cannot_be_renewed_but_finish_still_counts(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await queue.door.admit([submission()])
    stalled = await claim_one(queue.worker, "stalled")
    taken = await claim_one(queue.worker, "other")
    assert await queue.worker.renew("stalled", [stalled]) == set()
    assert await queue.worker.renew("other", [taken]) == {taken.id}
    assert await queue.worker.finish(stalled, ok(stalled, 1.0))
    assert not await queue.worker.finish(taken, ok(taken, 2.0))
    assert await queue.door.outcome(taken.id) == ok(stalled, 1.0)
    assert await queue.worker.renew("other", [taken]) == set()


async def test_a_job_that_kills_every_worker_is_a_dead_letter(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await open_queue(make_settings(lease_s=0.05, max_attempts=2))
    [job_id] = await queue.door.admit([submission(run_id="r")])
    attempts = [(await claim_one(queue.worker, f"w{i}")).attempts for i in range(2)]
    while (outcome := await queue.door.outcome(job_id)) is None:
        assert await queue.worker.claim("w3", count=1, wait_ms=20) == []
    assert attempts == [1, 2]
    assert outcome.kind is OutcomeKind.FAILED and outcome.error and outcome.error.code == "attempts_exhausted"
    [(_, letter)] = await redis.xrange(KEYS.dead)
    assert (letter[b"job"].decode(), letter[b"attempts"]) == (job_id, b"3")
    assert (await queue.door.counts())["dead"] == 1 and (await queue.door.depth()).jobs == 0


async def test_a_job_handed_back_is_fresh_at_once(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue(make_settings(lease_s=1000))
    [job_id] = await queue.door.admit([submission(b"b")])
    job = await claim_one(queue.worker, "leaving")
    waiting = asyncio.create_task(queue.worker.claim("other", count=1, wait_ms=5000))
    assert await queue.worker.hand_back("leaving", [job]) == 1
    assert await queue.worker.hand_back("leaving", [job]) == 0
    [again] = await asyncio.wait_for(waiting, PATIENCE_S)
    assert (again.id, again.attempts, await queue.worker.payload(again)) == (job_id, 1, b"b")
    assert await queue.worker.renew("leaving", [job]) == set()
    await queue.worker.finish(again, ok(again))
    assert await queue.worker.hand_back("other", [again]) == 0 and (await queue.door.depth()).jobs == 0


async def test_a_claim_sent_twice_counts_one_attempt(open_queue: OpenQueue) -> None:
    """redis-py sends a script again after a broken connection."""
    queue = await open_queue()
    await queue.door.admit([submission()])
    await claim_one(queue.worker, "dead")
    await until(queue.worker.abandoned, bool)
    rows = [await queue.worker._link.run(scripts.RECLAIM, "w1", "token", 300) for _ in range(3)]
    assert [row[2] for row in rows] == [2, 2, 2]


async def test_two_workers_share_a_load_and_each_job_has_one_outcome(open_queue: OpenQueue) -> None:
    door = (await open_queue()).door

    async def work(name: str) -> int:
        worker, done = (await open_queue()).worker, 0
        while jobs := await worker.claim(name, count=4, wait_ms=300):
            for job in jobs:
                assert await worker.finish(job, ok(job), batch=len(jobs))
                done += 1
        return done

    workers = [asyncio.create_task(work(name)) for name in ("w1", "w2")]
    job_ids = [job_id for _ in range(12) for job_id in await door.admit([submission()] * 5)]
    outcomes = await collect(door.outcomes(job_ids, PATIENCE_S))
    assert sorted(o.job_id for o in outcomes) == sorted(job_ids)
    done = await asyncio.gather(*workers)
    assert sum(done) == 60 == (await door.counts())["ok"] and min(done) > 0


async def test_a_worker_lives_for_a_lease_after_its_heartbeat(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.worker.announce("w1", model("v1"))
    await queue.worker.announce("w2", model("v2"))
    assert [m.discriminator_version for m in await queue.door.models()] == ["v1", "v2"]
    await queue.worker.leave("w2")
    assert await queue.door.models() == [model("v1")]
    await until(queue.door.models, lambda models: not models)


async def test_a_forgotten_worker_takes_no_job_with_it(open_queue: OpenQueue, redis: Redis) -> None:
    """Deleting a consumer deletes its pending entries, so a dead worker's consumer must be kept."""
    queue = await open_queue()
    [job_id] = await queue.door.admit([submission()])
    await queue.worker.announce("dead", model())
    await claim_one(queue.worker, "dead")
    await until(queue.door.models, lambda models: not models)
    await queue.worker.announce("alive", model())
    assert (await claim_one(queue.worker, "alive")).id == job_id
    await queue.worker.announce("alive", model())
    names = {consumer["name"] for consumer in await redis.xinfo_consumers(KEYS.queue, GROUP)}
    assert names == {b"alive"}


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("idle", ["door", "worker"])
async def test_a_deadline_ends_a_queued_job_whichever_side_lives(open_queue: OpenQueue, idle: str) -> None:
    queue = await open_queue()
    await (queue.door if idle == "door" else queue.worker)._sweep.stop()
    await queue.worker.announce("w1", model())
    [job_id] = await queue.door.admit([submission(deadline_s=0.05, group_id="g")])
    [outcome] = await collect(queue.door.outcomes([job_id], PATIENCE_S))
    assert (outcome.kind, outcome.error and outcome.error.code) == (OutcomeKind.TIMEOUT, "deadline_passed")
    assert outcome.context.group_id == "g"
    assert await queue.worker.claim("w1", count=1, wait_ms=0) == [] and (await queue.door.depth()).jobs == 0


async def test_a_deadline_ends_a_running_job_for_good(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    [job_id] = await queue.door.admit([submission(deadline_s=0.2)])
    job = await claim_one(queue.worker)
    [outcome] = await collect(queue.door.outcomes([job_id], PATIENCE_S))
    assert outcome.kind is OutcomeKind.TIMEOUT
    assert not await queue.worker.finish(job, ok(job))
    assert await queue.door.outcome(job_id) == outcome


async def test_an_expired_job_is_never_handed_to_a_worker(make_settings: MakeSettings) -> None:
    """Nothing sweeps here, so the claim itself must end the job."""
    settings = make_settings()
    queue = Queue(door=DoorQueue(connect(settings), settings), worker=WorkerQueue(connect(settings), settings))
    late, fine = await queue.door.admit([submission(deadline_s=0.001), submission(deadline_s=1000)])
    await asyncio.sleep(0.01)
    assert (await claim_one(queue.worker)).id == fine
    outcome = await queue.door.outcome(late)
    assert outcome and outcome.kind is OutcomeKind.TIMEOUT
    await queue.door.close()
    await queue.worker.close()


async def test_no_job_waits_for_ever(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue(make_settings(job_ttl_s=1))
    [job_id] = await queue.door.admit([submission()])
    [outcome] = await collect(queue.door.outcomes([job_id], PATIENCE_S))
    assert outcome.kind is OutcomeKind.TIMEOUT and outcome.error and "job_ttl_s" in outcome.error.message


async def test_a_worker_ends_overdue_jobs_without_a_reader(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    settings = make_settings()
    queue = await open_queue(settings)
    [job_id] = await queue.door.admit([submission(deadline_s=0.05)])
    await queue.door.close()
    await redis.config_resetstat()
    await until(partial(redis.hget, KEYS.job(job_id), "state"), lambda state: state == b"done")
    assert "cmdstat_xread" not in await redis.info("commandstats")


async def test_a_worker_makes_an_emptied_redis_ready(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.door.close()
    await redis.flushall()
    assert await queue.worker.claim("w1", count=1, wait_ms=0) == []
    assert [group["name"] for group in await redis.xinfo_groups(KEYS.queue)] == [GROUP.encode()]
    assert await redis.hexists(KEYS.counts, "began_ms")


# --- waiting --------------------------------------------------------------------------------------


async def test_a_waiter_is_woken_by_the_stream_and_does_not_poll(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    door, worker = queue.door, queue.worker
    [job_id] = await door.admit([submission()])
    waiting = asyncio.create_task(collect(door.outcomes([job_id], PATIENCE_S)))
    await asyncio.sleep(0.2)
    before = (await redis.info("commandstats")).get("cmdstat_hmget", {"calls": 0})["calls"]
    await asyncio.sleep(0.5)
    after = (await redis.info("commandstats")).get("cmdstat_hmget", {"calls": 0})["calls"]
    assert after == before  # the job was not read meanwhile
    job = await claim_one(worker)
    await worker.finish(job, ok(job))
    assert await waiting == [ok(job)]


async def test_an_outcome_that_came_before_the_waiter_is_not_missed(open_queue: OpenQueue) -> None:
    first = await open_queue()
    job_ids = await first.door.admit([submission(), submission()])
    job = await claim_one(first.worker)
    await first.worker.finish(job, ok(job))
    second = await open_queue()  # a door that was started after the end
    waiting = asyncio.create_task(collect(second.door.outcomes(job_ids, PATIENCE_S)))
    other = await claim_one(first.worker)
    await first.worker.finish(other, ok(other, 2.0))
    assert await waiting == [ok(job), ok(other, 2.0)]


async def test_outcomes_come_as_they_are_ready_and_repeated_ids_once(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    a, b = await queue.door.admit([submission(), submission()])
    stream = queue.door.outcomes([a, b, a], PATIENCE_S)
    jobs = {job.id: job for job in await queue.worker.claim("w1", count=2, wait_ms=0)}
    await queue.worker.finish(jobs[b], ok(jobs[b]))
    assert (await anext(stream)).job_id == b
    await queue.worker.finish(jobs[a], ok(jobs[a]))
    assert [o.job_id for o in await collect(stream)] == [a]


async def test_waiting_ends_when_the_time_is_up(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    job_ids = await queue.door.admit([submission(run_id="r")])
    assert await collect(queue.door.outcomes(job_ids, 0.05)) == []
    assert await collect(queue.door.run_outcomes("r", "", 0.05)) == []
    assert queue.door._reader._by_job == {} == queue.door._reader._by_run  # and no watch is left behind


async def test_a_gap_in_the_stream_makes_waiters_look_again(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    door, worker = queue.door, queue.worker
    lost, seen = await door.admit([submission(), submission()])
    waiting = asyncio.create_task(collect(door.outcomes([lost, seen], PATIENCE_S)))
    await asyncio.sleep(0.1)
    jobs = await worker.claim("w1", count=2, wait_ms=0)
    # The door never sees the first entry, because the same transaction removes it.
    async with redis.pipeline(transaction=True) as transaction:
        transaction.hset(KEYS.job(lost), mapping={"state": "done", "outcome": b""})
        transaction.hincrby(KEYS.counts, "finished", 1)
        await transaction.execute()
    await redis.hset(KEYS.job(lost), "outcome", pack_outcome(ok(jobs[0])))
    await worker.finish(jobs[1], ok(jobs[1]))
    assert sorted(o.job_id for o in await waiting) == sorted([lost, seen])


async def test_a_run_is_followed_by_cursor(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await queue.door.admit([submission(run_id="r")] * 3 + [submission(run_id="other")])
    for job in await queue.worker.claim("w1", count=4, wait_ms=0):
        await queue.worker.finish(job, ok(job))
    all_of_run = await collect(queue.door.run_outcomes("r", "", 0))
    assert len(all_of_run) == 3 and len({o.cursor for o in all_of_run}) == 3
    assert await collect(queue.door.run_outcomes("r", all_of_run[0].cursor, 0)) == all_of_run[1:]
    assert await collect(queue.door.run_outcomes("r", all_of_run[-1].cursor, 0)) == []
    with pytest.raises(BadRequest, match="cursor"):
        await collect(queue.door.run_outcomes("r", "yesterday", 0))


async def test_a_run_is_followed_while_it_goes_on(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    stream = queue.door.run_outcomes("r", "", PATIENCE_S)
    for value in (1.0, 2.0):
        next_one = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
        await queue.door.admit([submission(run_id="r")])
        job = await claim_one(queue.worker)
        await queue.worker.finish(job, ok(job, value))
        outcome = await asyncio.wait_for(next_one, PATIENCE_S)
        assert outcome.reward and outcome.reward.combined == value
    await stream.aclose()


async def test_an_observer_sees_every_end_once(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    door, worker = queue.door, queue.worker
    seen: asyncio.Queue[Finished] = asyncio.Queue()
    door.observe(seen.put_nowait)
    await door.admit([submission(), submission(b"")], {1: UnreadableClip("x")})
    job = await claim_one(worker)
    await worker.finish(job, ok(job), batch=7)
    async with asyncio.timeout(PATIENCE_S):
        ends = [await seen.get(), await seen.get()]
    assert [(end.outcome.kind, end.batch) for end in ends] == [(OutcomeKind.INVALID, 0), (OutcomeKind.OK, 7)]
    assert all(end.queue_ms >= 0 for end in ends) and seen.empty()


# --- a Redis in trouble ---------------------------------------------------------------------------


async def test_a_full_redis_admits_nothing_but_still_drains(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    job_ids = await queue.door.admit([submission(b"x" * 100_000) for _ in range(4)])
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Overloaded, match="memory"):
            await queue.door.admit([submission()])
        with pytest.raises(Overloaded, match="memory"):
            await queue.door.admit([submission(b"")], {0: UnreadableClip("x")})
        await queue.worker.announce("w1", model())
        jobs = await queue.worker.claim("w1", count=2, wait_ms=100)
        assert await queue.worker.hand_back("w1", jobs[1:]) == 1
        assert await queue.worker.finish(jobs[0], ok(jobs[0]))
        for _ in range(3):
            job = await claim_one(queue.worker)
            await queue.worker.finish(job, ok(job))
    finally:
        await redis.config_set("maxmemory", 0)
    assert len(await collect(queue.door.outcomes(job_ids, PATIENCE_S))) == 4


async def test_an_emptied_redis_ends_the_wait_and_serves_on(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    [job_id] = await queue.door.admit([submission()])
    job = await claim_one(queue.worker)
    waiting = asyncio.create_task(collect(queue.door.outcomes([job_id], PATIENCE_S)))
    await asyncio.sleep(0.1)
    await redis.flushall()
    await redis.script_flush()
    assert await queue.worker.renew("w1", [job]) == set()
    assert not await queue.worker.finish(job, ok(job))
    [new_id] = await queue.door.admit([submission()])
    new = await claim_one(queue.worker)
    await queue.worker.finish(new, ok(new))
    assert new.id == new_id
    [outcome] = await waiting  # the next job's end shows the gap
    assert outcome.kind is OutcomeKind.FAILED and outcome.error and "without its data" in outcome.error.message


async def test_broken_connections_cost_a_waiter_nothing(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    door, worker = queue.door, queue.worker
    job_ids = await door.admit([submission() for _ in range(10)])
    waiting = asyncio.create_task(collect(door.outcomes(job_ids, PATIENCE_S)))
    done = 0
    while done < 10:
        await redis.client_kill_filter(_type="normal", skipme=True)
        for job in await worker.claim("w1", count=2, wait_ms=50):
            await redis.client_kill_filter(_type="normal", skipme=True)
            done += await worker.finish(job, ok(job))
    assert sorted(o.job_id for o in await waiting) == sorted(job_ids)
    assert (await door.counts())["ok"] == 10


@pytest.mark.parametrize("words", ["MISCONF Redis is configured to save RDB snapshots", "NOREPLICAS Not enough"])
async def test_an_indisposed_redis_is_not_ready(
    open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """With a full disk under the AOF, claims and outcomes must be tried again, and the doors answer 503."""
    queue = await open_queue()

    async def refuse(*_: object, **__: object) -> None:
        raise ResponseError(f"{words}, script: 0a1b, on @user_script:9.")

    monkeypatch.setattr(Redis, "execute_command", refuse)
    with pytest.raises(NotReady, match=words):
        await queue.door.admit([submission(b"a")])


async def test_an_error_names_few_of_many_unknown_jobs(open_queue: OpenQueue) -> None:
    """Thousands of ids would not fit into the trailers of a gRPC call, and the caller would get no error message."""
    queue = await open_queue()
    with pytest.raises(UnknownJob, match=r"job-0, .* and 992 more") as refused:
        [_ async for _ in queue.door.outcomes([f"job-{number}" for number in range(1000)], PATIENCE_S)]
    assert len(str(refused.value)) < 300


async def test_what_is_staged_goes_when_its_request_does_not_come_in(
    open_queue: OpenQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise every refused request would fill a Redis at its limit further, for two minutes."""
    monkeypatch.setattr(admission, "SENT_BYTES", 0)
    queue = await open_queue()
    put, calls = RedisLink.put, 0

    async def fill_up(link: RedisLink, key: str, value: bytes, *, life_s: int) -> None:
        nonlocal calls
        if (calls := calls + 1) > 1:
            raise Overloaded("Redis is at its memory limit", retry_after_s=1.0)
        await put(link, key, value, life_s=life_s)

    monkeypatch.setattr(RedisLink, "put", fill_up)
    with pytest.raises(Overloaded):
        await queue.door.admit([submission(b"a"), submission(b"b")])
    assert calls == 2 and await redis.keys("*payload*") == []


async def test_a_group_needs_a_worker_that_reported_its_version(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    """If it were admitted before, workers with different versions could score parts of the group."""
    queue = await open_queue(make_settings(result_ttl_s=10))
    for run_id in ("r", ""):
        with pytest.raises(NotReady, match="'g'"):
            await queue.door.admit([submission(), submission(run_id=run_id, group_id="g")])
    assert (await queue.door.depth()).jobs == 0 and await redis.keys("*payload*") == []
    assert await queue.door.admit([submission(run_id="r", group_id="g", discriminator_version="v1")])
    await queue.worker.announce("w1", model("v2"))
    with pytest.raises(VersionConflict):
        await queue.door.admit([submission(run_id="r", group_id="g", discriminator_version="v2")])
    assert await queue.door.admit([submission(run_id="r", group_id="h")])
    job_life_s = make_settings().job_ttl_s  # the group must stay bound as long as a job may wait
    assert {await redis.ttl(key) > job_life_s - 60 for key in await redis.keys("*:group:*")} == {True}


async def test_no_redis_is_not_ready(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    settings = make_settings(redis_url=SecretStr("redis://127.0.0.1:1/0"))
    queue = await open_queue(settings)
    door, worker = queue.door, queue.worker
    for call in (door.admit([submission()]), door.models(), door.depth(), worker.claim("w1", count=1, wait_ms=0)):
        with pytest.raises(NotReady, match="does not answer"):
            await call
