"""Starts a server on this machine for a test, the demo or a benchmark, and ends it afterwards.

    with local_server(Settings(num_tracks=64)) as server, RewardClient(server.grpc_url) as client:
        ...

The server binds port 0 and prints its addresses in its ready line, so no port has to be guessed.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import psutil

from reward_server.errors import NotReady
from reward_server.settings import PREFIX, Settings

READY = "motion-reward serves"  # what the ready line of serve.py starts with
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class LocalServer:
    """A `motion-reward serve` that this process started."""

    process: psutil.Process
    http_url: str
    grpc_url: str


@contextmanager
def local_server(settings: Settings) -> Iterator[LocalServer]:
    """Run `motion-reward serve` on free loopback ports, with its own data folder and Redis, until the block ends.

    The server gets every value that is set in `settings`, except for addresses, data folder, Redis and log level.
    Raises NotReady if the server ends before it is ready. Its messages go to this process's stderr.
    """
    with tempfile.TemporaryDirectory(prefix="motion-reward-") as folder:
        command = [sys.executable, "-m", "reward_server", "serve"]
        with started(command, _environment(settings, folder), stdout=subprocess.PIPE) as child:
            http_url, grpc_url = (word for word in ready_line(child, READY).split() if "://" in word)
            yield LocalServer(process=psutil.Process(child.pid), http_url=http_url, grpc_url=grpc_url)


def _environment(settings: Settings, folder: str) -> dict[str, str]:
    """This process's environment, with the settings as variables."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    given |= {"http": "127.0.0.1:0", "grpc": "127.0.0.1:0", "data_dir": folder, "redis_url": None}
    given["queue_dir"] = given["keys_file"] = given["api_key"] = None  # in the data folder, and without keys
    given |= dict.fromkeys(("tls_cert", "tls_key", "tls_key_password", "tls_client_ca", "upload_dir"))
    given["log_level"] = "warning"
    others = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    return others | {PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None}


@contextmanager
def started(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdout: IO[str] | int | None = None,
    stderr: IO[str] | int | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run the command as a process. When the block ends, it and its children are ended."""
    with subprocess.Popen(command, env=dict(environment), stdout=stdout, stderr=stderr, text=True) as child:
        try:
            yield child
        finally:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    if child.poll() is not None:
        return
    process = psutil.Process(child.pid)
    family = [process, *process.children(recursive=True)]
    child.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for straggler in alive:
        straggler.kill()
    psutil.wait_procs(alive)


def ready_line(child: subprocess.Popen[str], start: str) -> str:
    """The first line of the child's stdout that begins with `start`. Raises NotReady if the child ends before that.

    A child that does not print the line within START_TIMEOUT_S is killed.
    """
    assert child.stdout is not None
    timer = threading.Timer(START_TIMEOUT_S, child.kill)
    timer.start()
    try:
        for line in child.stdout:
            if line.startswith(start):
                return line
    finally:
        timer.cancel()
    raise NotReady(
        f"the started process ended with exit code {child.wait()} before it was ready "
        f"(it has {START_TIMEOUT_S:g} s); its messages above say why"
    )


def free_port() -> int:
    """A loopback TCP port that was free just now, for programs that cannot bind port 0 themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
