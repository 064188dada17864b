"""Passes refreshes from a waiting door to a worker that trains: admit -> claim -> publish or fail.

`RefreshRequests` is the doors' side and `RefreshWork` the workers' side. A refresh is queued, then running, then done.
Until it is done, its run can have no other refresh. After its deadline it cannot publish. The guarantees are those of
jobs: each step is one transaction, a silent worker loses its lease, and the first end of a refresh is final.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import uuid
from dataclasses import dataclass, replace

from protos.types import RefreshRequest, RefreshResponse
from reward_server.errors import (
    DeadlinePassed,
    IdempotencyConflict,
    NotReady,
    RefreshError,
    RefreshFailed,
    RefreshRejected,
    RefreshRunning,
    RewardServerError,
    TooFewClips,
    UnknownRun,
    VersionNotServed,
)
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.lease import Claimed, expiry_s, lease_ms, new_token
from reward_server.queue.records import pack_refresh, pack_refreshed, unpack_refresh, unpack_refreshed
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.run_store import Version
from reward_server.settings import Settings

LOOK_EVERY_S = 2.0  # in case news is lost
# Errors that a worker passes on to the caller as they are. Any other error becomes RefreshFailed.
PASSED_ON = (RefreshRejected, TooFewClips, NotReady, VersionNotServed)


@dataclass(frozen=True, kw_only=True)
class Refresh(Claimed):
    """A claimed refresh."""

    token: str  # of the claim
    request: RefreshRequest


class RefreshRequests:
    """The doors' side of refreshes. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._settings = link, settings
        self._news = RefreshNews(link, keys)

    async def admit(self, request: RefreshRequest, patience_s: float = math.inf) -> str:
        """Queue a refresh and return its id. An idempotency key that is known gives the id of the earlier refresh.

        The refresh may take at most `patience_s`. Raises UnknownRun, TooFewClips, RefreshRunning and
        IdempotencyConflict.
        """
        limits = self._settings
        life_s = min(patience_s, request.deadline_s or math.inf, limits.refresh_timeout_s)
        refresh_id = _id(request)
        # The deadline is not part of the fingerprint, because a retry of the same request has less time left.
        packed = pack_refresh(replace(request, deadline_s=None))
        verdict, *details = await self._link.run(
            scripts.REFRESH_ADMIT,
            refresh_id,
            request.run_id,
            packed,
            hashlib.sha256(packed).hexdigest(),
            max(1, int(life_s * 1000)),
            limits.result_ttl_s,
            limits.refresh_min_clips,
        )
        if verdict == b"running":
            raise RefreshRunning(f"run '{request.run_id}' is being refreshed; wait for that refresh, then try again")
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
                f"refresh within {limits.feature_ttl_s} s (feature_ttl_s) after the last clip"
            )
        return TooFewClips(
            f"run '{run_id}' has {real} real clips and {rollouts} rollouts, a refresh needs "
            f"{limits.refresh_min_clips} of each (refresh_min_clips); submit more clips with their origin first"
        )

    async def response(self, refresh_id: str) -> RefreshResponse:
        """Wait for the end of a refresh.

        Raises DeadlinePassed if it did not publish before its deadline, and the error with which it failed otherwise.
        """
        cursor = await self._news.newest()
        while True:
            found = await self._link.run(scripts.REFRESH_LOOK, refresh_id)
            if not found:
                raise NotReady("Redis lost the refresh; try again")
            state, left_ms, version, response, code, message = found
            if version:
                return unpack_refreshed(response)
            if state == b"done":
                raise _error(code.decode(), message.decode())
            if left_ms <= 0:
                raise DeadlinePassed(
                    "the refresh did not end in time and published nothing; allow more time in the request and in "
                    f"refresh_timeout_s (now {self._settings.refresh_timeout_s:g} s), or ask for fewer steps"
                )
            cursor = await self._news.wait(cursor, min(left_ms / 1000, LOOK_EVERY_S))


class RefreshWork:
    """The workers' side of refreshes. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._settings = link, settings
        self._lease_ms = lease_ms(settings)
        self._news = RefreshNews(link, keys)

    async def wait(self, cursor: str, timeout_s: float) -> str:
        """Wait until any refresh changes, or `timeout_s` is over.

        Returns the cursor for the next call. The first call takes "".
        """
        return await self._news.wait(cursor or await self._news.newest(), timeout_s)

    async def claim(self) -> Refresh | None:
        """Claim the oldest refresh that no worker holds, or None."""
        token = new_token()
        row = await self._link.run(scripts.REFRESH_CLAIM, token, self._lease_ms)
        if not row:
            return None
        refresh_id, attempts, left_ms, packed = row
        return Refresh(
            id=refresh_id.decode(),
            token=token,
            attempts=attempts,
            expires_at_s=expiry_s(left_ms),
            request=unpack_refresh(packed),
        )

    async def renew(self, refresh: Refresh) -> bool:
        """Renew the lease. False if the refresh was taken over, is done or is due."""
        return bool(await self._link.run(scripts.REFRESH_RENEW, refresh.id, refresh.token, self._lease_ms))

    async def hand_back(self, refresh: Refresh) -> None:
        """Give the refresh back unfinished. Another worker can claim it at once, and the attempt does not count."""
        await self._link.run(scripts.REFRESH_HAND_BACK, refresh.id, refresh.token)

    async def publish(self, refresh: Refresh, version: Version, response: RefreshResponse) -> bool:
        """Make the staged version the run's latest and end the refresh, in one transaction.

        False if the refresh is due or was taken over. Then nothing changed. Raises NotReady if the version's files are
        not staged.
        """
        limits = self._settings
        published = await self._link.run(
            scripts.REFRESH_PUBLISH,
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
        """End the refresh with an error and without a version."""
        keep_s = self._settings.result_ttl_s
        await self._link.run(scripts.REFRESH_FAIL, refresh.id, refresh.token, error.code, str(error), keep_s)


class RefreshNews:
    """The stream that tells workers and doors that a refresh changed."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link, self._stream = link, keys.refresh_news

    async def newest(self) -> str:
        """The cursor for waiting for news from now on."""
        newest = await self._link.newest(self._stream, 1)
        return newest[0].id if newest else "0-0"

    async def wait(self, cursor: str, timeout_s: float) -> str:
        """Wait for news. Returns the cursor after it, or `cursor` if there was none within `timeout_s`."""
        entries = await self._link.follow(self._stream, after=cursor, count=64, wait_ms=timeout_s * 1000)
        if not entries:
            await asyncio.sleep(0)  # let other tasks run even if timeout_s is 0
        return entries[-1].id if entries else cursor


def _id(request: RefreshRequest) -> str:
    """The id of a refresh: the same for the same run and key, or a new one without a key."""
    if not request.idempotency_key:
        return uuid.uuid4().hex
    named = f"{len(request.run_id)}:{request.run_id}{request.idempotency_key}"
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _error(code: str, message: str) -> RewardServerError:
    """The error with which a worker ended a refresh."""
    kinds: dict[str, type[RewardServerError]] = {kind.code: kind for kind in PASSED_ON}
    return kinds.get(code, RefreshFailed)(message)
