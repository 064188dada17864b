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
    clip..., version..., heads, training, refresh...  see run_store.py and refreshes.py
    workers, models    sorted set and hash of live workers; lease_s after a worker's last heartbeat
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis

from protos.results import OUTCOME
from protos.types import Context, Media, Model, Outcome, Submission
from reward_server.errors import (
    AttemptsExhausted,
    BadRequest,
    DeadlinePassed,
    NotReady,
    Overloaded,
    RewardServerError,
    ScoringFailed,
    UnknownJob,
    error_outcome,
)
from reward_server.queue import transitions
from reward_server.queue.admission import (
    QueueDepth,
    Request,
    check_fits,
    conflict,
    estimated_cost,
    mixed,
    requests_of,
    retry_after_s,
)
from reward_server.queue.finished import Beginning, Finished, FinishedReader, stored_outcomes
from reward_server.queue.keys import Keys
from reward_server.queue.records import pack_model, pack_outcome, unpack_context, unpack_model, unpack_outcome
from reward_server.queue.redis_link import RedisLink, end_task
from reward_server.queue.refreshes import RefreshQueue
from reward_server.queue.run_store import RunStore
from reward_server.settings import Settings

STAGE_S = 120
RUN_PAGE = 64
LOOK_AGAIN_S = 0.5
NO_REFUSALS: Mapping[int, RewardServerError] = {}
CURSOR = re.compile(r"\d{1,19}-\d{1,19}")


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A claimed job: the claimer's until its lease ends without renewal."""

    id: str
    entry: str
    attempts: int  # claims so far, this one included
    queue_ms: float
    expires_at_s: float  # on time.monotonic(): from then on its only outcome is timeout
    media: Media
    context: Context
    version: str  # of the discriminators that must judge it; empty: those the worker has loaded

    @property
    def suspect(self) -> bool:
        """A worker died over it or beside it: it is scored alone, so that it takes no others with it."""
        return self.attempts > 1


