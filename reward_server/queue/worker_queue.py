"""Implements the workers' side of the queue: claim -> payload -> renew -> finish or hand back, and heartbeats.

A claim is a lease (lease.py): a worker that does not renew it loses its jobs to another. A job that was held by too
many workers when they died ends as failed and becomes a dead letter (dead_letters.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protos.types import Context, Media, Model, Outcome
from reward_server.errors import AttemptsExhausted, ScoringFailed, error_outcome
from reward_server.queue import scripts
from reward_server.queue.endings import Endings, late_outcome
from reward_server.queue.feature_sweep import feature_sweep
from reward_server.queue.keys import Keys
from reward_server.queue.lease import Claimed, expiry_s, lease_ms, new_token, tick_s
from reward_server.queue.records import pack_model, unpack_context
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.refreshes import RefreshWork
from reward_server.queue.run_store import RunStore
from reward_server.queue.sweep import Sweep
from reward_server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Job(Claimed):
    """A claimed job: one clip to score."""

    entry: str  # in the queue or in a lane (lua/shared/stream.lua)
    queue_ms: float
    media: Media
    context: Context
    version: str  # of the discriminators that must score it; empty: those the worker has loaded


class WorkerQueue:
    """The queue of one worker. `open` it first and `close` it at the end.

    Methods raise NotReady while Redis is unreachable.
    """

    def __init__(self, link: RedisLink, settings: Settings) -> None:
        self._link, self._settings = link, settings
        self._keys = Keys(profile=settings.profile)
        self._endings = Endings(link, settings)
        self._sweep = Sweep("overdue jobs", self._endings.end_overdue, tick_s(settings))
        self._feature_sweep = feature_sweep(link, self._keys, settings)
        self.store = RunStore(link, self._keys, settings)
        self.refreshes = RefreshWork(link, self._keys, settings)

    async def open(self) -> None:
        """Start to end overdue jobs and to tidy up. This does not wait for Redis, which may start later."""
        self._sweep.start()
        if self._feature_sweep:
            self._feature_sweep.start()

    async def close(self) -> None:
        """Stop both, and close the connections to Redis."""
        await self._sweep.stop()
        if self._feature_sweep:
            await self._feature_sweep.stop()
        await self._endings.close()
        await self._link.close()

    async def claim(
        self, worker_id: str, *, count: int, wait_ms: float, abandoned: bool = True, model: Model | None = None
    ) -> list[Job]:
        """Claim up to `count` jobs that `model` can judge, and as many from its lane. None claims any job.

        Waits at most `wait_ms` (limited to 5 s) for the first. With `abandoned`, a job whose worker has fallen silent
        comes first, and alone. A job that only other models can judge goes to their lane. Jobs that are overdue or out
        of attempts end here. None of these is returned.
        """
        judge = (model.discriminator_version, model.preprocessing_digest) if model else ("", "")
        if abandoned and (job := await self._claim_abandoned(worker_id, judge)):
            return [job]
        found = await self._link.read_group(
            self._streams(model), scripts.GROUP, worker_id, count=count, wait_ms=wait_ms
        )
        if not found:
            await self._link.run(scripts.BEGIN, judge[0])  # in case Redis is new or was emptied, and has no group
            return []
        pairs = (
            part
            for stream, entries in found.items()
            for entry in entries
            for part in (entry.id if stream == self._keys.queue else f"{entry.id}@{judge[0]}", entry.fields["job"])
        )
        rows = await self._link.run(scripts.CLAIM, worker_id, new_token(), count, *judge, *pairs)
        jobs = await asyncio.gather(*(self._viable(_job(row)) for row in rows))  # overdue ones end together
        return [job for job in jobs if job]

    async def abandoned(self, model: Model | None = None) -> bool:
        """Whether there is a job whose worker has not renewed its lease, in the queue or in the lane of `model`."""
        return await self._link.has_silent(self._streams(model), scripts.GROUP, idle_ms=lease_ms(self._settings))

    def _streams(self, model: Model | None) -> list[str]:
        lanes = [self._keys.lane(model.discriminator_version)] if model else []
        return [*lanes, self._keys.queue]

    async def payload(self, job: Job) -> bytes:
        """The clip's bytes. Raises ScoringFailed if they are gone."""
        payload = await self._link.get(self._keys.payload(job.id))
        if payload is None:
            raise ScoringFailed(f"the payload of job {job.id} is gone from Redis; submit the clip again")
        return payload

    async def traceparent(self, job: Job) -> str:
        """The header of the traced call that submitted an unfinished job. Empty if it was not traced."""
        return (await self._link.get(self._keys.trace(job.id)) or b"").decode()

    async def renew(self, worker_id: str, jobs: Sequence[Job]) -> set[str]:
        """Renew the leases and return the ids still held. The other jobs were taken over or have ended."""
        kept = set(await self._link.run(scripts.RENEW, worker_id, *(job.entry for job in jobs)) if jobs else ())
        return {job.id for job in jobs if job.entry.encode() in kept}

    async def finish(self, job: Job, outcome: Outcome, *, batch: int = 0) -> bool:
        """Store the job's outcome. False if it already had one, which then stays. `batch`: clips scored together."""
        return await self._endings.settle(job.id, outcome, batch=batch)

    async def hand_back(self, worker_id: str, jobs: Sequence[Job]) -> int:
        """Give jobs back unfinished. Others can claim them at once, and the attempt does not count.

        Returns how many of them this worker still held.
        """
        pairs = (part for job in jobs for part in (job.entry, job.id))
        return int(await self._link.run(scripts.HAND_BACK, worker_id, *pairs)) if jobs else 0

    async def idle_workers(self, worker_id: str) -> int:
        """How many other workers would claim a job at once. 0 while unclaimed jobs wait, which they claim first."""
        return int(await self._link.run(scripts.IDLE, worker_id))

    async def announce(self, worker_id: str, model: Model) -> None:
        """Send a heartbeat: this worker is alive for the length of a lease, and serves `model`."""
        life_ms, version = lease_ms(self._settings), model.discriminator_version
        await self._link.run(scripts.ANNOUNCE, worker_id, pack_model(model), life_ms, version)

    async def leave(self, worker_id: str) -> None:
        """Remove this worker from the live ones, because it claims nothing more. It may still hold jobs."""
        await self._link.run(scripts.LEAVE, worker_id)

    async def _claim_abandoned(self, worker_id: str, judge: tuple[str, str]) -> Job | None:
        while row := await self._link.run(scripts.RECLAIM, worker_id, new_token(), lease_ms(self._settings), *judge):
            if job := await self._viable(_job(row)):
                return job
        return None

    async def _viable(self, job: Job) -> Job | None:
        """The job, or None if it is overdue or out of attempts. Then it ends here."""
        if job.is_due:
            await self.finish(job, late_outcome(job.id, job.context, self._settings))
            return None
        if job.attempts > self._settings.max_attempts:
            died = AttemptsExhausted(
                f"{self._settings.max_attempts} workers (max_attempts) died while they held job {job.id}; it is a dead "
                "letter (`motion-reward jobs`); score the clip alone with `motion-reward score` to find out why"
            )
            await self._endings.give_up(job.id, error_outcome(job.id, died, job.context), str(died))
            return None
        return job


def _job(row: Sequence[Any]) -> Job:
    """The job in a row of lua/shared/start.lua."""
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
