"""Tests the health check of workers with heartbeats on a real Redis."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

from reward_server.serving.alive import live_workers
from reward_server.settings import Settings
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import PixelScorer
from tests.plain_scorer import MODEL
from tests.running import open_doors, working


def check(settings: Settings) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python -m reward_server.serving.alive`, run as in a container."""
    assert settings.redis_url
    done = subprocess.run(
        [sys.executable, "-m", "reward_server.serving.alive"],
        check=False,
        env={"MOTION_REWARD_REDIS_URL": settings.redis_url.get_secret_value()},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


async def test_a_worker_is_alive_for_a_lease_from_its_heartbeat(
    make_settings: MakeSettings, open_queue: OpenQueue
) -> None:
    settings = make_settings()
    queue = await open_queue(settings)
    await queue.worker.announce("box-7-abc", MODEL)
    assert live_workers(settings, "box") == ["box-7-abc"]
    await asyncio.sleep(1.5 * settings.lease_s)
    assert live_workers(settings, "box") == []


async def test_another_host_is_not_alive_by_it(make_settings: MakeSettings, open_queue: OpenQueue) -> None:
    settings = make_settings(lease_s=30.0)
    await (await open_queue(settings)).worker.announce("box2-7-abc", MODEL)
    assert live_workers(settings, "box2") == ["box2-7-abc"]
    assert live_workers(settings, "box") == live_workers(settings, "ox2") == []


async def test_another_profiles_worker_does_not_count(make_settings: MakeSettings, open_queue: OpenQueue) -> None:
    await (await open_queue(make_settings(profile="shift", lease_s=30.0))).worker.announce("box-7-abc", MODEL)
    assert live_workers(make_settings(), "box") == []


async def test_the_check_passes_while_a_worker_of_this_host_runs(make_settings: MakeSettings) -> None:
    settings = make_settings(lease_s=30.0)
    async with open_doors(settings) as doors:
        code, _, error = await asyncio.to_thread(check, settings)
        assert code == 1 and "no worker of" in error
        async with working(doors, PixelScorer()):
            code, out, _ = await asyncio.to_thread(check, settings)
            assert code == 0 and out.startswith(f"{socket.gethostname()}-")
        code, *_ = await asyncio.to_thread(check, settings)
        assert code == 1


def test_the_check_fails_without_a_redis() -> None:
    code, _, error = check(Settings(redis_url="redis://127.0.0.1:1/0"))
    assert code == 1 and "Redis does not answer" in error
