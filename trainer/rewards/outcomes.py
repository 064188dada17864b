"""Two ways to hear what became of submitted clips: the run's results stream in Redis, or the server's Await.

The stream is read by a consumer group of this process, created at 0: nothing that ended before is missed, and what was
read but not acknowledged when the process died comes again. Outages are waited out by whoever reads; a read during one
answers nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from protos.client import RequestRefused, RewardClient, RewardClientError
from protos.results import outcome_of
from protos.types import ContractError, Outcome

log = logging.getLogger(__name__)

READ_COUNT = 256
ANSWER_S = 10.0  # on top of the wait that is asked for
OUTAGE_PAUSE_S = 0.5
CONSUMER = "trainer"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An outcome and what to acknowledge it by; None for an entry that expired while it was pending."""

    id: str
    outcome: Outcome | None


class Outcomes(Protocol):
    def read(self, wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        """What is new, after `wait_s` at most; `job_ids` are those still awaited."""
        ...

    def ack(self, entries: Sequence[Entry]) -> None:
        """Call it once the rewards are stored."""
        ...

    def close(self) -> None: ...


class StreamOutcomes:
    """The results stream `key` of a run, read by the consumer group `group`."""

    def __init__(self, url: str, key: str, *, group: str) -> None:
        # No retry inside redis-py: a read that was sent twice could deliver entries into an answer that is lost.
        self._redis = redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_S + 60)
        self._key, self._group = key, group
        self._pending: str | None = None  # while set: entries delivered earlier are read again, from this id on
        self._begun = False

    def read(self, wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        try:
            self._begin()
            return self._again() or self._new(wait_s)
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            self._begun = False  # Redis was emptied, before the read or while it waited
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._begun = False
            log.warning("waiting for Redis: %s", error)
            time.sleep(min(wait_s, OUTAGE_PAUSE_S))
        return []

    def _begin(self) -> None:
        """The group exists, and what was delivered on an earlier connection is read again first."""
        if self._begun:
            return
        try:
            self._redis.xgroup_create(self._key, self._group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._begun, self._pending = True, "0"

    def _again(self) -> list[Entry]:
        if self._pending is None:
            return []
        entries = self._entries(self._pending, None)
        self._pending = entries[-1].id if entries else None
        return entries

    def _new(self, wait_s: float) -> list[Entry]:
        return self._entries(">", max(1, int(wait_s * 1000)) if wait_s > 0 else None)

    def _entries(self, after: str, block_ms: int | None) -> list[Entry]:
        answer = self._redis.xreadgroup(self._group, CONSUMER, {self._key: after}, count=READ_COUNT, block=block_ms)
        streams = cast(Any, answer) or []
        return [_entry(entry_id.decode(), fields) for _, entries in streams for entry_id, fields in entries]

    def ack(self, entries: Sequence[Entry]) -> None:
        try:
            if entries:
                self._redis.xack(self._key, self._group, *(entry.id for entry in entries))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._begun = False  # they come again, and are known by then
            log.warning("could not acknowledge %d outcomes: %s", len(entries), error)

    def close(self) -> None:
        self._redis.close()


def _entry(entry_id: str, fields: Any) -> Entry:
    try:
        return Entry(id=entry_id, outcome=outcome_of(fields))
    except ContractError:
        return Entry(id=entry_id, outcome=None)


class AwaitedOutcomes:
    """Over gRPC, for a server whose Redis cannot be reached from here."""

    def __init__(self, client: RewardClient) -> None:
        self._client = client

    def read(self, wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        """Up to `wait_s` after the last outcome, all of them."""
        if not job_ids:
            time.sleep(min(wait_s, 0.05))  # uploads are on their way
            return []
        entries: list[Entry] = []
        try:
            for outcome in self._client.await_outcomes(job_ids, max(wait_s, 0.05)):
                entries.append(Entry(id=outcome.job_id, outcome=outcome))  # noqa: PERF401 - kept if the next fails
        except RequestRefused:
            raise
        except RewardClientError as error:
            log.warning("waiting for the reward server: %s", error)
            time.sleep(min(wait_s, OUTAGE_PAUSE_S))
        return entries

    def ack(self, entries: Sequence[Entry]) -> None:
        """Nothing to do: outcomes can be asked for again."""

    def close(self) -> None:
        """The client is its owner's."""
