"""Implements the operations of both doors on the queue: submit, await, score, refresh and look up.

It knows neither HTTP nor gRPC, and it never scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from protos.types import Context, Model, Outcome, RefreshRequest, RefreshResponse, Submission, VersionHeader
from reward_server.doors.metrics import Metrics
from reward_server.doors.queue_metrics import Snapshot
from reward_server.doors.traffic import Traffic
from reward_server.doors.uploads import UploadRoom
from reward_server.errors import (
    ClipTooLarge,
    DeadlinePassed,
    EmptyPayload,
    NotReady,
    RewardServerError,
    error_outcome,
)
from reward_server.queue.admission import NO_REFUSALS
from reward_server.queue.dead_letters import DeadLetter, DeadLetters, Replayed
from reward_server.queue.door_queue import DoorQueue, JobState
from reward_server.queue.patience import LOOK_S, patience
from reward_server.queue.quota import NO_QUOTA, Quota
from reward_server.queue.version_history import VersionHistory
from reward_server.queue.version_transfer import File
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
    """Whether a clip would be scored now, and if not, the reasons. `waiting` tells what earlier clips wait for."""

    ready: bool
    reasons: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()


class Service:
    """The operations of the server on an open queue. Every admitted submission gets exactly one outcome."""

    def __init__(self, queue: DoorQueue, settings: Settings, metrics: Metrics) -> None:
        self._queue, self._settings, self._metrics = queue, settings, metrics
        self.uploads = UploadRoom(settings)  # for both doors
        self._stopping = False
        self._waiting = 0  # calls that wait for a job or a refresh which they have started
        self._idle = asyncio.Event()
        self._idle.set()
        self._restoring = asyncio.Lock()
        queue.observe(metrics.observe)

    @property
    def traffic(self) -> Traffic:
        """Where the doors report their calls."""
        return self._metrics.traffic

    @property
    def history(self) -> VersionHistory:
        """The versions of runs, for operators."""
        return self._queue.history

    @property
    def dead_letters(self) -> DeadLetters:
        """The jobs that were given up, for operators."""
        return self._queue.dead_letters

    async def replay(self, letters: Sequence[DeadLetter]) -> Replayed:
        """Submit the clips of dead letters again. Raises what `submit` raises."""
        self._check_open()
        return await self._queue.dead_letters.replay(letters)

    def stop(self) -> None:
        """Refuse new clips and refreshes from now on. What was admitted goes on, and can be fetched."""
        self._stopping = True

    async def idle(self) -> None:
        """Return once no caller waits for clips or a refresh that it has sent."""
        await self._idle.wait()

    async def submit(
        self,
        submissions: Sequence[Submission],
        refusals: Mapping[int, RewardServerError] = NO_REFUSALS,
        *,
        owner: str = "",
        quota: Quota = NO_QUOTA,
    ) -> list[str]:
        """Queue clips of the API key `owner` within its quota, and return their job ids, in order.

        Clips at the positions of `refusals` are not scored, but get the error. An empty or too large clip becomes a job
        that has already ended as invalid. Raises Overloaded, IdempotencyConflict, VersionConflict, BadRequest and
        NotReady. Then nothing was queued.
        """
        self._check_open()
        found = {i: refusal for i, clip in enumerate(submissions) if (refusal := self._refusal(clip))}
        with patience(self._settings.redis_wait_s):
            return await self._queue.admit(submissions, {**refusals, **found}, owner, quota)

    async def score(
        self,
        submissions: Sequence[Submission],
        timeout_s: float | None = None,
        *,
        refusals: Mapping[int, RewardServerError] = NO_REFUSALS,
        owner: str = "",
        quota: Quota = NO_QUOTA,
        admitted: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Submit clips, wait for them, and return one outcome per clip, in order.

        `admitted` is called once they are in the queue, and this call keeps none of their bytes any more.
        A job that is not done after `timeout_s` (default: settings.score_timeout_s) gets a timeout outcome here. The
        job itself goes on, and its outcome can be fetched by id. Raises what `submit` raises.
        """
        contexts = [clip.context for clip in submissions]
        wait_s, loop = self._wait_s(timeout_s), asyncio.get_running_loop()
        until = loop.time() + wait_s
        with self._under_way():
            with patience(max(wait_s, LOOK_S)):
                job_ids = await self.submit(submissions, refusals, owner=owner, quota=quota)
            del submissions  # many requests wait here, and they must not all keep their bytes in memory
            admitted()
            done = await self._collect(job_ids, max(0.0, until - loop.time()))
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

    async def job(self, job_id: str, wait_s: float = 0.0) -> JobView:
        """The state of a job, with its outcome if it is done. Waits at most `wait_s` for that. Raises UnknownJob."""
        if wait_s:
            async with contextlib.aclosing(self.outcomes([job_id], timeout_s=wait_s)) as coming:
                async for outcome in coming:
                    return JobView(id=job_id, state=JobState.DONE, outcome=outcome)
        with patience(LOOK_S if wait_s else self._settings.redis_wait_s):
            return await self._job(job_id)

    async def _job(self, job_id: str) -> JobView:
        if outcome := await self._queue.outcome(job_id):
            return JobView(id=job_id, state=JobState.DONE, outcome=outcome)
        state = await self._queue.state(job_id)
        if state is JobState.DONE:  # it ended between the two reads
            return JobView(id=job_id, state=state, outcome=await self._queue.outcome(job_id))
        return JobView(id=job_id, state=state, outcome=None)

    async def model(self, run_id: str = "") -> Model:
        """The served model, with the run's latest version if a `run_id` is given. Raises NotReady without a worker.

        This is a sign of life of the run, which makes its motion and its versions live on.
        """
        with patience(self._settings.redis_wait_s):
            models = await self._queue.models()
            version = await self._queue.store.latest(run_id)
            if run_id:
                await self._queue.store.touch(run_id)
        if not models:
            raise NotReady(NO_WORKER)
        if version is None:
            return models[-1]
        return replace(models[-1], discriminator_version=version.name, weights_digest=version.digest)

    async def foreign_versions(self, versions: Iterable[str], own: str) -> dict[str, RewardServerError]:
        """An error for each version of a run whose name does not begin with `own`."""
        with patience(self._settings.redis_wait_s):
            runs = await self._queue.store.runs_of(sorted(versions))
        return {
            version: self._queue.store.not_kept(version) for version, run in runs.items() if not run.startswith(own)
        }

    async def readiness(self) -> Readiness:
        """Ready if Redis answers and a worker is alive. A worker announces itself only once its weights are loaded.

        A server that is stopping is not ready.
        """
        try:
            self._check_open()
            with patience(LOOK_S):
                await self.model()
                return Readiness(ready=True, waiting=await self._waiting_for())
        except RewardServerError as error:
            return Readiness(ready=False, reasons=(str(error),))

    async def _waiting_for(self) -> tuple[str, ...]:
        return tuple(
            f"jobs that wait for discriminator version '{version}', which no live worker has loaded: {jobs}; start a "
            "worker with its checkpoint, or they end as a timeout at their deadline"
            for version, jobs in (await self._queue.unjudged()).items()
        )

    async def refresh(self, request: RefreshRequest, timeout_s: float = math.inf) -> RefreshResponse:
        """Have a worker train the run's discriminators on recent clips. Returns once the new version serves.

        Raises subclasses of RefreshError, IdempotencyConflict and NotReady. Raises DeadlinePassed after `timeout_s`,
        the request's own deadline or settings.refresh_timeout_s, whichever is first. Then nothing was published.
        """
        self._check_open()
        with self._under_way():
            with patience(self._settings.redis_wait_s):
                await self.model()
                refresh_id = await self._queue.refreshes.admit(request, timeout_s)
            return await self._queue.refreshes.response(refresh_id, self._queue.refreshes.life_s(request, timeout_s))

    async def version(self, run_id: str, version: str) -> VersionHeader:
        """What a version of this run is. Raises VersionNotServed if it is not kept, or of another run."""
        with patience(self._settings.redis_wait_s):
            return await self._queue.transfer.header(run_id, version)

    def version_file(self, version: str, file: File) -> AsyncIterator[bytes]:
        """The chunks of one of a version's two files. Raises VersionNotServed."""
        return self._queue.transfer.file(version, file)

    async def restore(self, header: VersionHeader, parts: AsyncIterator[tuple[File, bytes]]) -> bool:
        """Take back a version that was lost. False if the server has it; then the parts are not read.

        Raises BadRequest, RequestTooLarge, VersionConflict, NotReady and Overloaded. Then nothing was restored.
        """
        self._check_open()
        with patience(self._settings.redis_wait_s):
            coming = await self._queue.transfer.restoring(header, await self._queue.models())
        if coming is None:
            return False
        async with self._restoring:  # one at a time, because the files are large
            try:
                async for file, chunk in parts:
                    await coming.add(file, chunk)
                return await coming.finish()
            except BaseException:
                with contextlib.suppress(RewardServerError):
                    await coming.drop()
                raise

    async def metrics_text(self) -> str:
        """The metrics in Prometheus's text format. Without Redis, only those that this process keeps itself."""
        snapshot = None
        with contextlib.suppress(RewardServerError), patience(LOOK_S):
            depth, counts = await self._queue.depth(), await self._queue.counts()
            workers, unjudged = len(await self._queue.models()), await self._queue.unjudged()
            snapshot = Snapshot(
                depth=depth,
                counts=counts,
                workers=workers,
                unjudged=unjudged,
                vitals=await self._queue.vitals(),
                ready=workers > 0 and not self._stopping,
            )
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
