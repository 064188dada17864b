"""Refreshes as work between a door that waits and a worker that trains: admit -> claim -> publish or fail.

The same guarantees as for jobs (jobs.py): each step is one transaction, a worker's lease ends with its
silence and another takes over, and the first end stays. Keys, under the queue's prefix, and their lifetimes:

    refresh:<id>        hash: state, run, request, token of the claim, due_ms; then version and response, or code
                        and message. result_ttl_s after the end or the deadline
    refreshing:<run>    id of the run's only unfinished refresh; until its end or its deadline
    refreshes           sorted set of unfinished ids by the end of their lease; as long as the longest of them
    refresh-news        stream that wakes workers and waiters; a day after the latest entry
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
import uuid
from dataclasses import dataclass, replace

from redis.asyncio import Redis

from protos.types import RefreshRequest, RefreshResponse
from reward_server import errors
from reward_server.errors import (
    DeadlinePassed,
    IdempotencyConflict,
    NotReady,
    RefreshError,
    RefreshFailed,
    RefreshRunning,
    RewardServerError,
    TooFewClips,
    UnknownRun,
)
from reward_server.queue import refresh_transitions
from reward_server.queue.keys import Keys
from reward_server.queue.records import pack_refresh, pack_refreshed, unpack_refresh, unpack_refreshed
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.run_store import Version
from reward_server.settings import Settings

LOOK_EVERY_S = 2.0  # should news get lost


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """A claimed refresh: the claimer's until its lease ends without renewal."""

    id: str
    token: str
    attempts: int  # claims so far, this one included
    expires_at_s: float  # on time.monotonic(): from then on it can publish nothing
    request: RefreshRequest


