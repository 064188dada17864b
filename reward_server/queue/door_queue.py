"""Implements the doors' side of the queue: admit jobs, wait for outcomes, and report what is queued and served.

Waiters for named jobs get each outcome once it is ready. Waiters for a run get its outcomes in the order the jobs
ended. One reader per process (finished.py) wakes them. Every job ends with exactly one outcome, whichever process dies.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum

from protos.results import OUTCOME
from protos.types import Context, Model, Outcome, RefreshResponse, Submission
from reward_server.errors import BadRequest, NotReady, RewardServerError, ScoringFailed, UnknownJob, error_outcome
from reward_server.queue import scripts
from reward_server.queue.admission import NO_REFUSALS, Admission
from reward_server.queue.dead_letters import DeadLetters
from reward_server.queue.endings import Endings
from reward_server.queue.finished import Finished, FinishedReader, stored_outcomes
from reward_server.queue.keys import Keys
from reward_server.queue.lease import tick_s
from reward_server.queue.patience import LOOK_S, patience
from reward_server.queue.quota import NO_QUOTA, QueueDepth, Quota
from reward_server.queue.records import unpack_model, unpack_outcome, unpack_refreshed
from reward_server.queue.redis_link import Entry, RedisLink
from reward_server.queue.refreshes import RefreshRequests
from reward_server.queue.run_store import RunStore
from reward_server.queue.sweep import Sweep
from reward_server.queue.version_history import VersionHistory
from reward_server.queue.version_transfer import VersionTransfer
from reward_server.settings import Settings

RUN_PAGE = 64
LOOK_AGAIN_S = 0.5
NUM_NAMED = 8  # unknown jobs named in an error, whose text must fit into a call's trailers
CURSOR = re.compile(r"\d{1,19}-\d{1,19}")


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """What the metrics show of the queue beside its depth and its counters."""

    oldest_age_s: float = 0.0  # of the unfinished job that was admitted first; 0 without one
    silent_workers: int = 0  # their leases ended while they held jobs
    last_refresh: RefreshResponse | None = None  # the version that was published last, of any run
    last_refresh_s: float = 0.0  # when, since the epoch, on Redis's clock


class DoorQueue:
    """The queue of one process with doors. `open` it first and `close` it at the end.

    Methods raise NotReady while Redis is unreachable.
    """

    def __init__(self, link: RedisLink, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, Keys(profile=settings.profile), settings
        self._admission = Admission(link, self._keys, settings)
        self.dead_letters = DeadLetters(link, self._keys, self._admission)
        self._reader = FinishedReader(link, self._keys, tick_s=tick_s(settings))
        self._endings = Endings(link, settings)
        self._sweep = Sweep("overdue jobs", self._endings.end_overdue, tick_s(settings))
        self.store = RunStore(link, self._keys, settings)
        self.refreshes = RefreshRequests(link, self._keys, settings)
        self.history = VersionHistory(link, self._keys)
        self.transfer = VersionTransfer(link, self._keys, settings, self.store)

    async def open(self) -> None:
        """Start to follow finished jobs and to end overdue ones. Does not raise, because Redis may start later."""
        await self._reader.start()
        self._sweep.start()

    async def close(self) -> None:
        """Stop both, and close the connections to Redis."""
        await self._sweep.stop()
        await self._endings.close()
        await self._reader.stop()
        await self.refreshes.close()
        await self._link.close()

    async def admit(
        self,
        submissions: Sequence[Submission],
        refusals: Mapping[int, RewardServerError] = NO_REFUSALS,
        owner: str = "",
        quota: Quota = NO_QUOTA,
    ) -> list[str]:
        """Admit all submissions or none, and return their job ids in order.

        See Admission.admit for `refusals`, `owner`, `quota` and the errors.
        """
        return await self._admission.admit(submissions, refusals, owner, quota)

    # --- outcomes -------------------------------------------------------------------------------

    async def state(self, job_id: str) -> JobState:
        """The state of a job. Raises UnknownJob."""
        [[state]] = await self._link.hash_rows([self._keys.job(job_id)], "state")
        if state is None:
            raise unknown_jobs([job_id])
        return JobState(state.decode())

    async def outcome(self, job_id: str) -> Outcome | None:
        """The outcome of a job, or None if it is not done. Raises UnknownJob."""
        found = await stored_outcomes(self._link, self._keys, [job_id])
        if job_id not in found:
            raise unknown_jobs([job_id])
        return found[job_id]

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> AsyncGenerator[Outcome, None]:
        """Yield the outcome of each distinct job once it is ready.

        Ends when all have come, or after `timeout_s` without a new one. Raises UnknownJob at once if a job is unknown.
        A job that disappears later, because Redis lost its data, gets a failed outcome.
        """
        missing = dict.fromkeys(job_ids)
        loop = asyncio.get_running_loop()
        until, all_known = loop.time() + timeout_s, False
        with self._reader.watch(job_ids=missing) as watch:
            while missing:
                ready = watch.take()
                if watch.must_look():
                    try:
                        with self._patience(until - loop.time()):
                            ready += await self._look(list(missing), refuse_unknown=not all_known)
                        all_known = True
                    except NotReady:  # an outage of Redis delays the outcome, but does not lose it
                        loop.call_later(LOOK_AGAIN_S, watch.bring, None)
                for outcome in ready:
                    if outcome.job_id in missing:
                        del missing[outcome.job_id]
                        until = loop.time() + timeout_s
                        yield outcome
                if missing and not await watch.news(until - loop.time()):
                    return

    async def run_outcomes(self, run_id: str, after: str, timeout_s: float) -> AsyncGenerator[Outcome, None]:
        """Yield a run's outcomes after the cursor `after`, in the order the jobs ended.

        Ends after `timeout_s` without a new one. An explanation is missing once the job's own result has expired.
        Raises BadRequest for a malformed cursor.
        """
        if after and not CURSOR.fullmatch(after):
            raise BadRequest(
                f"'{after}' is not a cursor; give the `cursor` of the last outcome seen, or leave it empty"
            )
        with self._reader.watch(run_id=run_id) as watch:
            cursor = after
            while True:
                watch.take()
                while page := await self._page(run_id, cursor, timeout_s):
                    for entry in page:
                        cursor = entry.id
                        outcome = await self._explained(unpack_outcome(entry.fields[OUTCOME]), timeout_s)
                        yield replace(outcome, cursor=cursor)
                if not await watch.news(timeout_s):
                    return

    def _patience(self, timeout_s: float) -> AbstractContextManager[None]:
        """Patience for a look of a caller who waits `timeout_s` longer."""
        return patience(min(self._settings.redis_wait_s, max(LOOK_S, timeout_s)))

    async def _page(self, run_id: str, cursor: str, timeout_s: float) -> list[Entry]:
        with self._patience(timeout_s):
            return await self._link.page(self._keys.run(run_id), after=cursor, count=RUN_PAGE)

    async def _explained(self, outcome: Outcome, timeout_s: float) -> Outcome:
        """The outcome with its explanation, which is kept with the result alone. Without it if that has expired."""
        if outcome.reward is None or not outcome.context.explain:
            return outcome
        with self._patience(timeout_s):
            found = await stored_outcomes(self._link, self._keys, [outcome.job_id])
        return found.get(outcome.job_id) or outcome

    async def _look(self, job_ids: list[str], *, refuse_unknown: bool) -> list[Outcome]:
        found = await stored_outcomes(self._link, self._keys, job_ids)
        unknown = [job_id for job_id in job_ids if job_id not in found]
        if unknown and refuse_unknown:
            raise unknown_jobs(unknown)
        return [outcome for outcome in found.values() if outcome] + [_lost(job_id) for job_id in unknown]

    def observe(self, observer: Callable[[Finished], None]) -> None:
        """Call `observer` with every job that ends from now on, also those of other doors."""
        self._reader.observers.append(observer)

    async def return_all(self) -> int:
        """Forget all workers and give their jobs back, because none of them is left. Returns the number of jobs."""
        return int(await self._link.run(scripts.RETURN_ALL))

    # --- what is queued and served --------------------------------------------------------------

    async def models(self) -> list[Model]:
        """The model of each live worker. The one with the latest heartbeat is last."""
        return [unpack_model(row) for row in await self._link.run(scripts.MODELS) if row]

    async def unjudged(self) -> dict[str, int]:
        """Versions that no live worker has loaded, and the number of jobs that wait for a worker with each."""
        return {version.decode(): jobs for version, jobs in await self._link.run(scripts.LANES)}

    async def depth(self) -> QueueDepth:
        return QueueDepth(**await self._link.hash_numbers(self._keys.depth))

    async def vitals(self) -> Vitals:
        oldest_ms, silent, record, published_ms = await self._link.run(scripts.VITALS)
        return Vitals(
            oldest_age_s=max(0, oldest_ms) / 1000,
            silent_workers=silent,
            last_refresh=unpack_refreshed(record) if record else None,
            last_refresh_s=published_ms / 1000,
        )

    async def counts(self) -> dict[str, int]:
        """Counters since `began_ms` on Redis's clock: admitted, finished, each outcome kind, redelivered, dead,
        refreshed, refresh_failed and refresh_failed:<code>.
        """
        return await self._link.hash_numbers(self._keys.counts)


def unknown_jobs(job_ids: Sequence[str]) -> UnknownJob:
    """The error for jobs that there are not."""
    named = ", ".join(job_ids[:NUM_NAMED]) + (f" and {more} more" if (more := len(job_ids) - NUM_NAMED) > 0 else "")
    return UnknownJob(f"no such job, or its result has expired: {named}; submit the clip again")


def _lost(job_id: str) -> Outcome:
    gone = ScoringFailed(f"job {job_id} is gone: Redis restarted without its data; submit the clip again")
    return error_outcome(job_id, gone, Context())
