"""Tests the trainer's refresh with a real server: the RPC, a worker that trains, the version that scores afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from protos.client.version_files import read_header
from protos.types import Clip, Origin
from reward_server.pipeline import Pipeline
from reward_server.queue.keys import Keys
from reward_server.serving.private_redis import PrivateRedis
from reward_server.worker.versions import Versions
from tests.conftest import MakeSettings
from tests.running import Doors, open_doors, working
from tests.trainer_runs import figures, tiny_config, write_clips
from trainer.config import RefreshConfig, RewardsConfig
from trainer.errors import ClipsLost
from trainer.policies.tiny import tiny_svd
from trainer.rewards.remote import RemoteRewards
from trainer.rewards.source import ClipGroup
from trainer.train import run_training

KEYS = Keys(profile="embedded")
QUICK = RefreshConfig(lr=1e-3, ema=0.5, clips_per_step=2)


def clip(seed: int) -> Clip:
    """Eight frames of a texture that moves one pixel per frame."""
    texture = np.kron(np.random.default_rng(seed).integers(0, 256, (12, 20, 3)), np.ones((6, 6, 1)))
    frames = np.stack([texture[:48, step : step + 64] for step in range(8)]).astype(np.uint8)
    return Clip(frames=frames.transpose(0, 3, 1, 2).copy(), fps=12.0)


def group(key: str, version: str) -> ClipGroup:
    return ClipGroup(
        key=key, real=clip(0), rollouts=(clip(1), clip(2)), policy_version="0", discriminator_version=version
    )


async def against(doors: Doors, redis_url: str, folder: Path, act: Callable[[RemoteRewards], None]) -> None:
    """Run `act` in a thread, as a training process would."""

    def whole() -> None:
        config = RewardsConfig(server=doors.grpc_url, redis_url=redis_url, patience_s=20)
        rewards = RemoteRewards(config, QUICK, run_id="run-1", folder=folder)
        try:
            act(rewards)
        finally:
            rewards.close()

    await asyncio.to_thread(whole)


async def test_a_refresh_trains_a_version_that_scores_what_comes_next(
    make_settings: MakeSettings,
    small_pipeline: Pipeline,
    redis_server: PrivateRedis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clips are pinned before and after. The same request trains once. The log has one line about it."""

    def act(rewards: RemoteRewards) -> None:
        assert rewards.pin() == "untrained"
        for key in ("a", "b"):
            rewards.submit(group(key, "untrained"))
        before = rewards.collect(["a", "b"], 3)
        with caplog.at_level(logging.INFO, "trainer.rewards.remote"):
            version = rewards.refresh(2, seed=1, key="run-1/refresh/0")
        assert version.startswith("untrained+run-1.1-")
        assert rewards.refresh(2, seed=1, key="run-1/refresh/0") == rewards.pin() == version
        rewards.submit(group("c", version))
        (after,) = rewards.collect(["c"], 3).groups
        for found, wanted in ((before.groups[0], "untrained"), (after, version)):
            assert {scored.version for scored in (found.real, *found.rollouts) if scored} == {wanted}
        assert after.real and before.groups[0].real and after.real.reward != before.groups[0].real.reward

    async with open_doors(make_settings()) as doors, working(doors, small_pipeline):
        await against(doors, redis_server.url, tmp_path, act)
    told = caplog.records[0].getMessage()
    assert told.startswith("discriminators refreshed to untrained+run-1.1-")
    assert "2 steps on 2 of 2 real clips and 4 of 4 rollouts in" in told
    assert "\n" not in told and len(told) < 300


async def test_a_refresh_without_clips_raises_the_servers_message(
    make_settings: MakeSettings, small_pipeline: Pipeline, redis_server: PrivateRedis, tmp_path: Path
) -> None:
    def act(rewards: RemoteRewards) -> None:
        with pytest.raises(ClipsLost, match=r"no clips of run 'run-1' are kept.*refresh.recompute=true"):
            rewards.refresh(2, seed=1, key="k")

    async with open_doors(make_settings()) as doors, working(doors, small_pipeline):
        await against(doors, redis_server.url, tmp_path, act)