class JobQueue:
    """One per process: `open` it, and `close` it at the end. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(profile=settings.profile)
        self._link = RedisLink(redis, self._keys.prefix, transitions.ALL)
        self._lease_ms = max(1, int(settings.lease_s * 1000))
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

    # --- the doors' side ------------------------------------------------------------------------

    async def admit(
        self, submissions: Sequence[Submission], refusals: Mapping[int, RewardServerError] = NO_REFUSALS
    ) -> list[str]:
        """Job ids in order; all submissions or none.

        The submission at a position of `refusals` becomes a job that has already ended with that error. Raises
        Overloaded, IdempotencyConflict, VersionConflict, and BadRequest for what not even an empty queue could take.
        """
        requests, positions = await requests_of(submissions, refusals)
        check_fits(requests, self._settings)
        for _ in range(2):
            known = await self._ask(requests, dry=True)  # full, or known already? Then Redis is spared the bytes
            await self._stage(request for request, job_id in zip(requests, known, strict=True) if request.id == job_id)
            if admitted := await self._ask(requests, dry=False):
                return [admitted[position] for position in positions]
        raise NotReady(f"Redis lost payloads within {STAGE_S} s; see whether it evicts keys (it must be noeviction)")

    async def _ask(self, requests: Sequence[Request], *, dry: bool) -> list[str]:
        """Job ids of the requests, admitted unless `dry`; empty when staged payloads are gone."""
        limits = self._settings
        jobs = (request.fields(estimated_cost(request.submission, limits)) for request in requests)
        verdict, *details = await self._link.run(
            transitions.ADMIT,
            int(dry),
            limits.queue_max_jobs,
            int(limits.queue_max_cost),
            limits.queue_max_bytes,
            limits.job_ttl_s,
            limits.result_ttl_s,
            *(field for fields in jobs for field in fields),
        )
        if verdict == b"full":
            raise await self._overloaded(QueueDepth(jobs=details[0], cost=details[1], bytes=details[2]))
        if verdict == b"conflict":
            raise conflict(details[0].decode(), details[1].decode())
        if verdict == b"version":
            raise mixed(*(name.decode() for name in details))
        return [job_id.decode() for job_id in details[0]] if verdict == b"admitted" else []

    async def _stage(self, requests: Iterable[Request]) -> None:
        """Payloads under a short life of their own; admission prolongs it."""
        for request in requests:
            if request.refusal is None:
                await self._link.put(self._keys.payload(request.id), request.submission.payload, life_s=STAGE_S)

    async def _overloaded(self, depth: QueueDepth) -> Overloaded:
        limits = self._settings
        retry_s = retry_after_s(depth, await self._jobs_per_s())
        return Overloaded(
            f"the queue holds {depth.jobs} jobs of {limits.queue_max_jobs}, {depth.cost:.3g} pixels of "
            f"{limits.queue_max_cost:.3g}, {depth.bytes} bytes of {limits.queue_max_bytes}; retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    async def _jobs_per_s(self) -> float:
        """Over the last 64 jobs that ended, up to now; 0 when none did lately."""
        recent = await self._link.newest(self._keys.finished, 64)
        if not recent:
            return 0.0
        oldest_s = int(recent[-1].id.partition("-")[0]) / 1000
        return len(recent) / max(0.001, await self._link.now_s() - oldest_s)

    async def state(self, job_id: str) -> JobState:
        """Raises UnknownJob."""
        [[state]] = await self._link.hash_rows([self._keys.job(job_id)], "state")
        if state is None:
            raise _unknown([job_id])
        return JobState(state.decode())

    async def outcome(self, job_id: str) -> Outcome | None:
        """None while the job is not done. Raises UnknownJob."""
        found = await stored_outcomes(self._link, self._keys, [job_id])
        if job_id not in found:
            raise _unknown([job_id])
        return found[job_id]

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float) -> AsyncGenerator[Outcome, None]:
        """Each distinct job's outcome as it is ready; ends when all came, or after `timeout_s` without one.

        Raises UnknownJob at once if any is unknown. A job that disappears later (Redis lost its data) ends as failed.
        """
        missing = dict.fromkeys(job_ids)
        loop = asyncio.get_running_loop()
        until, all_known = loop.time() + timeout_s, False
        with self._reader.watch(job_ids=missing) as watch:
            while missing:
                ready = watch.take()
                if watch.must_look():
                    try:
                        ready += await self._look(list(missing), refuse_unknown=not all_known)
                        all_known = True
                    except NotReady:  # the jobs are safe: an outage costs a waiter time, not its outcome
                        loop.call_later(LOOK_AGAIN_S, watch.bring, None)
                for outcome in ready:
                    if outcome.job_id in missing:
                        del missing[outcome.job_id]
                        until = loop.time() + timeout_s
                        yield outcome
                if missing and not await watch.news(until - loop.time()):
                    return

    async def run_outcomes(self, run_id: str, after: str, timeout_s: float) -> AsyncGenerator[Outcome, None]:
        """Outcomes of a run in the order they came, from cursor `after` on; ends after `timeout_s` without one."""
        if after and not CURSOR.fullmatch(after):
            raise BadRequest(f"'{after}' is not a cursor; give the `cursor` of the last outcome seen, or none")
        with self._reader.watch(run_id=run_id) as watch:
            cursor = after
            while True:
                watch.take()
                while page := await self._run_page(run_id, cursor):
                    for outcome in page:
                        cursor = outcome.cursor
                        yield outcome
                if not await watch.news(timeout_s):
                    return

    async def _look(self, job_ids: list[str], *, refuse_unknown: bool) -> list[Outcome]:
        found = await stored_outcomes(self._link, self._keys, job_ids)
        unknown = [job_id for job_id in job_ids if job_id not in found]
        if unknown and refuse_unknown:
            raise _unknown(unknown)
        lost = [error_outcome(job_id, _lost(job_id), Context()) for job_id in unknown]
        return [outcome for outcome in found.values() if outcome] + lost

    async def _run_page(self, run_id: str, after: str) -> list[Outcome]:
        entries = await self._link.page(self._keys.run(run_id), after=after, count=RUN_PAGE)
        return [replace(unpack_outcome(entry.fields[OUTCOME]), cursor=entry.id) for entry in entries]

    async def models(self) -> list[Model]:
        """What each live worker serves, the latest heartbeat last."""
        return [unpack_model(row) for row in await self._link.run(transitions.MODELS) if row]

    async def depth(self) -> QueueDepth:
        return QueueDepth(**await self._link.hash_numbers(self._keys.depth))

    async def counts(self) -> dict[str, int]:
        """Since `began_ms` on Redis's clock: admitted, finished, each outcome kind, redelivered, dead."""
        return await self._link.hash_numbers(self._keys.counts)

    # --- the workers' side ----------------------------------------------------------------------

    async def claim(self, worker_id: str, *, count: int, wait_ms: float, abandoned: bool = True) -> list[Job]:
        """Up to `count` jobs; blocks at most `wait_ms` (5 s at most) for the first.

        A job whose worker fell silent comes first, and alone. Jobs that are overdue or out of attempts end here.
        """
        if abandoned and (job := await self._claim_abandoned(worker_id)):
            return [job]
        entries = await self._link.read_group(
            self._keys.queue, transitions.GROUP, worker_id, count=count, wait_ms=wait_ms
        )
        if not entries:
            await self._begin()  # a new or emptied Redis has no group yet
            return []
        pairs = (part for entry in entries for part in (entry.id, entry.fields["job"]))
        rows = await self._link.run(transitions.START, _token(), *pairs)
        jobs = [await self._viable(_job(row)) for row in rows]
        return [job for job in jobs if job]

    async def abandoned(self) -> bool:
        """Whether a job waits whose worker has been silent for a lease."""
        return await self._link.has_silent(self._keys.queue, transitions.GROUP, idle_ms=self._lease_ms)

    async def payload(self, job: Job) -> bytes:
        """The clip's bytes. Raises ScoringFailed when they are gone."""
        payload = await self._link.get(self._keys.payload(job.id))
        if payload is None:
            raise ScoringFailed(f"the payload of job {job.id} is gone from Redis; submit the clip again")
        return payload

    async def renew(self, worker_id: str, jobs: Sequence[Job]) -> set[str]:
        """Begin their leases anew; returns the ids still held. The others were taken over, or have ended."""
        kept = set(await self._link.run(transitions.RENEW, worker_id, *(job.entry for job in jobs)) if jobs else ())
        return {job.id for job in jobs if job.entry.encode() in kept}

    async def finish(self, job: Job, outcome: Outcome, *, batch: int = 0) -> bool:
        """Settle the job; False if it had an outcome already, which then stays. `batch`: clips scored together."""
        return await self._settle(job.id, outcome, batch=batch)

    async def hand_back(self, worker_id: str, jobs: Sequence[Job]) -> int:
        """Give up jobs unfinished: others get them at once, with no attempt counted. Returns how many were held."""
        pairs = (part for job in jobs for part in (job.entry, job.id))
        return int(await self._link.run(transitions.HAND_BACK, worker_id, *pairs)) if jobs else 0

    async def announce(self, worker_id: str, model: Model) -> None:
        """Heartbeat: for a lease from now on this worker lives and serves `model`."""
        version = model.discriminator_version
        await self._link.run(transitions.ANNOUNCE, worker_id, pack_model(model), self._lease_ms, version)

    async def leave(self, worker_id: str) -> None:
        """This worker will not come back."""
        await self._link.run(transitions.LEAVE, worker_id)

    async def _claim_abandoned(self, worker_id: str) -> Job | None:
        while row := await self._link.run(transitions.RECLAIM, worker_id, _token(), self._lease_ms):
            if job := await self._viable(_job(row)):
                return job
        return None

    async def _viable(self, job: Job) -> Job | None:
        """The job, unless it must end without being scored."""
        if time.monotonic() >= job.expires_at_s:
            await self._settle(job.id, error_outcome(job.id, late(job.context, self._settings), job.context))
            return None
        if job.attempts > self._settings.max_attempts:
            died = AttemptsExhausted(
                f"{self._settings.max_attempts} workers died over job {job.id}; it is on the dead-letter stream. "
                "Score the clip alone with `motion-reward score` to see what it does"
            )
            await self._settle(job.id, error_outcome(job.id, died, job.context), letter=str(died))
            return None
        return job

    async def _end_overdue(self) -> None:
        """Give every job whose time is up its outcome, queued or running."""
        while rows := await self._link.run(transitions.OVERDUE):
            for job_id, data in rows:
                context = unpack_context(data)
                await self._settle(
                    job_id.decode(), error_outcome(job_id.decode(), late(context, self._settings), context)
                )

    async def _settle(self, job_id: str, outcome: Outcome, *, batch: int = 0, letter: str = "") -> bool:
        data = pack_outcome(outcome)
        keep_s = self._settings.result_ttl_s
        return bool(await self._link.run(transitions.FINISH, job_id, outcome.kind.value, data, batch, keep_s, letter))

    async def _begin(self) -> Beginning:
        """Make sure of the group; answers which Redis this is."""
        began_ms, run = await self._link.run(transitions.BEGIN)
        return Beginning(began_ms=int(began_ms), run=run.decode())


