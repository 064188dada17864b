"""A worker's refreshes: claim -> the run's clips and weights from Redis -> train in a thread -> judge -> publish.

Scoring goes on meanwhile. The refresh is renewed like a job; one that was taken over, is due or must make
way for the worker's end stops within a step and publishes nothing. A version is whole or absent: its files
are staged first, and one transaction makes it the run's latest and ends the refresh.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from protos.types import Origin, RefreshResponse
from reward_server.errors import NotReady, Overloaded, RefreshFailed, RefreshRejected, RewardServerError
from reward_server.queue.redis_link import patiently
from reward_server.queue.refreshes import Refresh, RefreshQueue
from reward_server.queue.run_store import RunStore, Version
from reward_server.scorer import Scorer
from reward_server.settings import Settings

if TYPE_CHECKING:
    from reward_server.training.adversarial import Candidate, Weights

NEWS_WAIT_S = 1.0
PAUSE_S = 0.2
REPORT_EVERY_S = 10.0
RUN_LABEL = 64  # characters of a run's id in the names of its versions

log = structlog.get_logger("refresh")


class Halted(Exception):
    """The refresh is not ours any more, or the worker ends."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a refresh begins with; files are None where the run goes out from the loaded discriminators."""

    previous: Version | None
    average: bytes | None
    training: bytes | None
    real: Sequence[bytes]
    rollouts: Sequence[bytes]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A version that is ready to be published: its name, its two files and what is told of it."""

    version: Version
    discriminators: bytes
    training: bytes
    response: RefreshResponse


class Refresher:
    """One per worker; it does one refresh at a time."""

    def __init__(self, refreshes: RefreshQueue, store: RunStore, scorer: Scorer, settings: Settings) -> None:
        self._refreshes, self._store, self._scorer, self._settings = refreshes, store, scorer, settings
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refresh")

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`; then what is under way is handed back."""
        cursor = ""
        while not stop.is_set():
            try:
                cursor = await self._refreshes.wait(cursor, NEWS_WAIT_S if cursor else 0)
                while not stop.is_set() and (refresh := await self._refreshes.claim()):
                    with structlog.contextvars.bound_contextvars(refresh_id=refresh.id, run_id=refresh.request.run_id):
                        await self._work(refresh, stop)
            except (NotReady, Overloaded) as error:
                log.warning("cannot look for refreshes", error=str(error))
                await asyncio.sleep(PAUSE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self, refresh: Refresh, stop: asyncio.Event) -> None:
        """See it through, for as long as it is ours."""
        halt = threading.Event()
        ending = asyncio.create_task(self._end(refresh, halt))
        stopping = asyncio.create_task(stop.wait())
        try:
            while not ending.done():
                await asyncio.wait(
                    {ending, stopping}, timeout=self._settings.lease_s / 3, return_when=asyncio.FIRST_COMPLETED
                )
                if not ending.done() and (stop.is_set() or not await self._kept(refresh)):
                    halt.set()
                    await asyncio.wait({ending})
        finally:
            halt.set()
            for task in (stopping, ending):  # the latter is over, unless we are being cancelled
                task.cancel()
        if await ending:
            return
        log.info("refresh halted", stopping=stop.is_set())
        if stop.is_set():
            with suppress(NotReady, Overloaded):  # then its lease ends by itself
                await self._refreshes.hand_back(refresh)

    async def _kept(self, refresh: Refresh) -> bool:
        """Whether to go on with it; while Redis is away there is hope."""
        try:
            return await self._refreshes.renew(refresh)
        except (NotReady, Overloaded):
            return time.monotonic() < refresh.expires_at_s

    async def _end(self, refresh: Refresh, halt: threading.Event) -> bool:
        """Publish a version or say why not; False if it was halted before that."""
        try:
            if refresh.attempts > self._settings.max_attempts:
                raise RefreshFailed(f"{self._settings.max_attempts} workers died over it; see their logs")
            made = await self._made(refresh, halt)
            return await self._until(halt, lambda: self._publish(refresh, made))
        except Halted:
            return False
        except Exception as error:
            told = error if isinstance(error, RewardServerError) else _surprise(error)
            log.warning("refresh failed", code=told.code, error=str(told))
            failed = told
            with suppress(Halted):
                await self._until(halt, lambda: self._fail(refresh, failed))
            return True

    async def _until(self, halt: threading.Event, call: Callable[[], Any]) -> bool:
        """A call to Redis, however long Redis is away, unless the refresh is halted."""
        return bool(await patiently(lambda: _unless(halt, call)))

    async def _publish(self, refresh: Refresh, made: Made) -> bool:
        await self._store.stage(made.version.name, made.discriminators, made.training)
        if not await self._refreshes.publish(refresh, made.version, made.response):
            log.warning("too late to publish", version=made.version.name)
            return False
        log.info(
            "published",
            version=made.version.name,
            seconds=round(made.response.seconds, 2),
            auc_instantaneous=made.response.instantaneous.after.auc,
            auc_long_term=made.response.long_term.after.auc,
        )
        return True

    async def _fail(self, refresh: Refresh, error: RewardServerError) -> bool:
        await self._refreshes.fail(refresh, error)
        return True

    async def _made(self, refresh: Refresh, halt: threading.Event) -> Made:
        started = time.monotonic()
        start = await patiently(lambda: _unless(halt, lambda: self._start(refresh)))
        loop = asyncio.get_running_loop()
        made: Made = await loop.run_in_executor(self._thread, self._train, refresh, start, started, halt)
        return made

    async def _start(self, refresh: Refresh) -> Start:
        request, store = refresh.request, self._store
        previous = await store.latest(request.run_id)
        return Start(
            previous=previous,
            average=await store.discriminators(previous.name) if previous else None,
            training=await store.training(previous.name) if previous else None,
            real=await store.clips(request.run_id, Origin.REAL, request.max_real),
            rollouts=await store.clips(request.run_id, Origin.ROLLOUT, request.max_rollouts),
        )

    # --- in the thread --------------------------------------------------------------------------

    def _train(self, refresh: Refresh, start: Start, started: float, halt: threading.Event) -> Made:
        from reward_server.profiles.run_clips import read_clip  # noqa: PLC0415
        from reward_server.training.adversarial import Buffers, refresh_discriminators  # noqa: PLC0415 - torch

        buffers = Buffers.of(
            [read_clip(data) for data in start.real],
            [read_clip(data) for data in start.rollouts],
            at_least=self._settings.refresh_min_clips,
        )
        average = (
            self._scorer.discriminators if start.average is None else self._scorer.discriminators_of(start.average)
        )
        training = average if start.training is None else self._scorer.discriminators_of(start.training)
        candidate = refresh_discriminators(
            self._scorer.profile,
            buffers,
            refresh.request,
            average=average,
            training=training,
            device=self._settings.device,
            before_step=_Progress(refresh, halt),
        )
        check_candidate(candidate)
        return self._packed(refresh, start, candidate, started)

    def _packed(self, refresh: Refresh, start: Start, candidate: Candidate, started: float) -> Made:
        base = self._scorer.model.discriminator_version
        number = start.previous.number + 1 if start.previous else 1
        name = version_name(base, refresh.request.run_id, number, candidate.name)
        discriminators = self._file(name, candidate.average)
        version = Version(name=name, digest=self._scorer.discriminators_of(discriminators).digest, number=number)
        return Made(
            version=version,
            discriminators=discriminators,
            training=self._file(name, candidate.training),
            response=RefreshResponse(
                discriminator_version=name,
                weights_digest=version.digest,
                previous_version=start.previous.name if start.previous else base,
                steps=refresh.request.steps,
                num_real=candidate.num_real,
                num_rollouts=candidate.num_rollouts,
                num_held_out=candidate.num_held_out,
                instantaneous=candidate.report["instantaneous"],
                long_term=candidate.report["long_term"],
                seconds=time.monotonic() - started,
            ),
        )

    def _file(self, version: str, weights: Weights) -> bytes:
        """In single precision: a step may be smaller than half precision can tell."""
        from reward_server.profiles.discriminators import pack_discriminators  # noqa: PLC0415 - torch

        return pack_discriminators(
            profile=self._scorer.profile,
            version=version,
            instantaneous=weights["instantaneous"],
            long_term=weights["long_term"],
        )


