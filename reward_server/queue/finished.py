"""Wakes waiters when their jobs end: one reader per process follows the stream of finished jobs.

A waiter first registers its watch and then reads the outcomes that are already stored, so it misses
none. Entries are numbered. All waiters read the stored outcomes again after a gap in the numbers (the
stream was trimmed before it was read), after a lost connection, and after Redis lost its data.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from protos.types import Outcome
from reward_server.errors import RewardServerError
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.records import unpack_outcome
from reward_server.queue.redis_link import Entry, RedisLink, end_task

log = structlog.get_logger(__name__)

READ_COUNT = 256
BACKOFF_S = (0.05, 2.0)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One job that ended, as the stream reports it to every process."""

    outcome: Outcome
    queue_ms: float  # from admission to the claim, or to the end if no worker claimed the job
    batch: int  # clips that were scored together; 0: the job was not scored


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Identifies a Redis and its data: the time since when it keeps our data, and the id of the server's run."""

    began_ms: int
    run: str


class Watch:
    """One waiter. `take` returns outcomes of its jobs. News of its run only wake it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._outcomes: list[Outcome] = []
        self._look = True

    def bring(self, outcome: Outcome | None) -> None:
        """Deliver an outcome, or None to make the waiter read the stored outcomes."""
        if outcome is None:
            self._look = True
        else:
            self._outcomes.append(outcome)
        self._event.set()

    def must_look(self) -> bool:
        """Whether to read the stored outcomes: True at first, and once after each time that some may be missed."""
        look, self._look = self._look, False
        return look

    def take(self) -> list[Outcome]:
        taken, self._outcomes = self._outcomes, []
        self._event.clear()
        return taken

    async def news(self, timeout_s: float) -> bool:
        """Wait for news. False if there is none within `timeout_s`."""
        if not self._event.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
        return self._event.is_set()


class FinishedReader:
    """Reads from `start` to `stop`. About every `tick_s` it checks whether Redis lost its data."""

    def __init__(self, link: RedisLink, keys: Keys, *, tick_s: float) -> None:
        self._link, self._keys, self._tick_s = link, keys, tick_s
        self._by_job: dict[str, set[Watch]] = {}
        self._by_run: dict[str, set[Watch]] = {}
        self._known: Beginning | None = None
        self._cursor, self._number = "0-0", 0  # of the last entry seen
        self._tried = asyncio.Event()  # set once the first attempt to reach Redis is over
        self._task: asyncio.Task[None] | None = None
        self.observers: list[Callable[[Finished], None]] = []

    async def start(self) -> None:
        """Start reading. Returns after the first attempt to reach Redis, and does not raise."""
        self._task = asyncio.create_task(self._run(), name="finished-reader")
        await self._tried.wait()

    async def stop(self) -> None:
        if self._task:
            await end_task(self._task)

    @contextlib.contextmanager
    def watch(self, *, job_ids: Iterable[str] = (), run_id: str = "") -> Iterator[Watch]:
        """A watch that is registered until the block ends."""
        watch, ids = Watch(), list(job_ids)
        runs = [run_id] if run_id else []
        _add(self._by_job, ids, watch)
        _add(self._by_run, runs, watch)
        try:
            yield watch
        finally:
            _discard(self._by_job, ids, watch)
            _discard(self._by_run, runs, watch)

    async def _run(self) -> None:
        """Read until cancelled. Tries again while Redis does not answer."""
        backoff_s = BACKOFF_S[0]
        while True:
            try:
                await self._catch_up()
                backoff_s = BACKOFF_S[0]
                await self._follow()
            except RewardServerError as error:
                log.warning("waiting for Redis", error=str(error), retry_s=backoff_s)
            except Exception:
                log.exception("the reader of finished jobs failed; it starts again")
            self._tried.set()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_S[1])

    async def _catch_up(self) -> None:
        """Find the place to read from: the newest entry at first, later the last one seen.

        If Redis lost its data, reading begins at the start of the stream.
        """
        known, self._known = self._known, await self._begin()
        if known is None:
            self._number = (await self._link.hash_numbers(self._keys.counts)).get("finished", 0)
            for newest in await self._link.newest(self._keys.finished, 1):
                self._cursor, self._number = newest.id, int(newest.fields["number"])
        elif known.began_ms != self._known.began_ms:
            self._cursor, self._number = "0-0", 0
        self._all_look()
        self._tried.set()

    async def _follow(self) -> None:
        looked_at = -self._tick_s
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() - looked_at >= self._tick_s:
                looked_at = loop.time()
                if await self._begin() != self._known:  # redis-py does not report that it reconnected
                    log.warning("Redis was restarted or emptied; all waiters read the stored outcomes again")
                    await self._catch_up()
            await self._tell(
                await self._link.follow(
                    self._keys.finished, after=self._cursor, count=READ_COUNT, wait_ms=self._tick_s * 1000
                )
            )

    async def _begin(self) -> Beginning:
        """Prepare an empty Redis, and return which Redis this is."""
        began_ms, run = await self._link.run(scripts.BEGIN)
        return Beginning(began_ms=int(began_ms), run=run.decode())

    async def _tell(self, entries: Sequence[Entry]) -> None:
        jobs = {entry.fields["job"].decode(): entry for entry in entries}
        wanted = [job_id for job_id in jobs if self.observers or job_id in self._by_job]
        for job_id, outcome in (await stored_outcomes(self._link, self._keys, wanted)).items():
            if outcome:
                self._tell_one(outcome, jobs[job_id])
        for entry in entries:
            for watch in self._by_run.get(entry.fields["run"].decode(), ()):
                watch.bring(None)
            self._cursor, self._number = entry.id, self._number + 1
            if self._number != int(entry.fields["number"]):
                self._number = int(entry.fields["number"])
                self._all_look()

    def _tell_one(self, outcome: Outcome, entry: Entry) -> None:
        for watch in self._by_job.get(outcome.job_id, ()):
            watch.bring(outcome)
        finished = Finished(outcome=outcome, queue_ms=float(entry.fields["queue_ms"]), batch=int(entry.fields["batch"]))
        for observe in self.observers:
            observe(finished)

    def _all_look(self) -> None:
        for watches in (*self._by_job.values(), *self._by_run.values()):
            for watch in watches:
                watch.bring(None)


async def stored_outcomes(link: RedisLink, keys: Keys, job_ids: Sequence[str]) -> dict[str, Outcome | None]:
    """The outcome of each known job, or None if it is not done. Unknown jobs are left out."""
    rows = await link.hash_rows([keys.job(job_id) for job_id in job_ids], "state", "outcome")
    return {
        job_id: unpack_outcome(data) if data else None
        for job_id, (state, data) in zip(job_ids, rows, strict=True)
        if state
    }


def _add(watches: dict[str, set[Watch]], names: Iterable[str], watch: Watch) -> None:
    for name in names:
        watches.setdefault(name, set()).add(watch)


def _discard(watches: dict[str, set[Watch]], names: Iterable[str], watch: Watch) -> None:
    for name in names:
        if held := watches.get(name):
            held.discard(watch)
            if not held:
                del watches[name]
