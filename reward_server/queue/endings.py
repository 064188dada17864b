"""Ends jobs: `Endings.settle` gives a job its one outcome, and `end_overdue` does so for overdue jobs.

Outcomes that are ready while others are on their way to Redis go there together, in one transaction. Doors and workers
both sweep for overdue jobs, so these get their outcome as long as any process is alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from protos.types import Context, Outcome
from reward_server.errors import DeadlinePassed, error_outcome
from reward_server.queue import scripts
from reward_server.queue.records import pack_outcome, unpack_context
from reward_server.queue.redis_link import Argument, RedisLink, end_task
from reward_server.settings import Settings

MOST = 16  # outcomes that go to Redis together


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ending:
    """One outcome on its way to Redis."""

    fields: tuple[Argument, ...]  # of lua/finish.lua
    settled: asyncio.Future[bool]


class Endings:
    """Gives jobs their outcomes. Only this class does so after admission. `close` it at the end."""

    def __init__(self, link: RedisLink, settings: Settings) -> None:
        self._link, self._settings = link, settings
        self._ready: list[_Ending] = []
        self._sending: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop sending. Outcomes that nobody waits for any more may not be stored."""
        if self._sending:
            await end_task(self._sending)
        for ending in self._ready:
            ending.settled.cancel()

    async def settle(self, job_id: str, outcome: Outcome, *, batch: int = 0) -> bool:
        """Store the outcome. False if the job already had one, which then stays.

        `batch` is the number of clips that were scored together.
        """
        fields = (job_id, outcome.kind.value, pack_outcome(outcome), _brief(outcome), batch)
        ending = _Ending(fields=fields, settled=asyncio.get_running_loop().create_future())
        self._ready.append(ending)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="endings")
        return await ending.settled

    async def give_up(self, job_id: str, outcome: Outcome, letter: str) -> bool:
        """The same for a job that becomes a dead letter, with what is needed to replay it."""
        limits = self._settings
        settled = await self._link.run(
            scripts.GIVE_UP,
            job_id,
            outcome.kind.value,
            pack_outcome(outcome),
            limits.result_ttl_s,
            letter,
            limits.dead_letter_ttl_s,
            limits.dead_letter_max_bytes,
        )
        return bool(settled)

    async def _send(self) -> None:
        while self._ready:
            endings, self._ready = self._ready[:MOST], self._ready[MOST:]
            try:
                await self._store(endings)
            finally:
                for ending in endings:
                    ending.settled.cancel()  # if this task was cancelled; else it is done

    async def _store(self, endings: Sequence[_Ending]) -> None:
        fields = (field for ending in endings for field in ending.fields)
        try:
            firsts = await self._link.run(scripts.FINISH, self._settings.result_ttl_s, *fields)
        except Exception as error:  # to everyone who waits, and each may try again
            for ending in endings:
                if not ending.settled.done():
                    ending.settled.set_exception(error)
            return
        for ending, first in zip(endings, firsts, strict=True):
            if not ending.settled.done():
                ending.settled.set_result(bool(first))

    async def end_overdue(self) -> None:
        """Give every overdue job its outcome, whether it is queued or running."""
        while rows := await self._link.run(scripts.OVERDUE):
            late = [late_outcome(job_id.decode(), unpack_context(context), self._settings) for job_id, context in rows]
            await asyncio.gather(*(self.settle(outcome.job_id, outcome) for outcome in late))


def _brief(outcome: Outcome) -> bytes:
    """What the stream of the job's run gets instead of the outcome, or nothing if it gets the outcome itself.

    An explanation is large, and entries of a stream can outlive the result, so it stays with the result alone.
    """
    if outcome.reward is None or outcome.reward.explanation is None:
        return b""
    return pack_outcome(replace(outcome, reward=replace(outcome.reward, explanation=None)))


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
