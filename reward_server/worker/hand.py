"""Keeps the jobs that a worker holds, from claim to finish, and chooses the next batch among them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from reward_server.queue.worker_queue import Job
from reward_server.scorer import Prepared


@dataclass(frozen=True, kw_only=True, eq=False)
class Ready:
    """A job whose clip is decoded, and the discriminator version that will score it. "" is the loaded version."""

    job: Job
    prepared: Prepared
    version: str = ""

    @property
    def kind(self) -> tuple[str, tuple[int, ...]]:
        return self.version, self.prepared.shape


class Hand:
    """The jobs that a worker holds. A job that is no longer in `jobs` has ended or was taken over."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.unscored: set[str] = set()  # ids of the jobs whose batch has not begun
        self.waiting: set[str] = set()  # ids of the jobs whose decoding has not begun
        self.ready: list[Ready] = []  # unscored jobs that are decoded, oldest first
        self.num_begun = 0  # decodings, so far
        self.stuck = False  # all decoders have been busy for long: nothing more should be claimed
        self._moved = asyncio.Event()

    def take(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.unscored.add(job.id)
        self.waiting.add(job.id)
        self.move()

    def begin(self, job_id: str) -> bool:
        """Report that a decoder is free for a job. False if the job has left meanwhile."""
        self.free()
        if job_id not in self.waiting:
            return False
        self.waiting.discard(job_id)
        self.num_begun += 1
        return True

    def free(self) -> None:
        """Report that a decoder is free."""
        self.stuck = False
        self.move()

    async def gets_stuck(self, slow_s: float) -> bool:
        """Whether jobs wait for `slow_s` seconds without one of them beginning. Sets `stuck`."""
        begun = self.num_begun
        await self.until(lambda: self.num_begun > begun or not self.waiting, slow_s)
        self.stuck = self.num_begun == begun and bool(self.waiting)
        return self.stuck

    def part(self) -> list[Job]:
        """The waiting jobs, oldest first. They do not begin any more, and stay in `jobs` until they are dropped."""
        parted = [job for job in self.jobs.values() if job.id in self.waiting]
        self.waiting.clear()
        return parted

    def drop(self, job_id: str) -> None:
        self.jobs.pop(job_id, None)
        self.unscored.discard(job_id)
        self.waiting.discard(job_id)
        self.ready = [item for item in self.ready if item.job.id != job_id]
        self.move()

    def move(self) -> None:
        """Report a change: everyone who waits in `until` checks again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def move_after(self, event: asyncio.Event) -> None:
        await event.wait()
        self.move()

    async def until(self, holds: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait until `holds` returns True, or for at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not holds():
                    await self._moved.wait()

    def next_batch(self, max_jobs: int, max_cost: float) -> list[Ready]:
        """Take the next batch: the oldest ready clip, and others of the same version and shape.

        The batch has at most `max_jobs` clips and at most `max_cost` in total. A single clip over `max_cost` is still
        taken, alone.
        """
        batch: list[Ready] = []
        for item in self.ready:
            same = not batch or item.kind == batch[0].kind
            if same and (not batch or sum(i.prepared.cost for i in [*batch, item]) <= max_cost):
                batch.append(item)
            if len(batch) == max_jobs:
                break
        for item in batch:
            self.ready.remove(item)
            self.unscored.discard(item.job.id)
        self.move()
        return batch