async def test_a_run_goes_on_after_redis_was_emptied(
    *,
    make_settings: MakeSettings,
    small_pipeline: Pipeline,
    redis_server: PrivateRedis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once before a buffer is scored by the run's own version, and once before its refresh. Both ended the run.

    The worker has forgotten the version, as one on another host would never have seen it.
    """
    base, clips = tiny_svd(tmp_path / "base"), write_clips(tmp_path / "clips")
    store = SyncRedis.from_url(redis_server.url)
    refreshed: list[str] = []

    def emptying(rewards: RemoteRewards, steps: int, *, seed: int, key: str) -> str:
        if len(refreshed) == 1:  # its clips are scored
            refreshed.append("lost")
            store.flushall()
        refreshed.append(refresh(rewards, steps, seed=seed, key=key))
        if len(refreshed) == 1:
            store.flushall()
        return refreshed[-1]

    refresh, load = RemoteRewards.refresh, Versions.discriminators

    async def forgetful(versions: Versions, version: str) -> Any:
        versions._kept.clear()
        return await load(versions, version)

    monkeypatch.setattr(RemoteRewards, "refresh", emptying)
    monkeypatch.setattr(Versions, "discriminators", forgetful)
    options = ("policy.num_frames=8", "loop.passes=1", "logs.samples_every_buffers=0", "signal.noise_share=0")
    async with open_doors(make_settings(lease_s=1.0)) as doors, working(doors, small_pipeline):
        where = (f"rewards.server={doors.grpc_url}", "run_id=run-1", "rewards.patience_s=1")
        config = tiny_config(tmp_path / "run", base, clips, *options, *where, "refresh.enabled=true")
        with caplog.at_level(logging.WARNING):
            progress = await asyncio.to_thread(run_training, config)
        history = await doors.service.history.history("run-1")
    newest, oldest = history.versions
    assert [newest.version.name, "lost", oldest.version.name] == [progress.version, refreshed[1], refreshed[0]]
    assert newest.version.number == 2 and newest.training.previous_version == refreshed[0]  # not the base version
    assert figures(config.out, "buffer/missing_rewards") == [0.0, 0.0]
    assert sum("it was uploaded again" in message for message in caplog.messages) == 2
    assert sum("is measured again for its refresh" in message for message in caplog.messages) == 1
    saved = {read_header(path).version for path in config.out.glob("checkpoints/*/versions/*/")}
    assert saved == {refreshed[0], progress.version}


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
async def test_a_run_refreshes_its_discriminators_after_each_buffer(
    *,
    make_settings: MakeSettings,
    small_pipeline: Pipeline,
    redis_server: PrivateRedis,
    redis: Redis,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recompute: bool,
) -> None:
    """With `recompute`, motion is measured twice, from different query points. Only the second is stored.

    What is scored again to measure the noise is not stored.
    """
    base, clips = tiny_svd(tmp_path / "base"), write_clips(tmp_path / "clips")
    options = (
        "policy.num_frames=8",
        "rewards.real_as=decoded",
        "loop.passes=1",
        "logs.samples_every_buffers=0",
        "signal.noise_share=1",
    )
    refresh = ("refresh.enabled=true", "refresh.clips_per_step=2", f"refresh.recompute={recompute}")
    async with open_doors(make_settings()) as doors, working(doors, small_pipeline):
        where = (f"rewards.server={doors.grpc_url}", f"rewards.redis_url={redis_server.url}", "run_id=run-1")
        config = tiny_config(tmp_path / "run", base, clips, *options, *refresh, *where)
        with caplog.at_level(logging.INFO, "trainer.rewards.remote"):
            progress = await asyncio.to_thread(run_training, replace(config, seed=3))
        kept = [await redis.hlen(KEYS.clips(origin.value, "run-1")) for origin in Origin]
    assert progress.version.startswith("untrained+run-1.2-")
    assert figures(config.out, "buffer/missing_rewards") == [0.0, 0.0]
    assert figures(config.out, "signal/groups_scored_twice") == [2, 2]
    assert all(noise > 0 for noise in figures(config.out, "signal_noise/long_term"))
    told = [record.getMessage() for record in caplog.records if "refreshed" in record.getMessage()]
    for line, older in zip(told, ("", ", and 2 clips of earlier buffers,"), strict=True):
        assert f"2 steps on 2 of 2 real clips and 4 of 4 rollouts{older} in" in line
    assert not any("fewer than one" in record.getMessage() for record in caplog.records)
    assert kept == [4, 8]
