"""Trains the toy while its server loses everything, and tells what the run did about it.

    python -m benchmarks.lost_redis [--buffers 4]

A server with a Redis that keeps nothing on disk, and a trainer with refreshes, run as real processes. After the first
buffer's refresh Redis is killed and starts empty. After the second buffer's steps, before its refresh has ended, Redis
and the server are killed, and both start anew. So the run's own discriminators are lost twice, and the motion of a
buffer's clips once. The last line is JSON. The exit code is 1 if the run did not end by itself with every reward and
one refresh a buffer, or if nothing was uploaded or measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from protos.client import RewardClient
from reward_server.serving.local import READY, free_port, ready_line, started
from reward_server.serving.private_redis import redis_binary
from reward_server.serving.worker_processes import worker_environment
from reward_server.settings import Settings

UPLOADED, MEASURED = "it was uploaded again", "is measured again for its refresh"
REFRESHED = "discriminators refreshed to"
AWAY_S = 3.0  # from a kill to the new start
MOST_S = 1800.0
STEPS = 16  # of a buffer: 8 clips, and the 2 passes of the preset
TOY = (
    "policy.lora=null",
    "loop.buffer_clips=8",
    "refresh.enabled=true",
    "refresh.clips_per_step=4",
    "rewards.patience_s=5",
    "logs.samples_every_buffers=0",
    "logs.report=false",
)


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where Redis and the doors are, before and after a loss."""

    redis: int
    http: int
    grpc: int

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis}/0"


@contextmanager
def redis(ports: Ports) -> Iterator[subprocess.Popen[str]]:
    """A Redis that keeps nothing."""
    command = [str(redis_binary(Settings())), "--port", str(ports.redis), "--bind", "127.0.0.1", "--save", ""]
    with started([*command, "--appendonly", "no"], {}, stdout=subprocess.DEVNULL) as child:
        yield child


@contextmanager
def server(ports: Ports, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A server with a worker, once it is ready."""
    doors = ("--http", f"127.0.0.1:{ports.http}", "--grpc", f"127.0.0.1:{ports.grpc}", "--redis-url", ports.redis_url)
    environment = worker_environment(Settings(data_dir=folder / "data", log_level="error", threads=1))
    with started(
        [sys.executable, "-m", "reward_server", "serve", *doors], environment, stdout=subprocess.PIPE
    ) as child:
        ready_line(child, READY)
        yield child


def trainer(ports: Ports, folder: Path, buffers: int) -> list[str]:
    """The command that trains the toy."""
    where = (
        f"data.train=[{folder / 'clips'}]",
        f"out={folder / 'run'}",
        f"rewards.server=grpc://127.0.0.1:{ports.grpc}",
    )
    return [
        *(sys.executable, "-m", "trainer", "train", "--config", "tiny"),
        *(*TOY, *where, f"loop.num_buffers={buffers}", "run_id=lost"),
    ]


def lose(*children: subprocess.Popen[str]) -> None:
    for child in children:
        child.send_signal(signal.SIGKILL)
    for child in children:
        child.wait()
    time.sleep(AWAY_S)


def wait_for_buffer(number: int, run: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the trainer has a checkpoint with a version of its own after this buffer's steps.

    The first buffer's is written after its refresh, a later one's also before, with the version of the buffer before.
    Raises RuntimeError if the trainer ends before that.
    """
    until_s = time.monotonic() + MOST_S
    while not (folder / f"run/checkpoints/step-{STEPS * number:08d}/versions").is_dir():
        if run.poll() is not None or time.monotonic() > until_s:
            told = (folder / "trainer.log").read_text()[-4000:]
            raise RuntimeError(
                f"no checkpoint after buffer {number} within {MOST_S:g} s; the trainer's log ends: {told}"
            )
        time.sleep(0.1)


def train(folder: Path, buffers: int) -> tuple[int, str, float]:
    """Train through both losses. The trainer's exit code, its log, and the seconds it took."""
    ports, log = Ports(redis=free_port(), http=free_port(), grpc=free_port()), folder / "trainer.log"
    with ExitStack() as parts, log.open("w") as told:
        first, door = parts.enter_context(redis(ports)), parts.enter_context(server(ports, folder))
        began_s = time.monotonic()
        wide = {**os.environ, "COLUMNS": "1000"}  # one line a message
        run = parts.enter_context(started(trainer(ports, folder, buffers), wide, stdout=told, stderr=told))
        wait_for_buffer(1, run, folder)
        lose(first)
        second = parts.enter_context(redis(ports))
        wait_for_buffer(2, run, folder)
        lose(second, door)
        parts.enter_context(redis(ports))
        parts.enter_context(server(ports, folder))
        code = run.wait(MOST_S)
        taken_s = time.monotonic() - began_s
        if code:
            print(log.read_text()[-4000:])
        with RewardClient(f"grpc://127.0.0.1:{ports.grpc}") as client:
            print("latest version:", client.model("lost").discriminator_version)
    return code, log.read_text(), taken_s


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--buffers", type=int, default=4, help="at least 3, so that one follows the second loss")
    args = parser.parse_args(argv)
    if args.buffers < 3:
        parser.error(f"--buffers is {args.buffers}; give at least 3")
    with tempfile.TemporaryDirectory(prefix="motion-reward-lost-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "experiments.toy", "clips", "--out", str(folder / "clips")], check=True)
        code, log, taken_s = train(folder, args.buffers)
        metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    missing = [line["buffer/missing_rewards"] for line in metrics if "buffer/missing_rewards" in line]
    told = {
        "exit_code": code,
        "buffers": len(missing),
        "missing_rewards": sum(missing),
        "refreshes": log.count(REFRESHED),
        "uploaded_again": log.count(UPLOADED),
        "measured_again": log.count(MEASURED),
        "seconds": round(taken_s, 1),
    }
    print(
        "\n".join(
            line.strip() for line in log.splitlines() if any(one in line for one in (UPLOADED, MEASURED, REFRESHED))
        )
    )
    print(json.dumps(told))
    whole = code == 0 and told["buffers"] == told["refreshes"] == args.buffers and not told["missing_rewards"]
    return 0 if whole and told["uploaded_again"] and told["measured_again"] else 1


if __name__ == "__main__":
    sys.exit(main())
