"""Keeps the motion of scored clips for refreshes of their run, as durably as their outcomes.

While Redis is unreachable, a write is tried again. If there is no room for the clip, or its files cannot be written,
its reward is given all the same: it carries a warning, and the next refresh names the job among those that it missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import structlog

from protos.types import ClipWarning, Origin, Reward
from reward_server.errors import Overloaded
from reward_server.queue.feature_folder import cannot_keep, folder_of
from reward_server.queue.redis_link import AWAY, PAUSE_S, patiently
from reward_server.queue.run_store import RunStore
from reward_server.queue.worker_queue import Job
from reward_server.scorer import Scored
from reward_server.settings import Settings

FULL_PAUSES_S = (0.0, 0.2, 0.8, 3.0)  # before each try; other jobs that end meanwhile free memory
FULL = "Redis is at its memory limit; give it more, or send fewer clips at once"

log = structlog.get_logger("worker")


class KeptClips:
    """The clips that this worker keeps for refreshes."""

    def __init__(self, store: RunStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._folder = folder_of(settings)

    async def check_folder(self, stop: asyncio.Event) -> None:
        """Raises NotReady if motion is to be kept in files, and their folder is not the one of this Redis.

        Waits while Redis is unreachable, until `stop` is set.
        """
        while self._folder and not stop.is_set():
            try:
                return await self._store.motion.check()
            except OSError as error:
                raise cannot_keep(self._folder, error) from error
            except AWAY as error:
                log.warning("waiting for Redis, to look for the folder of motion", error=str(error))
            await asyncio.sleep(PAUSE_S[0])

    async def keep(self, job: Job, scored: Scored) -> Scored:
        """Store the clip's motion if a refresh may train on it. Returns the result, with a warning if it is not kept.

        Waits while Redis is unreachable.
        """
        origin, reward = job.context.origin, scored.result
        if not (scored.features and origin and isinstance(reward, Reward)):
            return scored
        if not (why := await self._refusal(job, origin, scored.features)):
            return scored
        log.warning("a clip is not kept for refreshes", job_id=job.id, why=why)
        run_id, clip_key = job.context.run_id, job.context.idempotency_key
        await patiently(lambda: self._store.motion.miss_clip(run_id, origin, job.id, clip_key=clip_key))
        return replace(scored, result=_warned(reward, f"no refresh of the run can train on this clip: {why}"))

    async def _refusal(self, job: Job, origin: Origin, features: Sequence[bytes]) -> str:
        """Why there is no room for the clip. Empty if it is stored."""
        why = ""
        for pause_s in FULL_PAUSES_S:
            await asyncio.sleep(pause_s)
            why, may_pass = await patiently(lambda: self._tried(job, origin, features))
            if not may_pass:
                break
        return why

    async def _tried(self, job: Job, origin: Origin, features: Sequence[bytes]) -> tuple[str, bool]:
        """The same after one try, and whether another one may store it."""
        context = job.context
        names = {"group_id": context.group_id, "clip_key": context.idempotency_key}
        try:
            kept = await self._store.motion.keep_clip(context.run_id, origin, job.id, features, **names)
        except Overloaded:
            return FULL, True
        except OSError as error:
            return (
                f"the worker cannot write its motion to {self._folder}: {error.strerror}; free its disk, make it "
                "writable, or set MOTION_REWARD_FEATURE_DIR"
            ), True
        limit = self._settings.feature_room
        too_large = f"its motion takes {len(features[0])} bytes, the limit is {limit} (feature_max_bytes)"
        return ("" if kept else too_large), False


def _warned(reward: Reward, message: str) -> Reward:
    warnings = (*reward.provenance.warnings, ClipWarning(code="not_kept", message=message))
    return replace(reward, provenance=replace(reward.provenance, warnings=warnings))
