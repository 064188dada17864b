"""The outcomes of jobs, for those who wait: of the jobs they name as each is ready, or of a run in their order.

The doors' side of the queue (jobs.py) after admission; finished.py says when something new has come.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from enum import StrEnum

from protos.results import OUTCOME
from protos.types import Context, Outcome
from reward_server.errors import BadRequest, NotReady, ScoringFailed, UnknownJob, error_outcome
from reward_server.queue.finished import FinishedReader, stored_outcomes
from reward_server.queue.records import unpack_outcome
from reward_server.queue.side import Side

RUN_PAGE = 64
LOOK_AGAIN_S = 0.5
NUM_NAMED = 8  # of unknown jobs; an error's text must fit into the trailers of a call
CURSOR = re.compile(r"\d{1,19}-\d{1,19}")


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Outcomes(Side):
    """How jobs end, to those who asked for them."""

    _reader: FinishedReader

    async def state(self, job_id: str) -> JobState:
        """Raises UnknownJob."""
        [[state]] = await self._link.hash_rows([self._keys.job(job_id)], "state")
        if state is None:
            raise _unknown([job_id])
        return JobState(state.decode())

    async def outcome(self, job_id: str) -> Outcome | None:
        """None while the job is not done. Raises UnknownJob."""
        found = await stored_outcomes(self._link, self._keys, [job_id])
        if job_id not in found:
            raise _unknown([job_id])
        return found[job_id]

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> AsyncGenerator[Outcome, None]:
        """Each distinct job's outcome as it is ready; ends when all came, or after `timeout_s` without one.

        Raises UnknownJob at once if any is unknown. A job that disappears later (Redis lost its data) ends as failed.
        """
        missing = dict.fromkeys(job_ids)
        loop = asyncio.get_running_loop()
        until, all_known = loop.time() + timeout_s, False
        with self._reader.watch(job_ids=missing) as watch:
            while missing:
                ready = watch.take()
                if watch.must_look():
                    try:
                        ready += await self._look(list(missing), refuse_unknown=not all_known)
                        all_known = True
                    except NotReady:  # the jobs are safe: an outage costs a waiter time, not its outcome
                        loop.call_later(LOOK_AGAIN_S, watch.bring, None)
                for outcome in ready:
                    if outcome.job_id in missing:
                        del missing[outcome.job_id]
                        until = loop.time() + timeout_s
                        yield outcome
                if missing and not await watch.news(until - loop.time()):
                    return

    async def run_outcomes(self, run_id: str, after: str, timeout_s: float) -> AsyncGenerator[Outcome, None]:
        """Outcomes of a run in the order they came, from cursor `after` on; ends after `timeout_s` without one."""
        if after and not CURSOR.fullmatch(after):
            raise BadRequest(f"'{after}' is not a cursor; give the `cursor` of the last outcome seen, or none")
        with self._reader.watch(run_id=run_id) as watch:
            cursor = after
            while True:
                watch.take()
                while page := await self._run_page(run_id, cursor):
                    for outcome in page:
                        cursor = outcome.cursor
                        yield outcome
                if not await watch.news(timeout_s):
                    return

    async def _look(self, job_ids: list[str], *, refuse_unknown: bool) -> list[Outcome]:
        found = await stored_outcomes(self._link, self._keys, job_ids)
        unknown = [job_id for job_id in job_ids if job_id not in found]
        if unknown and refuse_unknown:
            raise _unknown(unknown)
        lost = [error_outcome(job_id, _lost(job_id), Context()) for job_id in unknown]
        return [outcome for outcome in found.values() if outcome] + lost

    async def _run_page(self, run_id: str, after: str) -> list[Outcome]:
        entries = await self._link.page(self._keys.run(run_id), after=after, count=RUN_PAGE)
        return [replace(unpack_outcome(entry.fields[OUTCOME]), cursor=entry.id) for entry in entries]


def _unknown(job_ids: Sequence[str]) -> UnknownJob:
    named = ", ".join(job_ids[:NUM_NAMED]) + (f" and {more} more" if (more := len(job_ids) - NUM_NAMED) > 0 else "")
    return UnknownJob(f"no such job, or its result has expired: {named}; submit the clip again")


def _lost(job_id: str) -> ScoringFailed:
    return ScoringFailed(f"job {job_id} is gone: Redis restarted without its data; submit the clip again")
