"""The Redis queue between the doors and the workers: admit -> claim -> finish, each one transaction (transitions.py).

Every job ends with exactly one outcome, whatever dies when: the first settles it, in one transaction with the
acknowledgement, and later ones change nothing. Keys, all under `motion-reward:{profile}:`, and their lifetimes:

    queue              stream of {job}, consumer group `workers` created at 0. An entry lives until its job is
                       done, never longer, and is never trimmed
    job:<id>           hash: state, entry, attempts, token of the claim, context, cost, times; then the outcome.
                       Until result_ttl_s after the end; every unfinished job is in `due` and ends when it is due
    payload:<id>       the clip's bytes. STAGE_S until admitted, then until the end, or a minute past `due`
    due                sorted set of unfinished jobs by the time they must end: their deadline, else job_ttl_s
    idempotency:<key>  hash: job, fingerprint. As long as its job
    finished           stream of {job, number, ...}, wakes waiters; the last 16384, result_ttl_s after the latest
    run:<run_id>       stream of {job, outcome} in the order they ended (protos/results.py); entries as old as
                       result_ttl_s
    group:<n>:<run>:<group>  the discriminator version that judges the group, n: characters of <run>; result_ttl_s
                       after the group's latest admission
    base               the version that workers have loaded, by the latest heartbeat
    dead               stream of {job, attempts, letter}, the last 1024; no lifetime, for people to read
    depth, counts      hashes of integers: unfinished jobs, cost, bytes; everything counted since `began_ms`, which
                       tells readers an emptied Redis from the one they knew
    clip..., version..., discriminators, training, refresh...  see run_store.py and refreshes.py
    workers, models    sorted set and hash of live workers; lease_s after a worker's last heartbeat

The doors submit (admission.py) and wait (outcomes.py), the workers claim and finish (claims.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.asyncio import Redis

from protos.types import Model
from reward_server.queue import transitions
from reward_server.queue.admission import Admission, QueueDepth
from reward_server.queue.claims import Claims, Job, late
from reward_server.queue.finished import Finished, FinishedReader
from reward_server.queue.outcomes import JobState, Outcomes
from reward_server.queue.records import unpack_model
from reward_server.queue.redis_link import end_task
from reward_server.queue.refreshes import RefreshQueue
from reward_server.queue.run_store import RunStore
from reward_server.settings import Settings

__all__ = ["Job", "JobQueue", "JobState", "late"]


class JobQueue(Admission, Outcomes, Claims):
    """One per process: `open` it, and `close` it at the end. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, settings)
        self.store, self.refreshes = RunStore(redis, settings), RefreshQueue(redis, settings)
        self._reader = FinishedReader(
            self._link,
            self._keys,
            tick_s=min(1.0, settings.lease_s),
            begin=self._begin,
            sweep=self._end_overdue,
        )
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Follow the queue from now on. Does not raise: Redis may come later."""
        self._reading = asyncio.create_task(self._reader.run(), name="finished-reader")
        await self._reader.tried.wait()

    async def close(self) -> None:
        """Stop following, and close the connections of the client that was given."""
        if self._reading:
            await end_task(self._reading)
        await self._link.close()

    def observe(self, observer: Callable[[Finished], None]) -> None:
        """Call `observer` with every job that ends from now on, whoever submitted or scored it."""
        self._reader.observers.append(observer)

    async def models(self) -> list[Model]:
        """What each live worker serves, the latest heartbeat last."""
        return [unpack_model(row) for row in await self._link.run(transitions.MODELS) if row]

    async def depth(self) -> QueueDepth:
        return QueueDepth(**await self._link.hash_numbers(self._keys.depth))

    async def counts(self) -> dict[str, int]:
        """Since `began_ms` on Redis's clock: admitted, finished, each outcome kind, redelivered, dead."""
        return await self._link.hash_numbers(self._keys.counts)
