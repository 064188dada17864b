"""Starts a whole server of real processes around light workers, each of which can be killed, stopped and started.

    with Stack(Path(folder), workers=4, settings={"lease_s": 2}) as stack:
        stack.door.kill(); stack.door.start()

Everything listens on loopback only, at ports that stay the same when a process starts again. Redis keeps an
append-only file, as the private Redis of `serve` does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.light_worker import VERSION
from reward_server.queue.keys import Keys
from reward_server.serving.local import free_port
from reward_server.serving.private_redis import redis_binary
from reward_server.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
START_S = 180.0  # a loaded machine takes long to import
STOP_S = 20.0
MIB = 1024**2


class Part:
    """One process: its command can be started again after it was killed."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self._command, self._log = name, list(command), log
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )

    def signal(self, number: signal.Signals) -> None:
        if self.process and self.alive:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it and its children at once, without warning."""
        if self.process is None:
            return
        family = children_of(self.process.pid)
        self.signal(signal.SIGKILL)
        self.process.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()

    def end(self) -> None:
        """Ask it to end, and kill it if that takes too long."""
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            if self.process:
                self.process.wait(STOP_S)
        self.kill()

    def mib(self) -> float:
        """Resident memory of the process and its children."""
        if not (self.process and self.alive):
            return 0.0
        held = 0
        with suppress(psutil.NoSuchProcess):
            held = psutil.Process(self.process.pid).memory_info().rss
            held += sum(resident(child) for child in children_of(self.process.pid))
        return held / MIB


def children_of(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def resident(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


class Stack:
    """Redis, a server with both doors and without workers of its own, and light workers."""

    def __init__(self, folder: Path, *, workers: int, settings: Mapping[str, Any]) -> None:
        ports = [free_port() for _ in range(3)]
        self.redis_url, self.http, self.grpc = (
            f"{scheme}://127.0.0.1:{port}" for scheme, port in zip(("redis", "http", "grpc"), ports, strict=True)
        )
        given = {**settings, "redis_url": self.redis_url, "data_dir": folder, "log_level": "info"}
        given |= {"http": f"127.0.0.1:{ports[1]}", "grpc": f"127.0.0.1:{ports[2]}"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment = clean | {f"{PREFIX}{name.upper()}": str(value) for name, value in given.items()}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", VERSION: "light-1"}
        (folder / "redis").mkdir()
        keep = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(folder / "redis"))
        redis = [str(redis_binary(Settings())), "--bind", "127.0.0.1", "--port", str(ports[0]), *keep]
        door = [sys.executable, "-m", "reward_server", "serve", "--workers", "0"]
        worker = [sys.executable, "-m", "benchmarks.light_worker"]
        self.log = folder / "log"
        self.redis = Part("redis", redis, os.environ, self.log)
        self.door = Part("door", door, environment, self.log)
        self.workers = [Part(f"worker {at}", worker, environment, self.log) for at in range(workers)]
        self.client: Any = Redis.from_url(self.redis_url, socket_timeout=5)  # its types are unions of sync and async
        self.keys = Keys(profile="embedded")

    def __enter__(self) -> Self:
        try:
            self.redis.start()
            self.await_redis()
            for part in (self.door, *self.workers):
                part.start()
            self.await_workers(len(self.workers))
            self.await_door()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for part in (*self.workers, self.door):
            part.signal(signal.SIGCONT)
            part.signal(signal.SIGTERM)
        for part in (*self.workers, self.door, self.redis):
            part.signal(signal.SIGCONT)
            part.end()

    def await_redis(self) -> None:
        self._await(lambda: bool(self.client.ping()), "Redis")

    def await_workers(self, num: int) -> None:
        """Return once so many workers have sent a heartbeat lately."""
        self._await(lambda: self.client.zcount(self.keys.workers, time.time() * 1000, "+inf") >= num, "workers")

    def await_door(self) -> None:
        import httpx  # noqa: PLC0415

        def answers() -> bool:
            with suppress(httpx.TransportError):
                return httpx.get(f"{self.http}/healthz", timeout=2).is_success
            return False

        self._await(answers, "the door")

    def _await(self, holds: Any, what: str) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with suppress(RedisError):
                if holds():
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{what} did not start within {START_S:g} s: {self.log.read_text()[-2000:]}")
