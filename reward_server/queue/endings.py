"""Ends jobs: `Endings.settle` gives a job its one outcome, and `Sweep` ends overdue jobs.

Doors and workers both sweep, so overdue jobs get their outcome as long as any process is alive.
"""

from __future__ import annotations

import asyncio

import structlog

from protos.types import Context, Outcome
from reward_server.errors import DeadlinePassed, RewardServerError, error_outcome
from reward_server.queue import scripts
from reward_server.queue.lease import tick_s
from reward_server.queue.records import pack_outcome, unpack_context
from reward_server.queue.redis_link import RedisLink, end_task
from reward_server.settings import Settings

log = structlog.get_logger(__name__)


class Endings:
    """Gives jobs their outcomes. Only this class does so after admission."""

    def __init__(self, link: RedisLink, settings: Settings) -> None:
        self._link, self._settings = link, settings

    async def settle(self, job_id: str, outcome: Outcome, *, batch: int = 0, letter: str = "") -> bool:
        """Store the outcome. False if the job already had one, which then stays.

        `batch` is the number of clips that were scored together. A `letter` is added to the dead-letter stream.
        """
        data, keep_s = pack_outcome(outcome), self._settings.result_ttl_s
        return bool(await self._link.run(scripts.FINISH, job_id, outcome.kind.value, data, batch, keep_s, letter))

    async def end_overdue(self) -> None:
        """Give every overdue job its outcome, whether it is queued or running."""
        while rows := await self._link.run(scripts.OVERDUE):
            for job_id, context in rows:
                outcome = late_outcome(job_id.decode(), unpack_context(context), self._settings)
                await self.settle(outcome.job_id, outcome)


class Sweep:
    """Ends overdue jobs every `tick_s`, from `start` to `stop`. It tries again while Redis does not answer."""

    def __init__(self, endings: Endings, settings: Settings) -> None:
        self._endings, self._tick_s = endings, tick_s(settings)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="sweep")

    async def stop(self) -> None:
        if self._task:
            await end_task(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._endings.end_overdue()
            except RewardServerError as error:
                log.warning("cannot end overdue jobs, trying again", error=str(error), retry_s=self._tick_s)
            except Exception:
                log.exception("the sweep of overdue jobs failed; it goes on")
            await asyncio.sleep(self._tick_s)


def late_outcome(job_id: str, context: Context, settings: Settings) -> Outcome:
    """The outcome of a job that was not scored before its deadline, or within job_ttl_s."""
    if context.deadline_s is not None and context.deadline_s < settings.job_ttl_s:
        late = (
            f"its deadline of {context.deadline_s:g} s passed before it was scored; "
            "allow more time, or send fewer clips at once"
        )
    else:
        late = f"it was not scored within {settings.job_ttl_s} s of admission (job_ttl_s); submit it again"
    return error_outcome(job_id, DeadlinePassed(late), context)
