"""A small request does not wait behind the many jobs of another run: API keys take turns, and within a key its runs."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from protos.types import OutcomeKind
from reward_server.queue import scripts
from reward_server.queue.scripts import GROUP
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reward_server.test_bindings import KEYS
from tests.reward_server.test_jobs import claim_one, collect, model, ok, submission
from tests.reward_server.test_lanes import NEW, OLD, announce, claims

AHEAD = 4  # as in lua/shared/turns.lua
PATIENCE_S = 20.0


@pytest.fixture
async def queue(open_queue: OpenQueue, make_settings: MakeSettings) -> Queue:
    """A queue from which nothing that was claimed comes back."""
    return await open_queue(make_settings(lease_s=1000))


async def admit(queue: Queue, num: int, run_id: str = "", owner: str = "", **context: object) -> list[str]:
    """Jobs by requests of 48, as a trainer sends them."""
    ids: list[str] = []
    while len(ids) < num:
        clips = [submission(run_id=run_id, **context)] * min(48, num - len(ids))
        ids += await queue.door.admit(clips, owner=owner)
    return ids


async def claimed_runs(queue: Queue, num: int, count: int = 8) -> list[str]:
    """The runs of the next `num` jobs, in the order in which a worker claims them."""
    runs: list[str] = []
    while len(runs) < num and (jobs := await queue.worker.claim("w", count=min(count, num - len(runs)), wait_ms=0)):
        assert len(jobs) <= count
        runs += [job.context.run_id for job in jobs]
    return runs


@pytest.mark.parametrize("count", [1, 8])
async def test_a_small_request_does_not_wait_behind_a_large_run(queue: Queue, count: int) -> None:
    """768 jobs of one run kept a request of one clip waiting for 17 s, which is scored in 0.17 s."""
    await admit(queue, 768, "large")
    await claimed_runs(queue, 40, count)
    await admit(queue, 1, "")
    assert "" in await claimed_runs(queue, AHEAD + 2, count)
    rest = await claimed_runs(queue, 1000, count)
    assert rest == ["large"] * (768 - 40 - AHEAD - 1)


async def test_the_jobs_of_each_run_keep_their_order(queue: Queue) -> None:
    ids = {run: await admit(queue, 100, run) for run in "ab"}
    jobs = [job for _ in range(30) for job in await queue.worker.claim("w", count=8, wait_ms=0)]
    for run, wanted in ids.items():
        assert [job.id for job in jobs if job.context.run_id == run] == wanted


async def test_keys_take_turns_and_within_a_key_its_runs(queue: Queue) -> None:
    for run, owner in (("a:1", "aaaa"), ("a:2", "aaaa"), ("a:3", "aaaa"), ("b:1", "bbbb")):
        await admit(queue, 96, run, owner)
    taken = Counter((await claimed_runs(queue, AHEAD + 72))[AHEAD:])
    assert abs(taken["b:1"] - 36) <= 2
    assert all(abs(taken[run] - 12) <= 2 for run in ("a:1", "a:2", "a:3"))


async def test_a_lane_is_as_fair_as_the_queue(queue: Queue) -> None:
    await announce(queue, OLD, NEW)
    for run in ("large", "small"):
        await admit(queue, 60 if run == "large" else 1, run, discriminator_version="pixels-1")
    while await _waits(queue, ""):  # all go on to the lane of the other version
        assert not await claims(queue, NEW)
    assert not await claims(queue, NEW)
    jobs = [job.context.run_id for job in await queue.worker.claim("w", count=8, wait_ms=0, model=OLD)]
    assert len(jobs) == 8 and "small" in jobs


async def _waits(queue: Queue, line: str) -> bool:
    return bool(await queue.worker._link.list_items(f"{KEYS.prefix}:turns:{line}", 0, -1))


async def test_a_lane_without_a_worker_tells_all_its_jobs(queue: Queue) -> None:
    await announce(queue, OLD, NEW)
    await admit(queue, 30, "r", discriminator_version="pixels-1")
    await queue.worker.leave("worker of pixels-1")
    while await _waits(queue, ""):
        assert not await claims(queue, NEW)
    assert not await claims(queue, NEW)
    assert await queue.door.unjudged() == {"pixels-1": 30}


async def test_what_ends_while_it_waits_leaves_nothing_behind(queue: Queue, redis: Redis) -> None:
    await queue.worker.announce("w", model())
    late = await admit(queue, 30, "r", owner="aaaa", deadline_s=0.05)
    [kept] = await admit(queue, 1, "r", owner="aaaa")
    outcomes = await collect(queue.door.outcomes(late, PATIENCE_S))
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.TIMEOUT}
    job = await claim_one(queue.worker)
    assert job.id == kept and await queue.worker.finish(job, ok(job))
    left = [key.decode().removeprefix(KEYS.prefix + ":") for key in await redis.keys("*")]
    assert not [key for key in left if key.startswith(("turns", "waiting"))] and await redis.xlen(KEYS.queue) == 0


async def test_a_claim_whose_answer_was_lost_is_answered_again_with_all_its_jobs(queue: Queue, redis: Redis) -> None:
    ids = await admit(queue, 30, "r")
    [(_, read)] = await redis.xreadgroup(GROUP, "w", {KEYS.queue: ">"}, count=8)
    pairs = [part for entry, fields in read for part in (entry, fields[b"job"])]
    answers = [await queue.worker._link.run(scripts.CLAIM, "w", "token", 8, "", "", *pairs) for _ in range(2)]
    assert answers[0] and [[row[0] for row in rows] for rows in answers] == [[row[0] for row in answers[0]]] * 2
    assert [row[1].decode() for row in answers[1]] == ids[:8] and {row[2] for row in answers[1]} == {1}


async def test_a_worker_that_dies_between_its_two_steps_holds_up_nobody(queue: Queue, redis: Redis) -> None:
    """It has read the entries that were ahead, but let no others in."""
    await admit(queue, 30, "r")
    [(_, read)] = await redis.xreadgroup(GROUP, "dying", {KEYS.queue: ">"}, count=8)
    assert len(read) == AHEAD
    assert await queue.worker.claim("w", count=8, wait_ms=0, abandoned=False) == []  # it finds none, and lets some in
    assert len(await queue.worker.claim("w", count=8, wait_ms=0, abandoned=False)) == 8
