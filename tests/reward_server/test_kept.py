"""Accepted means kept: `motion-reward serve` with a private Redis, ended in every way and started again."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from protos.client import RewardClient, submission
from protos.types import Media, OutcomeKind
from reward_server.errors import NotReady
from reward_server.serving.local import READY, ready_line, started
from reward_server.serving.private_redis import PrivateRedis
from reward_server.serving.queue_folder import QueueFolder
from reward_server.serving.serve import with_redis
from reward_server.serving.signals import Stop
from reward_server.serving.worker_processes import worker_environment
from reward_server.settings import Settings, default_queue_dir
from tests import media

NUM_JOBS = 40
PATIENCE_S = 300.0
ENDS = pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running `motion-reward serve`."""

    process: subprocess.Popen[str]
    http: str


@pytest.fixture
def environment(tmp_path: Path, discriminators_file: Path) -> Mapping[str, str]:
    given = {"checkpoint": discriminators_file, "num_tracks": 16, "threads": 1, "data_dir": tmp_path, "lease_s": 2}
    given |= {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0"}
    return os.environ | {f"MOTION_REWARD_{name.upper()}": str(value) for name, value in given.items()}


@contextmanager
def serving(environment: Mapping[str, str], workers: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "reward_server", "serve", "--workers", str(workers)]
    with started(command, environment, stdout=subprocess.PIPE) as process:
        http, _ = (word for word in ready_line(process, READY).split() if "://" in word)
        yield Server(process=process, http=http)


def clips(count: int) -> list[bytes]:
    return [media.tensor(media.texture(12, 32, 48 + 16 * (index % 3)), 12.0) for index in range(count)]


def submit(server: Server, count: int) -> list[str]:
    with RewardClient(server.http) as client:
        return client.submit([submission(clip, media=Media.TENSOR) for clip in clips(count)])


def kinds(server: Server, job_ids: list[str]) -> list[OutcomeKind]:
    with RewardClient(server.http) as client:
        found = {outcome.job_id: outcome.kind for outcome in client.await_outcomes(job_ids, timeout_s=PATIENCE_S)}
    return [found[job_id] for job_id in job_ids]


@pytest.mark.slow
@ENDS
def test_every_accepted_job_is_answered_after_a_restart(environment: Mapping[str, str], end: signal.Signals) -> None:
    """The first server ends while its worker scores: some jobs are done, some are held, and some still wait."""
    with serving(environment, workers=1) as server:
        job_ids = submit(server, NUM_JOBS)
        with RewardClient(server.http) as client:
            next(iter(client.await_outcomes(job_ids, timeout_s=PATIENCE_S)))
        server.process.send_signal(end)
        server.process.wait(PATIENCE_S)
    with serving(environment, workers=0) as server:  # what the end left is seen before anything is scored
        states = [httpx.get(f"{server.http}/v1/jobs/{job_id}").json()["state"] for job_id in job_ids]
    assert set(states) == {"queued", "done"}
    with serving(environment, workers=1) as server:
        assert kinds(server, job_ids) == [OutcomeKind.OK] * NUM_JOBS
        counts = httpx.get(f"{server.http}/metrics").text
    assert f"motion_reward_jobs_admitted_total {NUM_JOBS}.0" in counts
    assert f'motion_reward_outcomes_total{{kind="ok"}} {NUM_JOBS}.0' in counts


@ENDS
def test_jobs_wait_through_restarts_without_a_worker(environment: Mapping[str, str], end: signal.Signals) -> None:
    with serving(environment, workers=0) as server:
        job_ids = submit(server, 3)
        server.process.send_signal(end)
        server.process.wait(PATIENCE_S)
    with serving(environment, workers=0) as server:
        states = [httpx.get(f"{server.http}/v1/jobs/{job_id}").json()["state"] for job_id in job_ids]
    assert states == ["queued"] * 3


def test_a_second_server_on_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with (
        PrivateRedis(settings),
        pytest.raises(NotReady, match=rf"process {os.getpid()}\) keeps its queue in {tmp_path}/queue.*QUEUE_DIR"),
    ):
        PrivateRedis(settings).start()
    with PrivateRedis(settings):  # free again
        pass


def test_the_next_server_waits_until_the_redis_of_a_killed_one_has_ended(tmp_path: Path) -> None:
    """Two Redis that write one file would destroy it."""
    folder = QueueFolder(tmp_path)
    folder.open()
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[folder.redis_lock]
    ) as old:
        folder.close()  # as if this server was killed: the process that stands for Redis has the lock alone
        other = QueueFolder(tmp_path)
        with pytest.raises(NotReady), pytest.MonkeyPatch.context() as patch:
            patch.setattr("reward_server.serving.queue_folder.LEAVE_S", 0.2)
            other.open()
        old.communicate(b"\n")
    other.open()
    other.close()


def test_only_the_user_can_read_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "queue"
    with PrivateRedis(Settings(queue_dir=folder)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_motion_is_in_files_beside_a_private_redis_unless_told_otherwise(tmp_path: Path) -> None:
    for given, expected in ((None, tmp_path / "queue" / "features"), (tmp_path / "other", tmp_path / "other")):
        async with AsyncExitStack() as stack:
            settings = await with_redis(Settings(data_dir=tmp_path, feature_dir=given), stack, Stop())
            assert settings.feature_dir == expected
            assert worker_environment(settings)["MOTION_REWARD_FEATURE_DIR"] == str(expected)
    own = Settings(redis_url=SecretStr("redis://127.0.0.1:1"))
    async with AsyncExitStack() as stack:
        assert (await with_redis(own, stack, Stop())).feature_dir is None


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotReady, match=r"file/queue \(.*MOTION_REWARD_QUEUE_DIR"):
        PrivateRedis(Settings(queue_dir=tmp_path / "file" / "queue")).start()


def test_the_queue_lies_in_the_state_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().queue_folder == default_queue_dir() == tmp_path / "motion-reward" / "queue"
    assert Settings(data_dir=tmp_path / "data").queue_folder == tmp_path / "data" / "queue"
    assert Settings(data_dir=tmp_path / "data", queue_dir=tmp_path / "q").queue_folder == tmp_path / "q"


def test_a_queue_of_another_program_is_named_with_the_next_step(tmp_path: Path) -> None:
    redis = PrivateRedis(Settings(data_dir=tmp_path))
    with redis:
        pass
    [base] = tmp_path.rglob("*.base.rdb")
    base.write_bytes(b"REDIS0099" + base.read_bytes()[9:])  # a version that no program has
    with pytest.raises(NotReady, match=r"cannot read the queue in .*set MOTION_REWARD_REDIS_BINARY to that one"):
        redis.start()