def late(context: Context, settings: Settings) -> DeadlinePassed:
    """Why a job that is due ends without a reward."""
    if context.deadline_s is not None and context.deadline_s < settings.job_ttl_s:
        return DeadlinePassed(
            f"its deadline of {context.deadline_s:g} s passed before it was scored; allow more, or send less at once"
        )
    return DeadlinePassed(f"it was not scored within {settings.job_ttl_s} s of admission (job_ttl_s); submit it again")


def _job(row: Sequence[Any]) -> Job:
    """From the answer of transitions.START."""
    entry, job_id, attempts, queue_ms, left_ms, media, context, version = row
    return Job(
        id=job_id.decode(),
        entry=entry.decode(),
        attempts=attempts,
        queue_ms=float(queue_ms),
        expires_at_s=time.monotonic() + left_ms / 1000,
        media=Media(media.decode()),
        context=unpack_context(context),
        version=version.decode(),
    )


def _token() -> str:
    """Names one claim, so that a script sent twice counts one attempt."""
    return uuid.uuid4().hex


def _unknown(job_ids: Sequence[str]) -> UnknownJob:
    return UnknownJob(f"no such job, or its result has expired: {', '.join(job_ids)}; submit the clip again")


def _lost(job_id: str) -> ScoringFailed:
    return ScoringFailed(f"job {job_id} is gone: Redis restarted without its data; submit the clip again")
