"""Starts, restarts and ends worker processes. They are apart from the doors, so that scoring never delays an answer.

A worker that dies is started again after a pause, which doubles while it keeps dying. Each worker
watches a pipe from this process and ends when this process is gone, however that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog

from reward_server.settings import PREFIX, Settings

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
CALM_S = 60.0  # a worker that lived this long did not die while starting, so the pause is short again
DOORS_ALONE = frozenset({"api_key", "tls_cert", "tls_key", "tls_key_password", "tls_client_ca"})
KILL_S = 5.0  # after the drain, before SIGKILL

log = structlog.get_logger("workers")


class WorkerProcesses:
    """Keeps `num` workers alive from `start` to `stop`. Once `hurry` is set, `stop` does not wait for their drain."""

    def __init__(self, settings: Settings, num: int, hurry: asyncio.Event) -> None:
        self._environment = worker_environment(settings)
        self._drain_s = settings.drain_s
        self._num = num
        self._stopping, self._hurry = asyncio.Event(), hurry
        self._tasks: list[asyncio.Task[None]] = []
        self.died = asyncio.Event()  # some worker ended by itself at least once

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(index), name=f"worker-{index}") for index in range(self._num)]

    async def stop(self) -> None:
        """Send SIGTERM to all. They have settings.drain_s to finish their jobs or hand them back."""
        self._stopping.set()
        for task in self._tasks:
            # Unlike an await of the task, this leaves the task alone if the caller is cancelled.
            await asyncio.wait([task])
            task.result()

    async def _keep(self, index: int) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            code = await self._run_one()
            if self._stopping.is_set():
                return
            self.died.set()
            pause_s = FIRST_PAUSE_S if time.monotonic() - started > CALM_S else min(2 * pause_s, LONGEST_PAUSE_S)
            log.error("worker ended by itself, starting another", worker=index, exit_code=code, pause_s=pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _run_one(self) -> int:
        """Run one process from start to end and return its exit code."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "reward_server", "worker", "--end-with-stdin"),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only this process, which then ends the workers in order
        )
        ended = asyncio.create_task(process.wait())
        try:
            await _first(ended, self._stopping.wait())
            if not ended.done():
                process.terminate()
                await _first(ended, self._hurry.wait(), timeout_s=self._drain_s + KILL_S)
        finally:
            if not ended.done():
                process.kill()
        return await ended


async def _first(ended: asyncio.Task[int], other: Coroutine[Any, Any, Any], timeout_s: float | None = None) -> None:
    """Wait until one of the two is over, or `timeout_s` has passed."""
    waiting = asyncio.create_task(other)
    await asyncio.wait({ended, waiting}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def worker_environment(settings: Settings) -> Mapping[str, str]:
    """This process's environment with every setting that was given, so that the worker reads the same settings.

    A worker sends and answers no requests, so it does not get the secrets for that.
    """
    given = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True, exclude=set(DOORS_ALONE))
    if settings.redis_url is not None:
        given["redis_url"] = settings.redis_url.get_secret_value()
    kept_back = {PREFIX + name.upper() for name in DOORS_ALONE}
    inherited = {name: value for name, value in os.environ.items() if name not in kept_back}
    return {**inherited, **{f"{PREFIX}{name.upper()}": str(value) for name, value in given.items()}}


def end_with_stdin() -> None:
    """Send SIGTERM to this process once its standard input ends, which means that its parent is gone."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end-with-stdin", daemon=True).start()
