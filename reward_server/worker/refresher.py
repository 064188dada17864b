"""Does a worker's refreshes: claim -> load the run's clips and weights -> train (refresh_training.py) -> publish.

Scoring goes on meanwhile. The lease of a refresh is renewed like that of a job. Training stops before its next step and
nothing is published if another worker took the refresh over, if it is due, or if this worker ends. A version is never
published in part: its files are staged first, and one transaction makes it the run's latest and ends the refresh.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import structlog

from protos.types import Origin, RefreshResponse
from reward_server.errors import RefreshFailed, RewardServerError
from reward_server.queue.redis_link import AWAY, patiently
from reward_server.queue.refreshes import Refresh, RefreshWork, too_few
from reward_server.queue.run_store import RunStore
from reward_server.scorer import Scorer
from reward_server.settings import Settings
from reward_server.worker.refresh_training import Halted, Made, RefreshTraining, Start

NEWS_WAIT_S = 1.0
PAUSE_S = 0.2

log = structlog.get_logger("refresh")


class Refresher:
    """Does one refresh at a time. Each worker has one."""

    def __init__(self, refreshes: RefreshWork, store: RunStore, scorer: Scorer, settings: Settings) -> None:
        self._refreshes, self._store, self._settings = refreshes, store, settings
        self._training = RefreshTraining(scorer, settings)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refresh")

    async def run(self, stop: asyncio.Event) -> None:
        """Do refreshes until `stop` is set. A refresh that is running then is handed back."""
        cursor = ""
        while not stop.is_set():
            try:
                cursor = await self._refreshes.wait(cursor, NEWS_WAIT_S if cursor else 0)
                while not stop.is_set() and (refresh := await self._refreshes.claim()):
                    with structlog.contextvars.bound_contextvars(refresh_id=refresh.id, run_id=refresh.request.run_id):
                        await self._work(refresh, stop)
            except AWAY as error:
                log.warning("cannot look for refreshes", error=str(error))
                await asyncio.sleep(PAUSE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self, refresh: Refresh, stop: asyncio.Event) -> None:
        """Do a claimed refresh, and stop it if its lease is lost or `stop` is set."""
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
            for task in (stopping, ending):  # `ending` is already done, unless this task is being cancelled
                task.cancel()
        if await ending:
            return
        log.info("refresh halted", stopping=stop.is_set())
        if stop.is_set():
            with suppress(*AWAY):  # without Redis, its lease ends by itself
                await self._refreshes.hand_back(refresh)

    async def _kept(self, refresh: Refresh) -> bool:
        """Renew the lease. While Redis is unreachable, the refresh goes on until it is due."""
        try:
            return await self._refreshes.renew(refresh)
        except AWAY:
            return not refresh.is_due

    async def _end(self, refresh: Refresh, halt: threading.Event) -> bool:
        """Train and publish a version, or end the refresh with an error. False if it was halted before that."""
        try:
            if refresh.attempts > self._settings.max_attempts:
                raise RefreshFailed(
                    f"{self._settings.max_attempts} workers died during this refresh (max_attempts); see their logs"
                )
            made = await self._made(refresh, halt)
            return await self._until(halt, lambda: self._publish(refresh, made))
        except Halted:
            return False
        except Exception as error:
            told = error if isinstance(error, RewardServerError) else _surprise(error)
            log.warning("refresh failed", code=told.code, error=str(told))
            failed = told
            with suppress(Halted):
                await self._until(halt, lambda: self._refreshes.fail(refresh, failed))
            return True

    async def _until(self, halt: threading.Event, call: Callable[[], Any]) -> bool:
        """Repeat a call while Redis is unreachable, until the refresh is halted."""
        return bool(await patiently(lambda: _unless(halt, call)))

    async def _publish(self, refresh: Refresh, made: Made) -> bool:
        if made.anchors:
            await self._store.motion.freeze_anchor(refresh.request.run_id, made.anchors)
        await self._store.stage(made.version.name, made.discriminators, made.training)
        if not await self._refreshes.publish(refresh, made.version, made.response, cut_ms=made.cut_ms):
            log.warning("too late to publish", version=made.version.name)
            return False
        log.info(
            "published",
            version=made.version.name,
            seconds=round(made.response.seconds, 2),
            trained_on=told_clips(made.response),
            auc_instantaneous=made.response.instantaneous.after.auc,
            auc_long_term=made.response.long_term.after.auc,
        )
        return True

    async def _made(self, refresh: Refresh, halt: threading.Event) -> Made:
        began_s = time.monotonic()
        start = await patiently(lambda: _unless(halt, lambda: self._start(refresh, began_s)))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._training.train, refresh, start, halt)

    async def _start(self, refresh: Refresh, began_s: float) -> Start:
        request, run_id, store = refresh.request, refresh.request.run_id, self._store
        previous, cut_ms = await store.latest(run_id), await store.now_ms()
        real = await store.motion.clips(run_id, Origin.REAL, request.max_real)
        rollouts = await store.motion.clips(run_id, Origin.ROLLOUT, request.max_rollouts)
        anchor_real, anchor_rollouts = [await store.motion.anchor(run_id, origin) for origin in Origin]
        missing_real, missing_rollouts = [await store.motion.missing(run_id, origin) for origin in Origin]
        await self._check_kept(run_id, len(missing_real) + len(missing_rollouts))
        return Start(
            began_s=began_s,
            previous=previous,
            number=await store.next_number(run_id),
            average=await store.discriminators(previous.name) if previous else None,
            training=await store.training(previous.name) if previous else None,
            cut_ms=cut_ms,
            scored_real=await store.motion.num_scored(run_id, Origin.REAL, cut_ms),
            scored_rollouts=await store.motion.num_scored(run_id, Origin.ROLLOUT, cut_ms),
            missing_real=missing_real,
            missing_rollouts=missing_rollouts,
            real=real,
            rollouts=rollouts,
            anchor_real=anchor_real,
            anchor_rollouts=anchor_rollouts,
        )

    async def _check_kept(self, run_id: str, num_missing: int) -> None:
        """Raises UnknownRun or TooFewClips if clips were lost after the refresh was admitted, and too few are left."""
        real, rollouts = [await self._store.motion.num_kept(run_id, origin) for origin in Origin]
        if min(real, rollouts) < self._settings.refresh_min_clips:
            raise too_few(run_id, self._settings, real, rollouts, num_missing)


def told_clips(response: RefreshResponse) -> str:
    """The clips that a refresh trained on, of those that were scored since the one before."""
    new_real, new_rollouts = response.num_real - response.older_real, response.num_rollouts - response.older_rollouts
    return (
        f"{new_real} of {response.scored_real} real clips and {new_rollouts} of {response.scored_rollouts} rollouts, "
        f"with {response.older_real} and {response.older_rollouts} of earlier buffers"
    )


async def _unless(halt: threading.Event, call: Callable[[], Any]) -> Any:
    if halt.is_set():
        raise Halted
    return await call()


def _surprise(error: Exception) -> RewardServerError:
    log.error("refresh failed unexpectedly", exc_info=error)
    return RefreshFailed(f"training failed with {type(error).__name__}: {error}; see the worker's log")
