"""The workers' side of the queue: claim -> payload -> renew -> finish, or hand back; heartbeats.

A claim is a lease (lease.py): a worker that is silent for one loses its jobs to another. A job over which too many
workers died ends as failed and goes to the dead-letter stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protos.types import Context, Media, Model, Outcome
from reward_server.errors import AttemptsExhausted, ScoringFailed, error_outcome
from reward_server.queue import scripts
from reward_server.queue.endings import Endings, Sweep, late_outcome
from reward_server.queue.keys import Keys
from reward_server.queue.lease import Claimed, expiry_s, lease_ms, new_token
from reward_server.queue.records import pack_model, unpack_context
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.refreshes import RefreshWork
from reward_server.queue.run_store import RunStore
from reward_server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Job(Claimed):
    """A claimed job: one clip to score."""

    entry: str  # in the stream of jobs
    queue_ms: float
    media: Media
    context: Context
    version: str  # of the discriminators that must judge it; empty: those the worker has loaded

    @property
    def suspect(self) -> bool:
        """Whether a worker died while it held this job. It is then scored alone, so that it takes no others with it."""
        return self.attempts > 1


class WorkerQueue:
    """One per worker: `open` it, and `close` it at the end. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, link: RedisLink, settings: Settings) -> None:
        self._link, self._settings = link, settings
        self._keys = Keys(profile=settings.profile)
        self._endings = Endings(link, settings)
        self._sweep = Sweep(self._endings, settings)
        self.store = RunStore(link, self._keys, settings)
        self.refreshes = RefreshWork(link, self._keys, settings)

    async def open(self) -> None:
        """End overdue jobs from now on. Does not wait for Redis: it may come later."""
        self._sweep.start()

    async def close(self) -> None:
        """Stop that, and close the connections to Redis."""
        await self._sweep.stop()
        await self._link.close()

    async def claim(self, worker_id: str, *, count: int, wait_ms: float, abandoned: bool = True) -> list[Job]:
        """Up to `count` jobs; blocks at most `wait_ms` (5 s at most) for the first.

        A job whose worker fell silent comes first, and alone. Jobs that are overdue or out of attempts end here.
        """
        if abandoned and (job := await self._claim_abandoned(worker_id)):
            return [job]
        entries = await self._link.read_group(self._keys.queue, scripts.GROUP, worker_id, count=count, wait_ms=wait_ms)
        if not entries:
            await self._link.run(scripts.BEGIN)  # a new or emptied Redis has no group yet
            return []
        pairs = (part for entry in entries for part in (entry.id, entry.fields["job"]))
        rows = await self._link.run(scripts.CLAIM, new_token(), *pairs)
        jobs = [await self._viable(_job(row)) for row in rows]
        return [job for job in jobs if job]

    async def abandoned(self) -> bool:
        """Whether a job waits whose worker has been silent for a lease."""
        return await self._link.has_silent(self._keys.queue, scripts.GROUP, idle_ms=lease_ms(self._settings))

    async def payload(self, job: Job) -> bytes:
        """The clip's bytes. Raises ScoringFailed when they are gone."""
        payload = await self._link.get(self._keys.payload(job.id))
        if payload is None:
            raise ScoringFailed(f"the payload of job {job.id} is gone from Redis; submit the clip again")
        return payload

    async def renew(self, worker_id: str, jobs: Sequence[Job]) -> set[str]:
        """Begin their leases anew; returns the ids still held. The others were taken over, or have ended."""
        kept = set(await self._link.run(scripts.RENEW, worker_id, *(job.entry for job in jobs)) if jobs else ())
        return {job.id for job in jobs if job.entry.encode() in kept}

    async def finish(self, job: Job, outcome: Outcome, *, batch: int = 0) -> bool:
        """Settle the job; False if it had an outcome already, which then stays. `batch`: clips scored together."""
        return await self._endings.settle(job.id, outcome, batch=batch)

    async def hand_back(self, worker_id: str, jobs: Sequence[Job]) -> int:
        """Give up jobs unfinished: others get them at once, with no attempt counted. Returns how many were held."""
        pairs = (part for job in jobs for part in (job.entry, job.id))
        return int(await self._link.run(scripts.HAND_BACK, worker_id, *pairs)) if jobs else 0

    async def announce(self, worker_id: str, model: Model) -> None:
        """Heartbeat: for a lease from now on this worker lives and serves `model`."""
        life_ms, version = lease_ms(self._settings), model.discriminator_version
        await self._link.run(scripts.ANNOUNCE, worker_id, pack_model(model), life_ms, version)

    async def leave(self, worker_id: str) -> None:
        """This worker will not come back."""
        await self._link.run(scripts.LEAVE, worker_id)

    async def _claim_abandoned(self, worker_id: str) -> Job | None:
        while row := await self._link.run(scripts.RECLAIM, worker_id, new_token(), lease_ms(self._settings)):
            if job := await self._viable(_job(row)):
                return job
        return None

    async def _viable(self, job: Job) -> Job | None:
        """The job, unless it must end without being scored."""
        if job.is_due:
            await self.finish(job, late_outcome(job.id, job.context, self._settings))
            return None
        if job.attempts > self._settings.max_attempts:
            died = AttemptsExhausted(
                f"{self._settings.max_attempts} workers died over job {job.id}; it is on the dead-letter stream. "
                "Score the clip alone with `motion-reward score` to see what it does"
            )
            await self._endings.settle(job.id, error_outcome(job.id, died, job.context), letter=str(died))
            return None
        return job


def _job(row: Sequence[Any]) -> Job:
    """From a row of lua/shared/start.lua."""
    entry, job_id, attempts, queue_ms, left_ms, media, context, version = row
    return Job(
        id=job_id.decode(),
        entry=entry.decode(),
        attempts=attempts,
        queue_ms=float(queue_ms),
        expires_at_s=expiry_s(left_ms),
        media=Media(media.decode()),
        context=unpack_context(context),
        version=version.decode(),
    )
