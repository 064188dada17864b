"""Jobs in the hands of workers: claim -> payload -> renew -> finish, or hand back; and what ends without a reward.

The workers' side of the queue (jobs.py). A claim is a lease: a worker that falls silent for one loses its
jobs to another, and a job over which too many have died is a dead letter.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protos.types import Context, Media, Model, Outcome
from reward_server.errors import AttemptsExhausted, DeadlinePassed, ScoringFailed, error_outcome
from reward_server.queue import transitions
from reward_server.queue.finished import Beginning
from reward_server.queue.records import pack_model, pack_outcome, unpack_context
from reward_server.queue.side import Side
from reward_server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """A claimed job: the claimer's until its lease ends without renewal."""

    id: str
    entry: str
    attempts: int  # claims so far, this one included
    queue_ms: float
    expires_at_s: float  # on time.monotonic(): from then on its only outcome is timeout
    media: Media
    context: Context
    version: str  # of the discriminators that must judge it; empty: those the worker has loaded

    @property
    def suspect(self) -> bool:
        """A worker died over it or beside it: it is scored alone, so that it takes no others with it."""
        return self.attempts > 1


class Claims(Side):
    """How jobs are worked on, and the one way in which they end."""

    @property
    def _lease_ms(self) -> int:
        return max(1, int(self._settings.lease_s * 1000))

    async def claim(self, worker_id: str, *, count: int, wait_ms: float, abandoned: bool = True) -> list[Job]:
        """Up to `count` jobs; blocks at most `wait_ms` (5 s at most) for the first.

        A job whose worker fell silent comes first, and alone. Jobs that are overdue or out of attempts end here.
        """
        if abandoned and (job := await self._claim_abandoned(worker_id)):
            return [job]
        entries = await self._link.read_group(
            self._keys.queue, transitions.GROUP, worker_id, count=count, wait_ms=wait_ms
        )
        if not entries:
            await self._begin()  # a new or emptied Redis has no group yet
            return []
        pairs = (part for entry in entries for part in (entry.id, entry.fields["job"]))
        rows = await self._link.run(transitions.START, _token(), *pairs)
        jobs = [await self._viable(_job(row)) for row in rows]
        return [job for job in jobs if job]

    async def abandoned(self) -> bool:
        """Whether a job waits whose worker has been silent for a lease."""
        return await self._link.has_silent(self._keys.queue, transitions.GROUP, idle_ms=self._lease_ms)

    async def payload(self, job: Job) -> bytes:
        """The clip's bytes. Raises ScoringFailed when they are gone."""
        payload = await self._link.get(self._keys.payload(job.id))
        if payload is None:
            raise ScoringFailed(f"the payload of job {job.id} is gone from Redis; submit the clip again")
        return payload

    async def renew(self, worker_id: str, jobs: Sequence[Job]) -> set[str]:
        """Begin their leases anew; returns the ids still held. The others were taken over, or have ended."""
        kept = set(await self._link.run(transitions.RENEW, worker_id, *(job.entry for job in jobs)) if jobs else ())
        return {job.id for job in jobs if job.entry.encode() in kept}

    async def finish(self, job: Job, outcome: Outcome, *, batch: int = 0) -> bool:
        """Settle the job; False if it had an outcome already, which then stays. `batch`: clips scored together."""
        return await self._settle(job.id, outcome, batch=batch)

    async def hand_back(self, worker_id: str, jobs: Sequence[Job]) -> int:
        """Give up jobs unfinished: others get them at once, with no attempt counted. Returns how many were held."""
        pairs = (part for job in jobs for part in (job.entry, job.id))
        return int(await self._link.run(transitions.HAND_BACK, worker_id, *pairs)) if jobs else 0

    async def announce(self, worker_id: str, model: Model) -> None:
        """Heartbeat: for a lease from now on this worker lives and serves `model`."""
        version = model.discriminator_version
        await self._link.run(transitions.ANNOUNCE, worker_id, pack_model(model), self._lease_ms, version)

    async def leave(self, worker_id: str) -> None:
        """This worker will not come back."""
        await self._link.run(transitions.LEAVE, worker_id)

    async def _claim_abandoned(self, worker_id: str) -> Job | None:
        while row := await self._link.run(transitions.RECLAIM, worker_id, _token(), self._lease_ms):
            if job := await self._viable(_job(row)):
                return job
        return None

    async def _viable(self, job: Job) -> Job | None:
        """The job, unless it must end without being scored."""
        if time.monotonic() >= job.expires_at_s:
            await self._settle(job.id, error_outcome(job.id, late(job.context, self._settings), job.context))
            return None
        if job.attempts > self._settings.max_attempts:
            died = AttemptsExhausted(
                f"{self._settings.max_attempts} workers died over job {job.id}; it is on the dead-letter stream. "
                "Score the clip alone with `motion-reward score` to see what it does"
            )
            await self._settle(job.id, error_outcome(job.id, died, job.context), letter=str(died))
            return None
        return job

    async def _end_overdue(self) -> None:
        """Give every job whose time is up its outcome, queued or running."""
        while rows := await self._link.run(transitions.OVERDUE):
            for job_id, data in rows:
                context = unpack_context(data)
                await self._settle(
                    job_id.decode(), error_outcome(job_id.decode(), late(context, self._settings), context)
                )

    async def _settle(self, job_id: str, outcome: Outcome, *, batch: int = 0, letter: str = "") -> bool:
        data = pack_outcome(outcome)
        keep_s = self._settings.result_ttl_s
        return bool(await self._link.run(transitions.FINISH, job_id, outcome.kind.value, data, batch, keep_s, letter))

    async def _begin(self) -> Beginning:
        """Make sure of the group; answers which Redis this is."""
        began_ms, run = await self._link.run(transitions.BEGIN)
        return Beginning(began_ms=int(began_ms), run=run.decode())


def late(context: Context, settings: Settings) -> DeadlinePassed:
    """Why a job that is due ends without a reward."""
    if context.deadline_s is not None and context.deadline_s < settings.job_ttl_s:
        return DeadlinePassed(
            f"its deadline of {context.deadline_s:g} s passed before it was scored; allow more, or send less at once"
        )
    return DeadlinePassed(f"it was not scored within {settings.job_ttl_s} s of admission (job_ttl_s); submit it again")


def _job(row: Sequence[Any]) -> Job:
    """From the answer of transitions.START."""
    entry, job_id, attempts, queue_ms, left_ms, media, context, version = row
    return Job(
        id=job_id.decode(),
        entry=entry.decode(),
        attempts=attempts,
        queue_ms=float(queue_ms),
        expires_at_s=time.monotonic() + left_ms / 1000,
        media=Media(media.decode()),
        context=unpack_context(context),
        version=version.decode(),
    )


def _token() -> str:
    """Names one claim, so that a script sent twice counts one attempt."""
    return uuid.uuid4().hex
