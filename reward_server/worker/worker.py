"""Runs a worker: claim -> payload -> decode in threads -> batch of one shape -> score in one thread -> finish.

While one batch is scored, up to `batch_jobs` clips of the next are claimed and decoded. Meanwhile the worker renews its
leases and sends heartbeats. Jobs that wait behind a slow clip go back to the queue if another worker is idle. A job
whose last worker died runs alone, so that another crash loses no other job. If Redis is unreachable, results are kept
until they can be stored.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from protos.types import Outcome, OutcomeKind, Reward, Submission
from reward_server.errors import RewardServerError, error_outcome
from reward_server.queue.endings import late_outcome
from reward_server.queue.redis_link import AWAY, PAUSE_S, connect, end_task, patiently
from reward_server.queue.worker_queue import Job, WorkerQueue
from reward_server.scorer import Scored, Scorer
from reward_server.settings import Settings
from reward_server.worker.hand import Hand, Ready
from reward_server.worker.kept_clips import KeptClips
from reward_server.worker.refresher import Refresher
from reward_server.worker.scoring import Scoring, as_ours
from reward_server.worker.traces import Traces
from reward_server.worker.versions import Versions

CLAIM_WAIT_MS = 1000.0
LOOK_SHARE = 0.1  # of a lease, between two looks for jobs of silent workers
SLOW_S = 1.0  # if no decoding begins for so long, jobs that wait for one go to a worker that has none

log = structlog.get_logger("worker")


async def run_worker(settings: Settings, scorer: Scorer, stop: asyncio.Event) -> None:
    """Score jobs until `stop` is set, then drain for at most settings.drain_s."""
    queue = WorkerQueue(connect(settings), settings)
    await queue.open()
    try:
        with Worker(queue, scorer, settings) as worker:
            await worker.run(stop)
    finally:
        await queue.close()


class Worker:
    """One worker on an open queue. Use it as a context manager, which ends its threads."""

    def __init__(self, queue: WorkerQueue, scorer: Scorer, settings: Settings) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._queue, self._scorer, self._settings = queue, scorer, settings
        self._hand = Hand()
        self._scoring = Scoring(scorer, settings, worker_id=self.id)
        self._versions = Versions(queue.store, scorer, settings.versions_loaded, self._scoring.load)
        self._clips = KeptClips(queue.store, settings)
        self._traces = Traces(queue, self._hand)
        self._refresher = Refresher(queue.refreshes, queue.store, scorer, settings)
        self._decoding = asyncio.Semaphore(self._scoring.num_decoders)
        self._looked_s = -math.inf  # when no job was abandoned, on time.monotonic()
        self._claiming = asyncio.Lock()  # held while this worker could be given a job
        self._tasks: set[asyncio.Task[None]] = set()  # the loops, and one for each job being prepared or stored
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # first error of a task: a bug

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._scoring.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Then finish held jobs for at most settings.drain_s, and hand back the rest.

        Raises the error of a task that failed unexpectedly, and NotReady if the folder for motion is a wrong one.
        """
        await self._clips.check_folder(stop)
        log.info("working", worker=self.id, discriminator_version=self._scorer.model.discriminator_version)
        claiming, refreshing = self._spawn(self._claim(stop)), self._spawn(self._refresher.run(stop))
        for loop in (self._share(), self._keep(stop), self._score(), self._hand.move_after(stop)):
            self._spawn(loop)
        try:
            # A claim that runs when `stop` is set is not cancelled: its job would be held without anyone knowing.
            await asyncio.wait([claiming, self._failure], return_when=asyncio.FIRST_COMPLETED)
            with suppress(*AWAY):  # no new group may be bound to the version of a worker that claims nothing more
                await self._queue.leave(self.id)
            await self._hand.until(lambda: not self._hand.jobs or self._failure.done(), self._settings.drain_s)
            await asyncio.wait([refreshing, self._failure], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in list(self._tasks):
                await end_task(task)
            if not self._failure.done():
                await self._hand_back(list(self._hand.jobs.values()))
            # After a failure the leases end and the attempt counts, because these jobs might break other workers too.
            with suppress(*AWAY):
                await self._queue.leave(self.id)
            log.info("left", worker=self.id)
        if self._failure.done():
            await self._failure

    # --- claim and decode -----------------------------------------------------------------------

    async def _claim(self, stop: asyncio.Event) -> None:
        hand, wanted = self._hand, self._settings.batch_jobs
        while not stop.is_set():
            await hand.until(lambda: (len(hand.unscored) < wanted and not hand.stuck) or stop.is_set())
            try:
                if await self._abandoned():
                    await hand.until(lambda: not hand.jobs or stop.is_set())
                    await self._claim_some(stop, count=1, abandoned=True)
                    await hand.until(lambda: not hand.jobs or stop.is_set())
                else:
                    await self._claim_some(stop, count=wanted - len(hand.unscored), abandoned=False)
            except AWAY as error:
                log.warning("cannot claim", error=str(error))
                await asyncio.sleep(PAUSE_S[0])

    async def _abandoned(self) -> bool:
        """Whether a job's worker has fallen silent. Asks Redis ten times in a lease, not before every claim."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self._settings.lease_s * LOOK_SHARE:
            return False
        found = await self._queue.abandoned(self._scorer.model)
        if not found:  # otherwise there may be more
            self._looked_s = now_s
        return found

    async def _claim_some(self, stop: asyncio.Event, *, count: int, abandoned: bool) -> None:
        async with self._claiming:
            if stop.is_set() or self._hand.stuck:
                return
            wait_ms = min(CLAIM_WAIT_MS, self._settings.lease_s * 500)
            jobs = await self._queue.claim(
                self.id, count=count, wait_ms=wait_ms, abandoned=abandoned, model=self._scorer.model
            )
            if stop.is_set():  # this worker ends: let other workers claim the jobs at once
                await self._hand_back(jobs)
                return
            for job in jobs:
                self._hand.take(job)
                self._traces.claimed(job)
                self._spawn(self._prepare(job))

    async def _prepare(self, job: Job) -> None:
        """Fetch and decode one clip. If that fails, the error is the job's outcome."""
        with structlog.contextvars.bound_contextvars(job_id=job.id):
            async with self._decoding:
                if not self._hand.begin(job.id) or not await self._worth_it(job):
                    return
                try:
                    discriminators = await patiently(lambda: self._versions.discriminators(job.version))
                    payload = await patiently(lambda: self._queue.payload(job))
                    submission = Submission(payload=payload, media=job.media, context=job.context)
                    del payload
                    with self._traces.part("decode", [job]):
                        prepared = await self._scoring.prepare(submission, discriminators)
                except Exception as error:
                    await self._finish(job, _outcome(job, as_ours(error)))
                    return
                finally:
                    self._hand.free()
        if job.id in self._hand.jobs:
            self._hand.ready.append(
                Ready(job=job, prepared=prepared, version=discriminators.version if discriminators else "")
            )
            self._hand.move()

    async def _share(self) -> None:
        """While slow clips keep all decoders busy, give the jobs that wait for one to idle workers."""
        hand = self._hand
        while True:
            await hand.until(lambda: bool(hand.waiting))
            if await hand.gets_stuck(SLOW_S):
                async with self._claiming:  # this worker must not be the one that claims them again
                    if hand.stuck:
                        await self._give_away()

    async def _give_away(self) -> None:
        try:
            if not await self._queue.idle_workers(self.id):
                return
        except AWAY:
            return
        parted = self._hand.part()
        await patiently(lambda: self._queue.hand_back(self.id, parted))
        for job in parted:
            self._hand.drop(job.id)
        log.info("gave jobs behind a slow clip to an idle worker", worker=self.id, jobs=len(parted))

    async def _worth_it(self, job: Job) -> bool:
        """Whether this worker still holds the job. An overdue job ends here."""
        if job.is_due:
            await self._finish(job, late_outcome(job.id, job.context, self._settings))
        return job.id in self._hand.jobs

    # --- score and store ------------------------------------------------------------------------

    async def _score(self) -> None:
        hand, settings = self._hand, self._settings
        while True:
            await hand.until(lambda: bool(hand.ready))
            await hand.until(lambda: len(hand.ready) >= settings.batch_jobs, settings.batch_wait_ms / 1000)
            claimed = hand.next_batch(settings.batch_jobs, settings.batch_cost)
            batch = [item for item in claimed if await self._worth_it(item.job)]
            with self._traces.part("score", [item.job for item in batch]):
                results = await self._scoring.results([item.prepared for item in batch]) if batch else []
            for item, result in zip(batch, results, strict=True):
                self._spawn(self._store(item.job, result, batch=len(batch)))

    async def _store(self, job: Job, scored: Scored, *, batch: int) -> None:
        """Store the clip's motion for refreshes, then the outcome.

        In this order a caller who has all outcomes of a run can ask for a refresh that trains on all its clips.
        """
        kept = await self._clips.keep(job, scored)
        await self._finish(job, _outcome(job, kept.result), batch=batch)

    async def _finish(self, job: Job, outcome: Outcome, *, batch: int = 0) -> None:
        """Store the outcome, and wait for Redis if it is unreachable. The worker holds the job until then."""
        caller = await self._traces.parent(job)
        await patiently(lambda: self._queue.finish(job, outcome, batch=batch))
        self._traces.ended(job, outcome, caller)
        log.debug("finished", job_id=job.id, outcome=outcome.kind.value, batch=batch)
        self._hand.drop(job.id)

    # --- stay alive, leave ----------------------------------------------------------------------

    async def _keep(self, stop: asyncio.Event) -> None:
        """Send a heartbeat and renew leases, three times per lease. After `stop` only the leases are renewed."""
        while True:
            with suppress(*AWAY):
                if not stop.is_set():
                    await self._queue.announce(self.id, self._scorer.model)
                held = list(self._hand.jobs.values())
                kept = await self._queue.renew(self.id, held)
                for job in held:
                    if job.id not in kept:
                        self._hand.drop(job.id)  # it has ended, or another worker has it
            await asyncio.sleep(self._settings.lease_s / 3)

    async def _hand_back(self, jobs: Sequence[Job]) -> None:
        with suppress(*AWAY):  # without Redis, their leases end by themselves
            returned = await self._queue.hand_back(self.id, jobs)
            if returned:
                log.info("handed back", worker=self.id, jobs=returned)
        for job in jobs:
            self._hand.drop(job.id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._failure.done():
            self._failure.set_exception(error)
            self._hand.move()


def _outcome(job: Job, result: Reward | RewardServerError) -> Outcome:
    if isinstance(result, RewardServerError):
        return error_outcome(job.id, result, job.context)
    timings = replace(result.provenance.timings, queue_ms=job.queue_ms)
    reward = replace(result, provenance=replace(result.provenance, timings=timings))
    return Outcome(job_id=job.id, kind=OutcomeKind.OK, reward=reward, context=job.context)
