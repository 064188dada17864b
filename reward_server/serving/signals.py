"""Turns SIGTERM and Ctrl-C into events to wait for, for the server and for a worker.

Signals are handled only here. Other code gets the event that stops it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """`asked` is set by the first signal, `hurry` by the second."""

    def __init__(self) -> None:
        self.asked, self.hurry = asyncio.Event(), asyncio.Event()
        self._failure: BaseException | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def signal(self) -> None:
        (self.hurry if self.asked.is_set() else self.asked).set()

    def if_failed(self, task: asyncio.Task[Any]) -> None:
        """A task's done callback: if the task failed, stop at once. `check` then raises its error."""
        if not task.cancelled() and (error := task.exception()):
            self._failure = error
            self.asked.set()
            self.hurry.set()

    def check(self) -> None:
        """Raise the error of the task that failed, if one did."""
        if self._failure:
            raise self._failure

    async def unless_hurried(self, work: asyncio.Future[Any]) -> None:
        """Wait for `work`, but not past the second signal."""
        hurry = asyncio.create_task(self.hurry.wait())
        await asyncio.wait((work, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