class RefreshQueue:
    """On a client that somebody else closes. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(profile=settings.profile)
        self._link = RedisLink(redis, self._keys.prefix, refresh_transitions.ALL)
        self._lease_ms = max(1, int(settings.lease_s * 1000))

    # --- the doors' side ------------------------------------------------------------------------

    async def admit(self, request: RefreshRequest, patience_s: float = math.inf) -> str:
        """The id of the refresh: a new one, or the one its idempotency key began. It has `patience_s` at most.

        Raises UnknownRun, TooFewClips, RefreshRunning and IdempotencyConflict.
        """
        limits = self._settings
        life_s = min(patience_s, request.deadline_s or math.inf, limits.refresh_timeout_s)
        refresh_id = _id(request)
        # How long a caller waits is no part of what it asks for: a retry waits less.
        packed = pack_refresh(replace(request, deadline_s=None))
        verdict, *details = await self._link.run(
            refresh_transitions.ADMIT,
            refresh_id,
            request.run_id,
            packed,
            hashlib.sha256(packed).hexdigest(),
            max(1, int(life_s * 1000)),
            limits.result_ttl_s,
            limits.refresh_min_clips,
        )
        if verdict == b"running":
            raise RefreshRunning(f"run '{request.run_id}' is being refreshed; wait for that refresh, then ask again")
        if verdict == b"conflict":
            raise IdempotencyConflict(
                f"idempotency key '{request.idempotency_key}' was used for another refresh of run '{request.run_id}'; "
                "use a new key"
            )
        if verdict == b"few":
            raise self._too_few(request.run_id, *details)
        return refresh_id

    def _too_few(self, run_id: str, real: int, rollouts: int) -> RefreshError:
        limits = self._settings
        if real + rollouts == 0:
            return UnknownRun(
                f"no clips of run '{run_id}' are kept; submit clips with this run_id and their origin, and ask for the "
                f"refresh within {limits.feature_ttl_s} s (feature_ttl_s) of the last"
            )
        return TooFewClips(
            f"run '{run_id}' has {real} real clips and {rollouts} rollouts, a refresh needs "
            f"{limits.refresh_min_clips} of each (refresh_min_clips); have more scored first, with their origin"
        )

    async def response(self, refresh_id: str) -> RefreshResponse:
        """Wait for its end.

        Raises DeadlinePassed once it can publish nothing any more, and RefreshError leaves for why it failed.
        """
        cursor = await self._newest()
        while True:
            found = await self._link.run(refresh_transitions.LOOK, refresh_id)
            if not found:
                raise NotReady("Redis lost the refresh; ask again")
            state, left_ms, version, response, code, message = found
            if version:
                return unpack_refreshed(response)
            if state == b"done":
                raise _error(code.decode(), message.decode())
            if left_ms <= 0:
                raise DeadlinePassed(
                    "the refresh did not end in time and published nothing; allow more seconds, in the request and in "
                    f"refresh_timeout_s ({self._settings.refresh_timeout_s:g}), or ask for fewer steps"
                )
            cursor = await self._news(cursor, min(left_ms / 1000, LOOK_EVERY_S))

    # --- the workers' side ----------------------------------------------------------------------

    async def claim(self) -> Refresh | None:
        """The oldest that nobody works on."""
        token = uuid.uuid4().hex
        row = await self._link.run(refresh_transitions.CLAIM, token, self._lease_ms)
        if not row:
            return None
        refresh_id, attempts, left_ms, packed = row
        return Refresh(
            id=refresh_id.decode(),
            token=token,
            attempts=attempts,
            expires_at_s=time.monotonic() + left_ms / 1000,
            request=unpack_refresh(packed),
        )

    async def wait(self, cursor: str, timeout_s: float) -> str:
        """Until something happens to some refresh, or the time is up; the cursor to wait with next, at first ""."""
        return await self._news(cursor or await self._newest(), timeout_s)

    async def renew(self, refresh: Refresh) -> bool:
        """Whether it is still the claimer's to end."""
        return bool(await self._link.run(refresh_transitions.RENEW, refresh.id, refresh.token, self._lease_ms))

    async def hand_back(self, refresh: Refresh) -> None:
        await self._link.run(refresh_transitions.HAND_BACK, refresh.id, refresh.token)

    async def publish(self, refresh: Refresh, version: Version, response: RefreshResponse) -> bool:
        """Make the staged version the run's latest, and end the refresh with it, in one transaction.

        False if it came too late or was taken over: then nothing changed. Raises NotReady if it is not staged.
        """
        limits = self._settings
        published = await self._link.run(
            refresh_transitions.PUBLISH,
            refresh.id,
            refresh.token,
            version.name,
            version.digest,
            pack_refreshed(response),
            limits.versions_kept,
            limits.version_ttl_s,
            limits.result_ttl_s,
        )
        if published < 0:
            raise NotReady(f"Redis lost version '{version.name}' before it was published; it is staged again")
        return bool(published)

    async def fail(self, refresh: Refresh, error: RewardServerError) -> None:
        keep_s = self._settings.result_ttl_s
        await self._link.run(refresh_transitions.FAIL, refresh.id, refresh.token, error.code, str(error), keep_s)

    # --- news -----------------------------------------------------------------------------------

    async def _newest(self) -> str:
        newest = await self._link.newest(self._keys.refresh_news, 1)
        return newest[0].id if newest else "0-0"

    async def _news(self, cursor: str, timeout_s: float) -> str:
        entries = await self._link.follow(self._keys.refresh_news, after=cursor, count=64, wait_ms=timeout_s * 1000)
        if not entries:
            await asyncio.sleep(0)  # a wait of no time at all must still let others run
        return entries[-1].id if entries else cursor


def _id(request: RefreshRequest) -> str:
    """The same for the same run and key; without a key every refresh is another one."""
    if not request.idempotency_key:
        return uuid.uuid4().hex
    named = f"{len(request.run_id)}:{request.run_id}{request.idempotency_key}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _error(code: str, message: str) -> RewardServerError:
    """What a worker ended a refresh with, as it was raised there."""
    kinds = (getattr(errors, name) for name in ("RefreshRejected", "TooFewClips", "NotReady", "VersionNotServed"))
    return next((kind(message) for kind in kinds if kind(message).code == code), RefreshFailed(message))
