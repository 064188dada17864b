"""Tests that a version can be fetched and, after Redis lost it, restored by its run, and by nothing else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis
from safetensors.numpy import load_file, save_file

from protos.client import RequestRefused, RewardClient
from protos.client.version_files import read_header
from protos.json_codec import to_json
from reward_server.errors import BadRequest
from reward_server.pipeline import Pipeline
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.run_store import RunStore
from reward_server.weights_file import header_of
from tests.conftest import MakeSettings, OpenQueue
from tests.reward_server.test_refresh import QUICK, rewards, served, submission, version
from tests.reward_server.test_worker import until_async
from tests.run_clips import fill
from tests.running import Doors

WAIT_S = 60.0


async def test_a_lost_version_scores_as_before_once_it_is_restored(
    make_settings: MakeSettings,
    small_pipeline: Pipeline,
    open_queue: OpenQueue,
    redis: Redis,
    tmp_path: Path,
) -> None:
    store: RunStore = (await open_queue()).worker.store
    await fill(store, "run-1", num=2)
    request = replace(QUICK, steps=1, keep_optimizer=True)
    async with served(make_settings(versions_loaded=1), small_pipeline) as doors:
        with RewardClient(doors.grpc_url) as client:
            names = [(await asyncio.to_thread(client.refresh, request)).discriminator_version for _ in range(2)]
            folders = [tmp_path / "one", tmp_path / "two"]
            for name, folder in zip(names, folders, strict=True):
                found = await asyncio.to_thread(client.fetch_version, "run-1", name, folder, WAIT_S)
                assert found == read_header(folder) and found.version == name
            assert any(name.startswith("optimizer.") for name in load_file(folders[1] / "training.safetensors"))
            [before] = await rewards(doors, submission())
            assert version(before) == names[1]
            assert not await asyncio.to_thread(client.restore_version, folders[0], WAIT_S)  # it is there

            await redis.flushall()
            await until_async(lambda: is_ready(doors))  # the worker has to announce itself again
            with pytest.raises(RequestRefused, match="version_not_served"):
                await asyncio.to_thread(client.version, "run-1", names[0])
            await refused(client, folders[0], tmp_path)
            with pytest.MonkeyPatch.context() as patch:
                send_one_chunk_twice(patch)
                for folder in reversed(folders):  # the latest stays the latest
                    assert await asyncio.to_thread(client.restore_version, folder, WAIT_S)
            history = await doors.service.history.history("run-1")
            assert history.latest == names[1] and [v.version.name for v in history.versions] == names[::-1]
            assert history.versions[0].training.previous_version == names[0]
            assert await asyncio.to_thread(client.version, "run-1", names[1]) == read_header(folders[1])
            [after] = await rewards(doors, submission())
            assert after.logits == before.logits and version(after) == names[1]
            await fill(store, "run-1", num=2)
            third = await asyncio.to_thread(client.refresh, replace(request, seed=1))
            assert third.previous_version == names[1] and "+run-1.3-" in third.discriminator_version


def send_one_chunk_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As redis-py does when the answer to a command is lost."""
    append, sent = RedisLink.append, list[str]()

    async def twice(link: RedisLink, key: str, chunk: bytes, *, life_s: int) -> None:
        for _ in range(1 if sent else 2):
            await append(link, key, chunk, life_s=life_s)
        sent.append(key)

    monkeypatch.setattr(RedisLink, "append", twice)


async def is_ready(doors: Doors) -> bool:
    return (await doors.service.readiness()).ready


async def refused(client: RewardClient, folder: Path, tmp_path: Path) -> None:
    """Other runs, damaged files and other networks are refused, and nothing of them is kept."""
    header = read_header(folder)

    async def told(name: str, **changed: object) -> str:
        copy = tmp_path / name
        copy.mkdir(exist_ok=True)
        for file in ("scoring", "training"):
            if not (copy / f"{file}.safetensors").exists():
                (copy / f"{file}.safetensors").write_bytes((folder / f"{file}.safetensors").read_bytes())
        (copy / "version.json").write_text(json.dumps(to_json(replace(header, **changed))))  # type: ignore[arg-type]
        with pytest.raises(RequestRefused) as error:
            await asyncio.to_thread(client.restore_version, copy, WAIT_S)
        return str(error.value)

    assert "is not one of run 'run-2'" in await told("other run", run_id="run-2")
    assert "other motion features" in await told("features", preprocessing_digest="another")
    assert "send it again" in await told("digest", scoring_digest="0" * 64)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "training.safetensors").write_bytes((folder / "training.safetensors").read_bytes()[:-8])
    assert "the training file" in await told("cut")
    weights = load_file(folder / "scoring.safetensors")
    weights["long_term.extra"] = weights[next(iter(weights))]
    (tmp_path / "wide").mkdir()
    about = header_of((folder / "scoring.safetensors").read_bytes())
    assert about is not None
    save_file(weights, tmp_path / "wide" / "scoring.safetensors", dict(about.metadata))
    assert "another architecture" in await told("wide")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "scoring.safetensors").write_bytes((100).to_bytes(8, "little") + b"x" * 200)
    assert "not safetensors" in await told("text")
    with pytest.raises(RequestRefused, match="version_not_served"):
        await asyncio.to_thread(client.version, "run-1", header.version)


async def test_a_version_over_the_limit_is_refused(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue, redis: Redis, tmp_path: Path
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=2)
    async with served(make_settings(restore_max_bytes=10_000), small_pipeline) as doors:
        with RewardClient(doors.grpc_url) as client:
            name = (await asyncio.to_thread(client.refresh, replace(QUICK, steps=1))).discriminator_version
            await asyncio.to_thread(client.fetch_version, "run-1", name, tmp_path / "v", WAIT_S)
            with pytest.raises(RequestRefused, match="version_not_served"):
                await asyncio.to_thread(client.version, "run-2", name)
            await redis.flushall()
            await until_async(lambda: is_ready(doors))
            with pytest.raises(RequestRefused, match=r"restore_max_bytes"):
                await asyncio.to_thread(client.restore_version, tmp_path / "v", WAIT_S)
            assert not [key for key in await redis.keys() if b"restoring" in key]


def test_a_header_that_is_not_safetensors_is_refused() -> None:
    assert header_of(b"\x10") is None and header_of((10).to_bytes(8, "little")) is None
    with pytest.raises(BadRequest, match="the limit is"):
        header_of(b"\xff" * 8)
