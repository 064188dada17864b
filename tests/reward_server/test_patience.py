"""No Redis holds up a caller: a redis-server that is stopped with SIGSTOP under a real server, seen from both doors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil
import pytest
from pydantic import SecretStr

from protos.client import RewardClient, ServerBusy, submission
from protos.types import Media, Origin, RefreshRequest
from reward_server.errors import NotReady
from reward_server.queue.patience import patience, spending
from reward_server.serving.local import READY, ready_line, started
from reward_server.serving.private_redis import PrivateRedis
from reward_server.settings import Settings
from tests import media
from tests.conftest import OpenQueue

CLIP = media.tensor(media.texture(12, 32, 48), 12.0)
TENSOR = {"content-type": "application/vnd.safetensors"}
TRIES = 3  # the machine of a test may be busy, so one of a few answers must be in time
HEALTH_S, SUBMIT_S = 1.0, 5.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """A `motion-reward serve` without workers, and the redis-server that it uses."""

    http: str
    grpc: str
    redis: psutil.Process

    def freeze(self) -> None:
        self.redis.suspend()

    def thaw(self) -> None:
        self.redis.resume()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with PrivateRedis(Settings(data_dir=tmp_path_factory.mktemp("frozen"))) as redis:
        environment = os.environ | {
            "MOTION_REWARD_REDIS_URL": redis.url,
            "MOTION_REWARD_HTTP": "127.0.0.1:0",
            "MOTION_REWARD_GRPC": "127.0.0.1:0",
        }
        command = [sys.executable, "-m", "reward_server", "serve", "--workers", "0"]
        with started(command, environment, stdout=subprocess.PIPE) as process:
            http, grpc = (word for word in ready_line(process, READY).split() if "://" in word)
            yield Server(http=http, grpc=grpc, redis=redis_process(redis))


def redis_process(redis: PrivateRedis) -> psutil.Process:
    assert redis._process is not None
    found: psutil.Process
    [found] = [child for child in psutil.Process(redis._process.pid).children() if child.name().endswith("-server")]
    return found


@contextmanager
def frozen_for_a_while(server: Server) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@pytest.fixture
def frozen(server: Server) -> Iterator[Server]:
    with frozen_for_a_while(server):
        yield server


def answered(server: Server, path: str, within_s: float) -> httpx.Response:
    """The answer of one of a few requests that was in time."""
    for _ in range(TRIES):
        try:
            return httpx.get(server.http + path, timeout=within_s)
        except httpx.TimeoutException:
            continue
    raise AssertionError(f"{path} did not answer within {within_s} s, {TRIES} times")


def test_health_answers_within_a_second(frozen: Server) -> None:
    assert answered(frozen, "/healthz", HEALTH_S).status_code == 200
    ready = answered(frozen, "/readyz", HEALTH_S)
    assert ready.status_code == 503
    assert "Redis does not answer" in ready.json()["reasons"][0]
    assert "motion_reward_redis_up 0.0" in answered(frozen, "/metrics", HEALTH_S).text


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/score"])
def test_a_submit_over_http_is_refused_within_five_seconds(frozen: Server, path: str) -> None:
    answer = httpx.post(frozen.http + path, content=CLIP, headers=TENSOR, timeout=SUBMIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) >= 1


def test_a_submit_over_grpc_is_refused_within_five_seconds(frozen: Server) -> None:
    with RewardClient(frozen.grpc, timeout_s=SUBMIT_S, attempts=1) as client, pytest.raises(ServerBusy) as refused:
        client.submit([submission(CLIP, media=Media.TENSOR)])
    assert refused.value.code == "not_ready"
    assert refused.value.retry_after_s


def test_a_refresh_that_cannot_be_queued_is_refused_too(frozen: Server) -> None:
    answer = httpx.post(f"{frozen.http}/v1/refresh", json={"run_id": "r", "steps": 1}, timeout=SUBMIT_S)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")


@pytest.mark.parametrize("wait_s", [0.5, 2.0])
def test_a_waiter_ends_at_its_own_deadline(server: Server, wait_s: float) -> None:
    """Redis stops after the job was accepted. The caller waits as long as it asked for, plus one short look."""
    [job] = httpx.post(f"{server.http}/v1/jobs", content=CLIP, headers=TENSOR).json()["jobs"]
    with frozen_for_a_while(server):
        began_s = time.monotonic()
        answer = httpx.get(f"{server.http}/v1/jobs/{job['id']}", params={"wait_s": wait_s}, timeout=wait_s + SUBMIT_S)
        took_s = time.monotonic() - began_s
        with RewardClient(server.grpc, attempts=1, timeout_s=SUBMIT_S) as client:
            assert list(client.await_outcomes([job["id"]], wait_s)) == []
    assert answer.json()["error"]["code"] == "not_ready"
    assert took_s >= wait_s
    after = httpx.get(f"{server.http}/v1/jobs/{job['id']}").json()
    assert after["state"] == "queued"


def test_the_server_goes_on_when_redis_does(server: Server) -> None:
    with frozen_for_a_while(server):
        for _ in range(4):
            answered(server, "/readyz", HEALTH_S)
    assert "no live worker" in httpx.get(f"{server.http}/readyz", timeout=30).json()["reasons"][0]
    assert httpx.post(f"{server.http}/v1/jobs", content=CLIP, headers=TENSOR, timeout=30).status_code == 202


# --- waiting reads ------------------------------------------------------------------------------


async def test_hundreds_of_refresh_waiters_take_one_connection(open_queue: OpenQueue) -> None:
    """With a connection each, they would take all, and short commands would wait behind them."""
    queue = await open_queue()
    for origin in Origin:
        for number in range(2):
            await queue.worker.store.motion.keep_clip("run", origin, f"{origin}-{number}", (b"motion",))
    refresh_id = await queue.door.refreshes.admit(RefreshRequest(run_id="run", steps=1, deadline_s=60.0))
    waiters = [asyncio.create_task(queue.door.refreshes.response(refresh_id)) for _ in range(200)]
    try:
        await asyncio.sleep(0.5)
        waiting = queue.door._link._waiting.connection_pool
        assert len(waiting._in_use_connections) <= 2, "the reader of finished jobs, and one for all refreshes"
        with patience(5.0):
            await queue.door.depth()
        refresh = await queue.worker.refreshes.claim()
        assert refresh is not None
        await queue.worker.refreshes.fail(refresh, NotReady("as asked"))
        ends = await asyncio.wait_for(asyncio.gather(*waiters, return_exceptions=True), 30)
        assert {str(end) for end in ends} == {"as asked"}
    finally:
        for waiter in waiters:
            waiter.cancel()


# --- the budget itself --------------------------------------------------------------------------


async def test_patience_is_shared_by_all_calls_and_counts_only_redis() -> None:
    with patience(0.3):
        await asyncio.sleep(0.4)  # not spent on Redis
        async with spending():
            await asyncio.sleep(0.2)
        with pytest.raises(NotReady, match="in time"):
            async with spending():
                await asyncio.sleep(0.2)
    async with spending():  # no limit outside
        await asyncio.sleep(0.01)


async def test_an_inner_patience_does_not_exceed_the_outer() -> None:
    with patience(0.05), patience(60.0), pytest.raises(NotReady):
        async with spending():
            await asyncio.sleep(30)


def test_settings_keep_what_is_promised() -> None:
    assert Settings(redis_url=SecretStr("redis://x")).redis_wait_s < SUBMIT_S
