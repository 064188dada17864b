"""Tests dead letters: what is kept of a job that was given up, its replay as a new job, and `motion-reward jobs`."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from protos.types import OutcomeKind, Submission
from reward_server.__main__ import app
from reward_server.errors import BadRequest, NotReady, Overloaded, UnknownJob, VersionConflict
from reward_server.queue.dead_letters import DeadLetter
from reward_server.serving.operate import which_letters
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reward_server.test_bindings import KEYS
from tests.reward_server.test_jobs import PATIENCE_S, claim_one, collect, model, ok, submission
from tests.running import Doors, open_doors

DEADLY = {"lease_s": 0.05, "max_attempts": 1}


async def die(queue: Queue, *clips: Submission, owner: str = "") -> list[str]:
    """Admit the clips, and let their workers die. Returns the ids of the jobs that were given up, in order."""
    ids = []
    for clip in clips:
        [job_id] = await queue.door.admit([clip], owner=owner)
        assert (await claim_one(queue.worker, "dying")).id == job_id
        async with asyncio.timeout(PATIENCE_S):
            while await queue.door.outcome(job_id) is None:
                assert await queue.worker.claim("next", count=1, wait_ms=20) == []
        ids.append(job_id)
    return ids


async def letters(queue: Queue, run_id: str = "") -> list[DeadLetter]:
    return await queue.door.dead_letters.letters(run_id)


# --- what is kept ---------------------------------------------------------------------------------


async def test_a_letter_keeps_the_clip_and_its_context(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await open_queue(make_settings(**DEADLY, dead_letter_ttl_s=5000))
    await queue.worker.announce("w1", model())
    clip = submission(b"deadly", run_id="r", group_id="g", query_seed=2**64 - 1, idempotency_key="k")
    first, second = await die(queue, clip, submission(b"other"))
    one, other = await letters(queue)
    assert (one.job_id, other.job_id) == (first, second) and one.ended_s <= other.ended_s
    assert (one.run_id, one.context, one.media, one.num_bytes) == ("r", clip.context, clip.media, 6)
    assert one.attempts == 2 and "1 workers (max_attempts) died" in one.reason
    assert await letters(queue, "r") == [one] and await letters(queue, "other") == []
    lives_s = [await redis.ttl(key) for key in (KEYS.dead, KEYS.dead_payload(first))]
    assert all(4900 < life_s <= 5000 for life_s in lives_s)
    assert await redis.exists(KEYS.payload(first)) == 0 and (await queue.door.depth()).bytes == 0


async def test_other_ends_keep_no_clip(open_queue: OpenQueue, redis: Redis) -> None:
    queue = await open_queue()
    await queue.door.admit([submission()])
    job = await claim_one(queue.worker)
    await queue.worker.finish(job, ok(job))
    assert await redis.keys("*dead*") == []


async def test_clips_of_the_oldest_letters_go_first(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await open_queue(make_settings(**DEADLY, dead_letter_max_bytes=25))
    await die(queue, *(submission(bytes(10)) for _ in range(3)))
    assert [letter.num_bytes for letter in await letters(queue)] == [0, 10, 10]
    [large] = await die(queue, submission(bytes(26)))
    assert [letter.num_bytes for letter in await letters(queue)] == [0, 0, 0, 0]
    replayed = await queue.door.dead_letters.replay(await queue.door.dead_letters.chosen([large]))
    assert replayed.gone == (large,) and replayed.jobs == {} and len(await letters(queue)) == 4


# --- replay and drop ------------------------------------------------------------------------------


async def test_a_replay_is_a_new_job_with_the_same_clip_and_group(
    open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis
) -> None:
    queue = await open_queue(make_settings(**DEADLY))
    await queue.worker.announce("w1", model("v1"))
    clip = submission(b"deadly", run_id="r", group_id="g", idempotency_key="k")
    [died] = await die(queue, clip)
    await queue.worker.announce("w1", model("v2"))

    replayed = await queue.door.dead_letters.replay(await letters(queue))
    assert replayed.gone == () and list(replayed.jobs) == [died] and await letters(queue) == []
    job = await claim_one(queue.worker)
    assert job.id == replayed.jobs[died] != died and job.attempts == 1
    assert (job.context.run_id, job.context.group_id, job.version) == ("r", "g", "v1")  # the version of its group
    assert await queue.worker.payload(job) == b"deadly"
    await queue.worker.finish(job, ok(job))
    outcomes = await collect(queue.door.run_outcomes("r", "", 0))
    assert [(o.job_id, o.kind) for o in outcomes] == [(died, OutcomeKind.FAILED), (job.id, OutcomeKind.OK)]
    assert await queue.door.admit([clip]) == [died]  # what the submitter was told stays
    assert await redis.keys("*dead-payload*") == []


async def test_a_replay_belongs_to_the_same_api_key(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    """Its job id begins with the key's, and a group without a run stays that key's."""
    queue = await open_queue(make_settings(**DEADLY))
    await queue.worker.announce("w1", model("v1"))
    [died] = await die(queue, submission(b"deadly", group_id="g"), owner="5f0c9a3e")
    await queue.worker.announce("w1", model("v2"))
    with pytest.raises(VersionConflict, match="group 'g' is scored with discriminator version 'v1'"):
        await queue.door.dead_letters.replay(await letters(queue))
    await queue.worker.announce("w1", model("v1"))
    replayed = await queue.door.dead_letters.replay(await letters(queue))
    assert replayed.jobs[died].startswith("5f0c9a3e-") and replayed.jobs[died] != died


async def test_a_replay_that_is_repeated_scores_once(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    """As if the server had ended between the new job and the end of the letter."""
    queue = await open_queue(make_settings(**DEADLY))
    await die(queue, submission())
    kept = await letters(queue)
    payload = await queue.door._link.get(KEYS.dead_payload(kept[0].job_id))
    first = await queue.door.dead_letters.replay(kept)
    assert payload
    await queue.door._link.put(KEYS.dead_payload(kept[0].job_id), payload, life_s=100)
    assert (await queue.door.dead_letters.replay(kept)).jobs == first.jobs
    assert (await queue.door.depth()).jobs == 1


async def test_letters_that_find_no_room_are_kept(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue(make_settings(**DEADLY, queue_max_jobs=1))
    _, second = await die(queue, submission(), submission())
    with pytest.raises(Overloaded):
        await queue.door.dead_letters.replay(await letters(queue))
    assert [letter.job_id for letter in await letters(queue)] == [second]


async def test_a_clip_that_kills_again_is_a_letter_again(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    queue = await open_queue(make_settings(**DEADLY))
    [died] = await die(queue, submission(b"deadly"))
    new_id = (await queue.door.dead_letters.replay(await letters(queue))).jobs[died]
    await claim_one(queue.worker, "dying")
    while await queue.door.outcome(new_id) is None:
        await queue.worker.claim("next", count=1, wait_ms=20)
    [letter] = await letters(queue)
    assert letter.job_id == new_id and letter.num_bytes == 6


async def test_dropped_letters_are_gone(open_queue: OpenQueue, make_settings: MakeSettings, redis: Redis) -> None:
    queue = await open_queue(make_settings(**DEADLY))
    first, second = await die(queue, submission(), submission())
    chosen = await queue.door.dead_letters.chosen([second])
    assert [await queue.door.dead_letters.drop(chosen) for _ in range(2)] == [1, 0]
    with pytest.raises(UnknownJob, match=rf"no dead letter of job {second}: .*jobs list"):
        await queue.door.dead_letters.chosen([first, second])
    assert await redis.exists(KEYS.dead_payload(second)) == 0 != await redis.exists(KEYS.dead_payload(first))


# --- the command ----------------------------------------------------------------------------------


async def command(doors: Doors, *words: str) -> str:
    result = await asyncio.to_thread(
        CliRunner().invoke, app, ["jobs", *words, "--server", doors.http_url], env={"COLUMNS": "300"}
    )
    if result.exception:
        raise result.exception
    return "\n".join(line for line in result.output.splitlines() if "[info" not in line)  # without the server's own log


async def test_the_command_lists_shows_replays_and_drops(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    settings = make_settings(**DEADLY)
    queue = await open_queue(settings)
    one, two, three = await die(queue, submission(run_id="a"), submission(run_id="b"), submission(run_id="b"))
    async with open_doors(settings) as doors:
        listed = await command(doors, "list")
        assert [line.split()[:2] for line in listed.splitlines() if "workers" in line] == [
            [one, "a"],
            [two, "b"],
            [three, "b"],
        ]
        assert one not in await command(doors, "list", "--run", "b")
        assert json.loads(await command(doors, "show", two))["context"]["run_id"] == "b"
        assert (await command(doors, "replay", one)).startswith(f"{one} is replayed as ")
        assert await command(doors, "drop", "--run", "b") == "dropped 2 dead letters"
        assert await command(doors, "replay", "--all") == "no dead letters"
        with pytest.raises(Exception, match=f"unknown_job: no dead letter of job {two}"):
            await command(doors, "show", two)
        doors.service.stop()
        with pytest.raises(NotReady):
            await doors.service.replay([])
    assert (await queue.door.depth()).jobs == 1


@pytest.mark.parametrize("given", [([], "", False), (["j"], "r", False), (["j"], "", True), ([], "r", True)])
def test_exactly_one_way_to_choose_letters(given: tuple[list[str], str, bool]) -> None:
    with pytest.raises(BadRequest, match="exactly one of the three"):
        which_letters(*given)
