"""Repeats a piece of tidying for as long as a process lives, whether Redis answers or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from reward_server.errors import RewardServerError
from reward_server.queue.redis_link import end_task

RETRY_S = 60.0

log = structlog.get_logger(__name__)


class Sweep:
    """Calls `tidy` every `tick_s`, from `start` to `stop`. After an error it tries again within RETRY_S."""

    def __init__(self, name: str, tidy: Callable[[], Awaitable[None]], tick_s: float) -> None:
        self._name, self._tidy, self._tick_s = name, tidy, tick_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"sweep of {self._name}")

    async def stop(self) -> None:
        if self._task:
            await end_task(self._task)

    async def _run(self) -> None:
        while True:
            wait_s = min(self._tick_s, RETRY_S)
            try:
                await self._tidy()
                wait_s = self._tick_s
            except RewardServerError as error:
                log.warning(f"cannot sweep {self._name}, trying again", error=str(error), retry_s=wait_s)
            except Exception:
                log.exception(f"the sweep of {self._name} failed; it goes on")
            await asyncio.sleep(wait_s)
