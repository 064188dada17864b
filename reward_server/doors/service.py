"""What both doors call: submit, await, score, refresh, look up. Knows the queue and no transport, and never scores."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Sequence
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

NO_WORKER = "no live worker: start one with `motion-reward worker`, or wait while it loads its weights"


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as its submitter may see it; an outcome if and only if it is done."""

    id: str
    state: JobState
    outcome: Outcome | None


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a clip would be scored now, and if not, why."""

    ready: bool
    reasons: tuple[str, ...] = ()


class Service:
    """Over an open queue. Every submission that is admitted gets exactly one outcome."""

    def __init__(self, queue: DoorQueue, settings: Settings, metrics: Metrics) -> None:
        self._queue, self._settings, self._metrics = queue, settings, metrics
        queue.observe(metrics.observe)

    async def submit(self, submissions: Sequence[Submission]) -> list[str]:
        """Job ids in order, once all are queued; an empty or too large clip is a job that ended as invalid.

        Raises Overloaded, IdempotencyConflict, BadRequest and NotReady; then nothing was queued.
        """
        refusals = {i: refusal for i, clip in enumerate(submissions) if (refusal := self._refusal(clip))}
        return await self._queue.admit(submissions, refusals)

    async def score(self, submissions: Sequence[Submission], timeout_s: float | None = None) -> list[Outcome]:
        """Submit, wait, answer in the order of the request.

        What is not done after `timeout_s` (settings.score_timeout_s) is answered as timeout; its job goes on and can
        be fetched by id. Raises what `submit` raises.
        """
        contexts = [clip.context for clip in submissions]
        job_ids = await self.submit(submissions)
        del submissions  # many requests wait here: they must not all hold their bytes
        wait_s = self._wait_s(timeout_s)
        done = await self._collect(job_ids, wait_s)
        return [
            done.get(job_id) or _unanswered(job_id, wait_s, context)
            for job_id, context in zip(job_ids, contexts, strict=True)
        ]

    def outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> AsyncGenerator[Outcome, None]:
        """Each as it is ready; ends when all came, or after `timeout_s` without one. Raises UnknownJob."""
        return self._queue.outcomes(job_ids, self._wait_s(timeout_s))

    def run_outcomes(
        self, run_id: str, after: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """A run's outcomes after cursor `after`; ends after `timeout_s` without one. Raises BadRequest."""
        return self._queue.run_outcomes(run_id, after, self._wait_s(timeout_s))

    async def job(self, job_id: str) -> JobView:
        """Raises UnknownJob."""
        if outcome := await self._queue.outcome(job_id):
            return JobView(id=job_id, state=JobState.DONE, outcome=outcome)
        state = await self._queue.state(job_id)
        if state is JobState.DONE:  # it ended between the two looks
            return JobView(id=job_id, state=state, outcome=await self._queue.outcome(job_id))
        return JobView(id=job_id, state=state, outcome=None)

    async def model(self, run_id: str = "") -> Model:
        """What is served, to a run if one is named. Raises NotReady without a live worker."""
        models = await self._queue.models()
        if not models:
            raise NotReady(NO_WORKER)
        version = await self._queue.store.latest(run_id)
        if version is None:
            return models[-1]
        return replace(models[-1], discriminator_version=version.name, weights_digest=version.digest)

    async def readiness(self) -> Readiness:
        """Redis answers, and a worker lives: one announces itself only once its weights are loaded."""
        try:
            await self.model()
        except RewardServerError as error:
            return Readiness(ready=False, reasons=(str(error),))
        return Readiness(ready=True)

    async def refresh(self, request: RefreshRequest, timeout_s: float = math.inf) -> RefreshResponse:
        """Have the run's discriminators trained on its recent clips; answers once its new version is the latest.

        Raises RefreshError leaves, IdempotencyConflict, NotReady, and DeadlinePassed after `timeout_s`, the request's
        own deadline or settings.refresh_timeout_s; then nothing was published.
        """
        await self.model()
        refresh_id = await self._queue.refreshes.admit(request, timeout_s)
        return await self._queue.refreshes.response(refresh_id)

    async def metrics_text(self) -> str:
        """In Prometheus's text format; without Redis what this process knows itself."""
        snapshot = None
        with contextlib.suppress(RewardServerError):
            depth, counts = await self._queue.depth(), await self._queue.counts()
            snapshot = Snapshot(depth=depth, counts=counts, workers=len(await self._queue.models()))
        return self._metrics.render(snapshot)

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
        """What can be said of a clip by its size alone."""
        size, limit = len(clip.payload), self._settings.max_bytes
        if size == 0:
            return EmptyPayload("the clip has no bytes; send a video file or a safetensors tensor")
        if size > limit:
            return ClipTooLarge(f"the clip has {size} bytes, the limit is {limit} (max_bytes); shorten or compress it")
        return None


def _unanswered(job_id: str, wait_s: float, context: Context) -> Outcome:
    waited = DeadlinePassed(f"no outcome within {wait_s:g} s; the job goes on, fetch it later as job {job_id}")
    return error_outcome(job_id, waited, context)
