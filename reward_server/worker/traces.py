"""Traces a worker's jobs: the wait in the queue, and decoding and scoring with its two stages.

A job's spans belong to the call that submitted it, whose `traceparent` is kept in Redis beside the clip. They are
reported when the job ends, so a worker that dies reports none. Without tracing nothing is kept and Redis is not asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from protos import tracing
from protos.tracing import Past
from protos.types import Outcome, Reward
from reward_server.queue.redis_link import AWAY
from reward_server.queue.worker_queue import Job, WorkerQueue
from reward_server.worker.hand import Hand


@dataclass(kw_only=True)
class _Times:
    """When a job was claimed, and its parts so far. Times are in seconds since the epoch."""

    claimed_s: float
    parts: list[Past] = field(default_factory=list)


class Traces:
    """The jobs of one worker that are traced."""

    def __init__(self, queue: WorkerQueue, hand: Hand) -> None:
        self._queue, self._hand = queue, hand
        self._times: dict[str, _Times] = {}

    def claimed(self, job: Job) -> None:
        """Begin a job's span, and forget jobs that the worker does not hold any more."""
        if tracing.is_on():
            self._times = {job_id: times for job_id, times in self._times.items() if job_id in self._hand.jobs}
            self._times[job.id] = _Times(claimed_s=time.time())

    @contextmanager
    def part(self, name: str, jobs: Iterable[Job]) -> Iterator[None]:
        """Time what the block does for these jobs."""
        begin_s = time.time()
        try:
            yield
        finally:
            done = Past(name=name, begin_s=begin_s, end_s=time.time())
            for job in jobs if self._times else ():
                if times := self._times.get(job.id):
                    times.parts.append(done)

    async def parent(self, job: Job) -> str:
        """The header of the call that submitted the job. Empty if it was not traced. Ask before the job ends."""
        if job.id in self._times:
            with suppress(*AWAY):
                return await self._queue.traceparent(job)
        return ""

    def ended(self, job: Job, outcome: Outcome, parent: str) -> None:
        """Report the spans of a job."""
        times = self._times.pop(job.id, None)
        if times is None or not parent:
            return
        queued_s = times.claimed_s - job.queue_ms / 1000
        tracing.record(Past(name="queue", begin_s=queued_s, end_s=times.claimed_s), parent)
        ended = Past(
            name="job",
            kind="consumer",
            begin_s=times.claimed_s,
            end_s=time.time(),
            attributes={"job.id": job.id, "job.attempts": job.attempts, "job.outcome": outcome.kind.value},
            failure=outcome.error.message if outcome.error else "",
            parts=tuple(_with_stages(part, outcome.reward) for part in times.parts),
        )
        tracing.record(ended, parent)


def _with_stages(part: Past, reward: Reward | None) -> Past:
    """The part itself, or scoring with its two stages, which follow each other from its begin."""
    if part.name != "score" or reward is None:
        return part
    timings = reward.provenance.timings
    between_s = part.begin_s + timings.motion_ms / 1000
    end_s = between_s + timings.discriminator_ms / 1000
    stages = (
        Past(name="motion", begin_s=part.begin_s, end_s=between_s),
        Past(name="discriminator", begin_s=between_s, end_s=end_s),
    )
    return Past(name=part.name, begin_s=part.begin_s, end_s=part.end_s, parts=stages)
