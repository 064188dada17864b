"""Outcomes that are ready at the same time go to Redis together, and a job costs Redis few commands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from protos.types import Origin
from reward_server.errors import NotReady
from reward_server.queue import scripts
from reward_server.queue.redis_link import RedisLink
from tests.conftest import MakeSettings, OpenQueue
from tests.reward_server.test_bindings import KEYS
from tests.reward_server.test_jobs import PATIENCE_S, collect, model, ok, submission

NUM = 8


async def test_outcomes_of_a_batch_are_stored_in_one_transaction(
    open_queue: OpenQueue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With those of several owners and runs, one job twice, and one that is unknown."""
    queue = await open_queue()
    sent: list[int] = []
    run = RedisLink.run

    async def noted(link: RedisLink, script: Any, *args: Any) -> Any:
        if script is scripts.FINISH:
            sent.append((len(args) - 1) // 5)
        return await run(link, script, *args)

    monkeypatch.setattr(RedisLink, "run", noted)
    ids = await queue.door.admit([submission(run_id="a")] * 4 + [submission()] * 2)
    ids += await queue.door.admit([submission(run_id="aa:b")] * 2, owner="aa")
    jobs = [job for _ in range(4) for job in await queue.worker.claim("w", count=NUM, wait_ms=0)]
    assert sorted(job.id for job in jobs) == sorted(ids)
    asked = [*jobs, jobs[0]]
    firsts = await asyncio.gather(*(queue.worker.finish(job, ok(job)) for job in asked))
    assert firsts == [True] * NUM + [False] and sent == [NUM + 1]
    outcomes = await collect(queue.door.outcomes(ids, PATIENCE_S))
    assert sorted(outcome.job_id for outcome in outcomes) == sorted(ids)
    for run_id, num in (("a", 4), ("aa:b", 2)):
        assert len(await collect(queue.door.run_outcomes(run_id, "", 0))) == num
    counts = await queue.door.counts()
    assert (counts["admitted"], counts["finished"], counts["ok"]) == (NUM, NUM, NUM)
    assert await redis.hgetall(KEYS.depth) == {b"jobs": b"0", b"cost": b"0", b"bytes": b"0"}
    assert await redis.xlen(KEYS.queue) == 0 and not await redis.keys("*owned*")
    entries: Any = await redis.xrange(KEYS.finished)
    assert [int(fields[b"number"]) for _, fields in entries] == list(range(1, NUM + 1))


async def test_everyone_hears_of_an_outage_and_can_try_again(
    open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = await open_queue()
    await queue.door.admit([submission()] * 4)
    jobs = await queue.worker.claim("w", count=4, wait_ms=0)
    run, broken = RedisLink.run, True

    async def away(link: RedisLink, script: Any, *args: Any) -> Any:
        if script is scripts.FINISH and broken:
            raise NotReady("Redis does not answer")
        return await run(link, script, *args)

    monkeypatch.setattr(RedisLink, "run", away)
    told = await asyncio.gather(*(queue.worker.finish(job, ok(job)) for job in jobs), return_exceptions=True)
    assert [type(error) for error in told] == [NotReady] * 4
    broken = False
    waiting = [asyncio.create_task(queue.worker.finish(job, ok(job))) for job in jobs]
    await asyncio.sleep(0)
    waiting[0].cancel()  # one that leaves takes no other with it
    assert await asyncio.gather(*waiting[1:]) == [True] * 3


async def test_a_job_costs_few_commands(open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis) -> None:
    """80 for a clip alone, when each script did its work job by job and claims looked for more jobs in vain."""
    queue = await open_queue(make_settings(lease_s=1000))
    await queue.worker.announce("w", model())

    async def commands(requests: int, clips: int) -> float:
        """For a job of so many requests, from admission to its outcome, as a loaded worker works."""
        before = await total(redis)
        for _ in range(requests):
            await queue.door.admit([submission(run_id="r", origin=Origin.REAL)] * clips)
        done = 0
        while jobs := await queue.worker.claim("w", count=NUM, wait_ms=0, abandoned=False, model=model()):
            for job in jobs:
                assert await queue.worker.payload(job) == b"clip"
            await asyncio.gather(*(queue.worker.finish(job, ok(job)) for job in jobs))
            done += len(jobs)
        assert done == requests * clips
        return (await total(redis) - before) / done

    assert await commands(1, 64) < 20
    assert await commands(32, 1) < 36


async def total(redis: Redis) -> int:
    """Commands so far, those in scripts too."""
    return sum(row["calls"] for row in (await redis.info("commandstats")).values())
