"""Tests the results stream as a trainer reads it: with a plain redis client, a consumer group, and protos only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from protos.explanation import Explanation
from protos.results import outcome_of, results_key
from protos.types import ContractError, Outcome, OutcomeKind
from reward_server.errors import ClipTooShort, error_outcome
from tests.conftest import OpenQueue, Queue
from tests.reward_server.test_jobs import KEYS, claim_one, collect, ok, submission

KEY = results_key("embedded", "run-1")


async def finish_one(queue: Queue, value: float) -> Outcome:
    await queue.door.admit([submission(run_id="run-1")])
    job = await claim_one(queue.worker)
    outcome = ok(job, value)
    assert await queue.worker.finish(job, outcome)
    return outcome


async def read(redis: Redis, consumer: str, since: str) -> list[tuple[bytes, Outcome]]:
    """New entries (`since` is ">"), or those that the consumer has read and not acknowledged (`since` is "0")."""
    answer: Any = await redis.xreadgroup("trainer", consumer, {KEY: since})
    return [(entry, outcome_of(fields)) for _, entries in answer for entry, fields in entries]


async def test_a_run_s_stream_holds_every_outcome_as_it_is_awaited(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    good = await finish_one(queue, 1.5)
    [bad_id] = await queue.door.admit([submission(run_id="run-1")])
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, error_outcome(bad_id, ClipTooShort("3 frames"), job.context))
    await queue.worker.finish(job, ok(job))  # too late: the first outcome stays
    await queue.door.admit([submission(run_id="another")])
    entries = await redis.xrange(KEY)
    assert [fields[b"job"].decode() for _, fields in entries] == [good.job_id, bad_id]
    outcomes = [outcome_of(fields) for _, fields in entries]
    assert outcomes == [await queue.door.outcome(good.job_id), await queue.door.outcome(bad_id)]
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.OK, OutcomeKind.INVALID]


async def test_an_explanation_lives_no_longer_than_the_result(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    [job_id] = await queue.door.admit([submission(run_id="run-1", explain=True)])
    job = await claim_one(queue.worker)
    reward = replace(ok(job).reward, explanation=Explanation(windows=(), reduced="much"))  # type: ignore[type-var]
    await queue.worker.finish(job, replace(ok(job), reward=reward))
    [(_, entry)] = await redis.xrange(KEY)
    assert outcome_of(entry) == ok(job)
    [told] = await collect(queue.door.run_outcomes("run-1", "", 0))
    assert told.reward == (await queue.door.outcome(job_id)).reward == reward  # type: ignore[union-attr]
    await redis.delete(KEYS.job(job_id))  # as if the result had expired
    [told] = await collect(queue.door.run_outcomes("run-1", "", 0))
    assert told.reward == ok(job).reward


async def test_a_late_group_gets_old_and_unacknowledged_entries(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    outcomes = [await finish_one(queue, value) for value in (1.0, 2.0, 3.0)]
    await redis.xgroup_create(KEY, "trainer", id="0")
    first = await read(redis, "rank-0", ">")
    assert [outcome for _, outcome in first] == outcomes
    await redis.xack(KEY, "trainer", first[0][0])
    assert [outcome for _, outcome in await read(redis, "rank-0", "0")] == outcomes[1:]  # after a crash
    assert await read(redis, "rank-0", ">") == []


def test_an_entry_without_an_outcome_is_named() -> None:
    for trimmed in ({}, {b"job": b"1"}):
        with pytest.raises(ContractError, match="no outcome") as error:
            outcome_of(trimmed)
        assert error.value.code == "bad_result"


async def test_an_error_with_a_lone_surrogate_becomes_an_outcome(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    [job_id] = await queue.door.admit([submission(run_id="run-1")])
    job = await claim_one(queue.worker)
    outcome = error_outcome(job_id, ClipTooShort("dtype \ud800"), job.context)
    assert await queue.worker.finish(job, outcome)
    assert outcome.error and outcome.error.message == "dtype \\ud800"
