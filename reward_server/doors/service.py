"""Implements the operations of both doors on the queue: submit, await, score, refresh and look up.

It knows neither HTTP nor gRPC, and it never scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, replace

from protos.types import Context, Model, Outcome, RefreshRequest, RefreshResponse, Submission
from reward_server.doors.metrics import Metrics, Snapshot
from reward_server.errors import (
    ClipTooLarge,
    DeadlinePassed,
    EmptyPayload,
    NotReady,
    RewardServerError,
    error_outcome,
)
from reward_server.queue.door_queue import DoorQueue, JobState
from reward_server.settings import Settings

STOPPING = "the server is stopping and takes no new work; try again shortly, or ask another server"
NO_WORKER = "no live worker: start one with `motion-reward worker`, or wait while it loads its weights"


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as its submitter sees it. It has an outcome if and only if it is done."""

    id: str
    state: JobState
    outcome: Outcome | None


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a clip would be scored now, and if not, the reasons."""

    ready: bool
    reasons: tuple[str, ...] = ()


class Service:
    """The operations of the server on an open queue. Every admitted submission gets exactly one outcome."""

    def __init__(self, queue: DoorQueue, settings: Settings, metrics: Metrics) -> None:
        self._queue, self._settings, self._metrics = queue, settings, metrics
        self._stopping = False
        self._waiting = 0  # calls that wait for a job or a refresh which they have started
        self._idle = asyncio.Event()
        self._idle.set()
        queue.observe(metrics.observe)

    def stop(self) -> None:
        """Refuse new clips and refreshes from now on. What was admitted goes on, and can be fetched."""
        self._stopping = True

    async def idle(self) -> None:
        """Return once no caller waits for clips or a refresh that it has sent."""
        await self._idle.wait()

    async def submit(self, submissions: Sequence[Submission]) -> list[str]:
        """Queue clips and return their job ids, in order.

        An empty or too large clip becomes a job that has already ended as invalid.
        Raises Overloaded, IdempotencyConflict, VersionConflict, BadRequest and NotReady. Then nothing was queued.
        """
        self._check_open()
        refusals = {i: refusal for i, clip in enumerate(submissions) if (refusal := self._refusal(clip))}
        return await self._queue.admit(submissions, refusals)

    async def score(self, submissions: Sequence[Submission], timeout_s: float | None = None) -> list[Outcome]:
        """Submit clips, wait for them, and return one outcome per clip, in order.

        A job that is not done after `timeout_s` (default: settings.score_timeout_s) gets a timeout outcome here. The
        job itself goes on, and its outcome can be fetched by id. Raises what `submit` raises.
        """
        contexts = [clip.context for clip in submissions]
        wait_s = self._wait_s(timeout_s)
        with self._under_way():
            job_ids = await self.submit(submissions)
            del submissions  # many requests wait here, and they must not all keep their bytes in memory
            done = await self._collect(job_ids, wait_s)
        return [
            done.get(job_id) or _unanswered(job_id, wait_s, context)
            for job_id, context in zip(job_ids, contexts, strict=True)
        ]

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> AsyncGenerator[Outcome, None]:
        """Yield each outcome once it is ready. Ends when all have come, or after `timeout_s` without a new one.

        `timeout_s` defaults to settings.score_timeout_s. Raises UnknownJob.
        """
        coming = self._queue.outcomes(job_ids, self._wait_s(timeout_s))
        with self._under_way():
            async with contextlib.aclosing(coming):
                async for outcome in coming:
                    yield outcome

    def run_outcomes(
        self, run_id: str, after: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Yield a run's outcomes after the cursor `after`. Ends after `timeout_s` without a new one.

        `timeout_s` defaults to settings.score_timeout_s. Raises BadRequest for a malformed cursor.
        """
        return self._queue.run_outcomes(run_id, after, self._wait_s(timeout_s))

    async def job(self, job_id: str) -> JobView:
        """The state of a job, with its outcome if it is done. Raises UnknownJob."""
        if outcome := await self._queue.outcome(job_id):
            return JobView(id=job_id, state=JobState.DONE, outcome=outcome)
        state = await self._queue.state(job_id)
        if state is JobState.DONE:  # it ended between the two reads
            return JobView(id=job_id, state=state, outcome=await self._queue.outcome(job_id))
        return JobView(id=job_id, state=state, outcome=None)

    async def model(self, run_id: str = "") -> Model:
        """The served model, with the run's latest version if a `run_id` is given. Raises NotReady without a worker."""
        models = await self._queue.models()
        if not models:
            raise NotReady(NO_WORKER)
        version = await self._queue.store.latest(run_id)
        if version is None:
            return models[-1]
        return replace(models[-1], discriminator_version=version.name, weights_digest=version.digest)

    async def readiness(self) -> Readiness:
        """Ready if Redis answers and a worker is alive. A worker announces itself only once its weights are loaded.

        A server that is stopping is not ready.
        """
        try:
            self._check_open()
            await self.model()
        except RewardServerError as error:
            return Readiness(ready=False, reasons=(str(error),))
        return Readiness(ready=True)

    async def refresh(self, request: RefreshRequest, timeout_s: float = math.inf) -> RefreshResponse:
        """Have a worker train the run's discriminators on recent clips. Returns once the new version serves.

        Raises subclasses of RefreshError, IdempotencyConflict and NotReady. Raises DeadlinePassed after `timeout_s`,
        the request's own deadline or settings.refresh_timeout_s, whichever is first. Then nothing was published.
        """
        self._check_open()
        await self.model()
        with self._under_way():
            refresh_id = await self._queue.refreshes.admit(request, timeout_s)
            return await self._queue.refreshes.response(refresh_id)

    async def metrics_text(self) -> str:
        """The metrics in Prometheus's text format. Without Redis, only those that this process keeps itself."""
        snapshot = None
        with contextlib.suppress(RewardServerError):
            depth, counts = await self._queue.depth(), await self._queue.counts()
            snapshot = Snapshot(depth=depth, counts=counts, workers=len(await self._queue.models()))
        return self._metrics.render(snapshot)

    def _check_open(self) -> None:
        if self._stopping:
            raise NotReady(STOPPING)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        self._waiting += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._idle.set()

    async def _collect(self, job_ids: Sequence[str], wait_s: float) -> dict[str, Outcome]:
        done: dict[str, Outcome] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), contextlib.aclosing(self._queue.outcomes(job_ids, wait_s)) as outcomes:
                async for outcome in outcomes:
                    done[outcome.job_id] = outcome
        return done

    def _wait_s(self, timeout_s: float | None) -> float:
        return self._settings.score_timeout_s if timeout_s is None else timeout_s

    def _refusal(self, clip: Submission) -> RewardServerError | None:
        """The error of a clip that is refused because of its size, or None."""
        size, limit = len(clip.payload), self._settings.max_bytes
        if size == 0:
            return EmptyPayload("the clip has no bytes; send a video file or a safetensors tensor")
        if size > limit:
            return ClipTooLarge(f"the clip has {size} bytes, the limit is {limit} (max_bytes); shorten or compress it")
        return None


def _unanswered(job_id: str, wait_s: float, context: Context) -> Outcome:
    waited = DeadlinePassed(f"no outcome within {wait_s:g} s; the job goes on, fetch it later as job {job_id}")
    return error_outcome(job_id, waited, context)