def check_candidate(candidate: Candidate) -> None:
    """The gate: the one place where a candidate is judged before it may serve. Raises RefreshRejected.

    Losses and held-out logits are known to be finite by now; what remains is every weight. Demands on the held-out
    figures of `candidate.report`, and on drift, belong here.
    """
    for kind, weights in (("averaged", candidate.average), ("trained", candidate.training)):
        for discriminator, state in weights.items():
            if bad := [name for name, value in state.items() if not bool(value.isfinite().all())]:
                raise RefreshRejected(
                    f"{kind} weights of the {discriminator} discriminator are not finite: {', '.join(bad)[:200]}"
                )


def version_name(base: str, run_id: str, number: int, weights: str) -> str:
    """`base+run.number-weights`: the weights' digits keep names apart even where Redis has lost its count."""
    return f"{base}+{run_id[:RUN_LABEL]}.{number}-{weights}"


class _Progress:
    """Called before each step: reports now and then, and stops what must stop."""

    def __init__(self, refresh: Refresh, halt: threading.Event) -> None:
        self._refresh, self._halt = refresh, halt
        self._reported_s = time.monotonic()

    def __call__(self, step: int) -> None:
        now_s = time.monotonic()
        if self._halt.is_set() or now_s >= self._refresh.expires_at_s:
            raise Halted
        if step == 0 or now_s - self._reported_s >= REPORT_EVERY_S:
            self._reported_s = now_s
            request = self._refresh.request
            log.info("refreshing", refresh_id=self._refresh.id, run_id=request.run_id, step=step, steps=request.steps)


async def _unless(halt: threading.Event, call: Callable[[], Any]) -> Any:
    if halt.is_set():
        raise Halted
    return await call()


def _surprise(error: Exception) -> RewardServerError:
    log.error("refresh broke", exc_info=error)
    return RefreshFailed(f"training broke with {type(error).__name__}: {error}; the worker's log says more")
