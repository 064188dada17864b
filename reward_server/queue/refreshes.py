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
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any

from protos.types import RefreshRequest, RefreshResponse
from reward_server.errors import (
    DeadlinePassed,
    GateFailed,
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
from reward_server.queue.patience import patience
from reward_server.queue.records import pack_refresh, pack_refreshed, unpack_refresh, unpack_refreshed
from reward_server.queue.redis_link import AWAY, RedisLink, end_task
from reward_server.queue.run_store import Version
from reward_server.settings import Settings

LOOK_EVERY_S = 2.0  # in case news is lost
LOOK_AGAIN_S = 0.5  # while Redis does not answer
# Errors that a worker passes on to the caller as they are. Any other error becomes RefreshFailed.
PASSED_ON = (RefreshRejected, GateFailed, UnknownRun, TooFewClips, NotReady, VersionNotServed)


@dataclass(frozen=True, kw_only=True)
class Refresh(Claimed):
    """A claimed refresh."""

    token: str  # of the claim
    request: RefreshRequest


class RefreshRequests:
    """The doors' side of refreshes. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._settings = link, settings
        self._news = SharedNews(RefreshNews(link, keys))

    async def close(self) -> None:
        """Stop following the news."""
        await self._news.close()

    async def admit(self, request: RefreshRequest, patience_s: float = math.inf) -> str:
        """Queue a refresh and return its id. An idempotency key that is known gives the id of the earlier refresh.

        The refresh may take at most `patience_s`. Raises UnknownRun, TooFewClips, RefreshRunning and
        IdempotencyConflict.
        """
        limits = self._settings
        life_s = self.life_s(request, patience_s)
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
            raise too_few(request.run_id, limits, *details)
        return refresh_id

    def life_s(self, request: RefreshRequest, patience_s: float) -> float:
        """How long the refresh may take for a caller who waits `patience_s`: longer with more steps."""
        return min(patience_s, request.deadline_s or math.inf, self._settings.refresh_life_s(request.steps))

    async def response(self, refresh_id: str, timeout_s: float = math.inf) -> RefreshResponse:
        """Wait for the end of a refresh. While Redis does not answer, the wait goes on for at most `timeout_s`.

        Raises DeadlinePassed if it did not publish before its deadline, and the error with which it failed otherwise.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while True:
            try:
                with patience(min(self._settings.redis_wait_s, until - loop.time())):
                    news = await self._news.next()  # before the look, so that no news is missed between the two
                    found = await self._link.run(scripts.REFRESH_LOOK, refresh_id)
            except NotReady:  # an outage of Redis delays the response, but does not lose it
                if loop.time() >= until:
                    raise
                await asyncio.sleep(LOOK_AGAIN_S)
                continue
            left_s, response = self._progress(found)
            if response:
                return response
            await asyncio.wait({news}, timeout=min(left_s, LOOK_EVERY_S))

    def _progress(self, found: Sequence[Any]) -> tuple[float, RefreshResponse | None]:
        """The seconds that a refresh has left, and its response if it is published. Raises the error it ended with."""
        if not found:
            raise NotReady("Redis lost the refresh; try again")
        state, left_ms, version, response, code, message = found
        if version:
            return 0.0, unpack_refreshed(response)
        if state == b"done":
            raise _error(code.decode(), message.decode())
        if left_ms <= 0:
            raise DeadlinePassed(
                "the refresh did not end in time and published nothing; allow more time in the request, and in "
                f"refresh_timeout_s (now {self._settings.refresh_timeout_s:g} s) or refresh_step_s (now "
                f"{self._settings.refresh_step_s:g} s for each step), or ask for fewer steps"
            )
        return left_ms / 1000, None


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

    async def publish(self, refresh: Refresh, version: Version, response: RefreshResponse, *, cut_ms: int = 0) -> bool:
        """Make the staged version the run's latest and end the refresh, in one transaction.

        The clips that were scored until `cut_ms`, on Redis's clock, become those of an earlier buffer. False if the
        refresh is due or was taken over. Then nothing changed. Raises NotReady if the version's files are not staged.
        """
        limits = self._settings
        published = await self._link.run(
            scripts.REFRESH_PUBLISH,
            refresh.id,
            refresh.token,
            version.name,
            version.digest,
            version.base,
            version.preprocessing_digest,
            pack_refreshed(response),
            limits.versions_kept,
            limits.version_ttl_s,
            limits.result_ttl_s,
            cut_ms,
            version.training_digest,
            version.number,
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


class SharedNews:
    """News for any number of waiters of one process, which read it on one connection."""

    def __init__(self, news: RefreshNews) -> None:
        self._news = news
        self._cursor = ""
        self._reading: asyncio.Task[None] | None = None

    async def next(self) -> asyncio.Task[None]:
        """A task that ends at the next news, or soon without any. It reads all that is told after this call."""
        self._cursor = self._cursor or await self._news.newest()
        if self._reading is None or self._reading.done():
            # In a context of its own, because it serves other callers than the one who started it.
            self._reading = asyncio.create_task(self._read(), name="refresh-news", context=Context())
        return self._reading

    async def close(self) -> None:
        if self._reading is not None:
            await end_task(self._reading)

    async def _read(self) -> None:
        try:
            self._cursor = await self._news.wait(self._cursor, LOOK_EVERY_S)
        except AWAY:
            await asyncio.sleep(LOOK_AGAIN_S)


def too_few(run_id: str, limits: Settings, real: int, rollouts: int, missing: int) -> RefreshError:
    """The error for a run of which fewer clips are kept than a refresh needs. `missing`: scored, but not kept."""
    unkept = "there was no room (warning `not_kept`), or their files are gone"
    if real + rollouts == 0:
        unsent = (
            f"none were submitted with this run_id and their origin, or they have expired, {limits.feature_ttl_s} s "
            "(feature_ttl_s) after the run's last sign of life, or Redis lost them"
        )
        why = f"for {missing} that were scored {unkept}" if missing else unsent
        return UnknownRun(
            f"no clips of run '{run_id}' are kept: {why}; submit clips again (the trainer does with "
            "refresh.recompute=true), then refresh"
        )
    others = f"; for {missing} others {unkept}" if missing else ""
    return TooFewClips(
        f"run '{run_id}' has {real} real clips and {rollouts} rollouts, a refresh needs {limits.refresh_min_clips} of "
        f"each (refresh_min_clips){others}; submit more clips with their origin first"
    )


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
