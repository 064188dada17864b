"""Tests `motion-reward versions` and its routes: what is told of a version, and rolling a run back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from protos.client import AsyncRewardClient
from reward_server.__main__ import app
from reward_server.errors import BadRequest, RefreshRunning, UnknownRun, VersionNotServed
from reward_server.pipeline import Pipeline
from reward_server.queue.run_store import Version
from reward_server.serving.operate import server_at
from reward_server.settings import Settings
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reward_server.test_bindings import KEYS
from tests.reward_server.test_jobs import claim_one, model, submission
from tests.reward_server.test_refresh import QUICK, RESPONSE, claimed, rewards, served
from tests.reward_server.test_refresh import submission as moving
from tests.reward_server.test_refresh import version as version_of
from tests.run_clips import fill
from tests.running import Doors, open_doors


async def publish(queue: Queue, name: str, parent: str = "v1") -> None:
    """Publish a version of run-1 that nobody has trained, of the base version v1."""
    refresh = await claimed(queue, QUICK)
    await queue.worker.store.stage(name, b"discriminators", b"training")
    number = await queue.worker.store.next_number("run-1")
    version = Version(name=name, digest=f"digest of {name}", number=number, base="v1", preprocessing_digest="p")
    response = replace(RESPONSE, discriminator_version=name, previous_version=parent)
    assert await queue.worker.refreshes.publish(refresh, version, response)


async def refreshed(open_queue: OpenQueue, *names: str) -> Queue:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    await queue.worker.announce("w1", model())
    for parent, name in zip(("v1", *names), names, strict=False):
        await publish(queue, name, parent)
    return queue


async def scored_by(queue: Queue) -> str:
    """The version that a new clip of the run is bound to."""
    await queue.door.admit([submission(run_id="run-1")])
    return (await claim_one(queue.worker)).version


# --- lists and records ----------------------------------------------------------------------------


async def test_a_version_tells_its_parent_digest_and_training(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=2)
    async with served(make_settings(), small_pipeline) as doors:
        first, second = [await doors.service.refresh(replace(QUICK, steps=1)) for _ in range(2)]
        history = await doors.service.history.history("run-1")
    assert history.latest == second.discriminator_version and [v.version.number for v in history.versions] == [2, 1]
    newest, oldest = history.versions
    assert (newest.training, oldest.training) == (second, first)
    assert newest.training.previous_version == oldest.version.name
    assert oldest.training.previous_version == oldest.version.base == newest.version.base == "untrained"
    assert newest.version.digest == second.weights_digest
    assert newest.version.preprocessing_digest == small_pipeline.model.preprocessing_digest
    assert not newest.retired and newest.bound == 0 and 0 <= newest.published_s - oldest.published_s < 1000


async def test_a_replaced_version_can_be_shown_while_something_is_bound_to_it(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue = await open_queue(make_settings(versions_kept=1))
    await fill(queue.worker.store, "run-1", num=2)
    await publish(queue, "first")
    await queue.door.admit([submission(run_id="run-1")] * 3)
    await publish(queue, "second")
    assert [v.version.name for v in (await queue.door.history.history("run-1")).versions] == ["second"]
    shown = await queue.door.history.version("first")
    assert shown.retired and shown.bound == 3
    with pytest.raises(VersionNotServed, match=r"'third'.*versions list"):
        await queue.door.history.version("third")


async def test_runs_are_listed_by_name_whatever_they_are_called(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    names = ["a:b/c", "run*", "run-1"]
    for run_id in names:
        await fill(queue.worker.store, run_id, num=2)
        refresh = await claimed(queue, replace(QUICK, run_id=run_id))
        await queue.worker.store.stage(run_id, b"d", b"t")
        await queue.worker.refreshes.publish(refresh, Version(name=run_id, digest="0", number=1), RESPONSE)
    assert await queue.door.history.runs() == names
    with pytest.raises(UnknownRun, match="'run' has no versions"):
        await queue.door.history.history("run")


# --- going back -----------------------------------------------------------------------------------


async def test_a_run_goes_back_and_forth_and_on_to_the_base(open_queue: OpenQueue) -> None:
    queue = await refreshed(open_queue, "a", "b")
    history = queue.door.history
    assert await history.roll_back("run-1", "a") == "b" and await scored_by(queue) == "a"
    assert await history.roll_back("run-1", "a") == "a" and await scored_by(queue) == "a"
    assert await history.roll_back("run-1", "b") == "a" and await scored_by(queue) == "b"
    assert await history.roll_back("run-1", "v1") == "b" and await scored_by(queue) == "v1"
    assert await queue.door.store.latest("run-1") is None  # the next refresh starts from what workers have loaded
    found = await history.history("run-1")
    assert found.latest == "v1" and {v.version.name for v in found.versions} == {"a", "b"}


async def test_what_is_bound_to_a_version_stays_bound_after_going_back(open_queue: OpenQueue) -> None:
    queue = await refreshed(open_queue, "a", "b")
    await queue.door.admit([submission(run_id="run-1", group_id="g")])
    await queue.door.history.roll_back("run-1", "a")
    await queue.door.admit([submission(run_id="run-1", group_id="g"), submission(run_id="run-1")])
    assert [(await claim_one(queue.worker)).version for _ in range(3)] == ["b", "b", "a"]


async def test_a_refresh_after_going_back_starts_there_and_gets_a_new_number(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=2)
    async with served(make_settings(), small_pipeline) as doors, AsyncRewardClient(doors.grpc_url) as client:
        first = (await doors.service.refresh(QUICK)).discriminator_version
        second = (await doors.service.refresh(QUICK)).discriminator_version
        await doors.service.history.roll_back("run-1", first)
        assert (await client.model("run-1")).discriminator_version == first
        [reward] = await rewards(doors, moving())
        assert version_of(reward) == first
        third = await doors.service.refresh(replace(QUICK, seed=5))
    assert third.previous_version == first and third.discriminator_version.startswith("untrained+run-1.3-")
    assert len({first, second, third.discriminator_version}) == 3


async def test_the_same_version_published_again_is_in_the_list_once(open_queue: OpenQueue, redis: Redis) -> None:
    """The same clips and seed give the same weights after going back."""
    queue = await refreshed(open_queue, "a", "b")
    await queue.door.history.roll_back("run-1", "a")
    await publish(queue, "b", "a")
    assert await redis.lrange(KEYS.versions("run-1"), 0, -1) == [b"b", b"a"]


async def test_a_rollback_is_refused_with_what_could_be_done(open_queue: OpenQueue) -> None:
    queue = await refreshed(open_queue, "a", "b")
    with pytest.raises(VersionNotServed, match="cannot go back to 'c'; it can go back to: a, b, v1"):
        await queue.door.history.roll_back("run-1", "c")
    with pytest.raises(UnknownRun, match="'run-2' has no versions"):
        await queue.door.history.roll_back("run-2", "a")
    await queue.door.refreshes.admit(QUICK)
    with pytest.raises(RefreshRunning, match="wait for that refresh"):
        await queue.door.history.roll_back("run-1", "a")


# --- the command ----------------------------------------------------------------------------------


async def command(doors: Doors, *words: str) -> str:
    result = await asyncio.to_thread(
        CliRunner().invoke, app, ["versions", *words, "--server", doors.http_url], env={"COLUMNS": "200"}
    )
    if result.exception:
        raise result.exception
    return "\n".join(line for line in result.output.splitlines() if "[info" not in line)  # without the server's own log


async def test_the_command_lists_shows_and_rolls_back(open_queue: OpenQueue, make_settings: MakeSettings) -> None:
    await refreshed(open_queue, "a", "b")
    async with open_doors(make_settings()) as doors:
        listed = (await command(doors, "list")).splitlines()
        assert [line.split()[:4] for line in listed if "run-1" in line] == [
            ["run-1", "b", "2", "a"],
            ["run-1", "a", "1", "v1"],
        ]
        assert await command(doors, "list", "--run", "run-1") == await command(doors, "list")
        shown = json.loads(await command(doors, "show", "b"))
        assert (shown["parent"], shown["digest"], shown["training"]["steps"]) == ("a", "digest of b", RESPONSE.steps)
        assert "scored by 'a', and no longer by 'b'" in await command(doors, "rollback", "run-1", "a")
        assert "already the latest" in await command(doors, "rollback", "run-1", "a")
        await command(doors, "rollback", "run-1", "v1")
        assert "rolled back to the base version" in await command(doors, "list")
        with pytest.raises(Exception, match=r"version_not_served: .*it can go back to: a, b, v1"):
            await command(doors, "rollback", "run-1", "typo")
        with pytest.raises(Exception, match=r"unknown_run: .*'run-2'"):
            await command(doors, "list", "--run", "run-2")


def test_only_http_has_these_operations() -> None:
    with pytest.raises(BadRequest, match=r"'grpc://x:1' is no HTTP address"), server_at("grpc://x:1", Settings()):
        pass
