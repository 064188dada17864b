"""Reads the outcomes of submitted clips, from the run's results stream in Redis or from the server's Await.

The stream is read by a consumer group of this process that starts at id 0, so no earlier outcome is missed. Entries
that were read but not acknowledged when the process died are delivered again. During an outage a read returns
nothing; the caller keeps reading until the outage ends.
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
ANSWER_S = 10.0  # allowed for Redis to answer, on top of the blocking wait
OUTAGE_PAUSE_S = 0.5
CONSUMER = "trainer"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An outcome and the id that acknowledges it. The outcome is None if the entry expired while it was pending."""

    id: str
    outcome: Outcome | None


class Outcomes(Protocol):
    """A source of outcomes."""

    def read(self, wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        """New outcomes, after at most `wait_s`. `job_ids` are the jobs still awaited."""
        ...

    def ack(self, entries: Sequence[Entry]) -> None:
        """Acknowledge outcomes. Call it once the rewards are stored."""
        ...

    def close(self) -> None: ...


class StreamOutcomes:
    """Reads the results stream `key` of a run as the consumer group `group`."""

    def __init__(self, url: str, key: str, *, group: str) -> None:
        # No retry inside redis-py: repeating a read whose answer was lost would skip the entries in that answer.
        self._redis = redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_S + 60)
        self._key, self._group = key, group
        self._pending: str | None = None  # if set: read entries that were delivered earlier again, from this id on
        self._begun = False

    def read(self, wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        try:
            self._begin()
            return self._again() or self._entries(">", max(1, int(wait_s * 1000)) if wait_s > 0 else None)
        except redis.ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            self._begun = False  # Redis was emptied, before the read or during its wait
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._begun = False
            log.warning("waiting for Redis: %s", error)
            time.sleep(min(wait_s, OUTAGE_PAUSE_S))
        return []

    def _begin(self) -> None:
        """Create the group if needed, and read entries delivered on an earlier connection again first."""
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

    def _entries(self, after: str, block_ms: int | None) -> list[Entry]:
        answer = self._redis.xreadgroup(self._group, CONSUMER, {self._key: after}, count=READ_COUNT, block=block_ms)
        streams = cast(Any, answer) or []
        return [_entry(entry_id.decode(), fields) for _, entries in streams for entry_id, fields in entries]

    def ack(self, entries: Sequence[Entry]) -> None:
        try:
            if entries:
                self._redis.xack(self._key, self._group, *(entry.id for entry in entries))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._begun = False  # they are delivered again, and ignored then because they are stored
            log.warning("could not acknowledge %d outcomes: %s", len(entries), error)

    def close(self) -> None:
        self._redis.close()


def _entry(entry_id: str, fields: Any) -> Entry:
    try:
        return Entry(id=entry_id, outcome=outcome_of(fields))
    except ContractError:
        return Entry(id=entry_id, outcome=None)


class AwaitedOutcomes:
    """Reads outcomes over gRPC, for a server whose Redis the trainer cannot reach."""

    def __init__(self, client: RewardClient) -> None:
        self._client = client

    def read(self, wait_s: float, job_ids: Sequence[str]) -> list[Entry]:
        """Outcomes of `job_ids` that end within `wait_s`. On an outage, those that arrived before it."""
        if not job_ids:
            time.sleep(min(wait_s, 0.05))  # uploads are still running
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
        """Does nothing: outcomes over gRPC can be read again."""

    def close(self) -> None:
        """Does nothing: the client belongs to the caller."""
