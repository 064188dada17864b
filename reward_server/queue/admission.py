"""Admits submissions into the queue: estimates their cost, checks limits and idempotency keys, and stores them.

This is part of the doors' side (door_queue.py). The payloads of a request are stored first. Then all its jobs are
admitted in one transaction.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from protos.codec import tensor_header
from protos.types import ContractError, Media, Submission
from reward_server.errors import (
    BadRequest,
    IdempotencyConflict,
    NotReady,
    Overloaded,
    RewardServerError,
    VersionConflict,
    error_outcome,
)
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.records import pack_context, pack_outcome
from reward_server.queue.redis_link import AWAY, Argument, RedisLink
from reward_server.settings import Settings

PIXELS_PER_BYTE = 32  # estimate for compressed video; the exact number is known only after decoding
RETRY_S = (1.0, 60.0)
RETRY_UNKNOWN_S = 5.0
STAGE_S = 120
NO_REFUSALS: Mapping[int, RewardServerError] = {}


@dataclass(frozen=True, kw_only=True)
class QueueDepth:
    """Unfinished jobs, their estimated pixels and their payload bytes."""

    jobs: int = 0
    cost: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """A submission on its way into the queue, with the id of its job."""

    id: str
    submission: Submission
    fingerprint: str  # hash of all that its outcome depends on; empty without an idempotency key
    refusal: RewardServerError | None  # if set, the job is already done and only its outcome is stored

    def fields(self, cost: int) -> list[Argument]:
        """The arguments of lua/admit.lua for this job."""
        context = self.submission.context
        refused = error_outcome(self.id, self.refusal, context) if self.refusal else None
        return [
            self.id,
            self.submission.media.value,
            len(self.submission.payload),
            cost,
            pack_context(context),
            context.run_id,
            context.idempotency_key,
            self.fingerprint,
            "" if context.deadline_s is None else int(min(context.deadline_s, 1e9) * 1000),
            refused.kind.value if refused else "",
            pack_outcome(refused) if refused else b"",
            context.group_id,
            context.discriminator_version,
        ]


class Admission:
    """Admits the jobs of requests."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings

    async def admit(
        self, submissions: Sequence[Submission], refusals: Mapping[int, RewardServerError] = NO_REFUSALS
    ) -> list[str]:
        """Admit all submissions or none, and return their job ids in order.

        `refusals` maps positions of submissions to errors. Such a submission becomes a job that has already ended with
        the error. Raises Overloaded, IdempotencyConflict, VersionConflict and NotReady. Raises BadRequest for a request
        that does not even fit an empty queue.
        """
        requests, positions = await requests_of(submissions, refusals)
        check_fits(requests, self._settings)
        for _ in range(2):
            known = await self._ask(requests, dry=True)  # send no bytes for a full queue or for known jobs
            await self._stage(request for request, job_id in zip(requests, known, strict=True) if request.id == job_id)
            if admitted := await self._ask(requests, dry=False):
                return [admitted[position] for position in positions]
        raise NotReady(f"Redis lost payloads within {STAGE_S} s; check that its maxmemory-policy is noeviction")

    async def _ask(self, requests: Sequence[Request], *, dry: bool) -> list[str]:
        """Job ids of the requests. They are admitted unless `dry`. Empty if staged payloads are gone."""
        limits = self._settings
        jobs = (request.fields(estimated_cost(request.submission, limits)) for request in requests)
        verdict, *details = await self._link.run(
            scripts.ADMIT,
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
        if verdict == b"unbound":
            raise NotReady(
                f"no worker has reported its discriminator version yet, so group '{details[0].decode()}' cannot be "
                "bound to one; wait until /readyz reports ready"
            )
        if verdict == b"version":
            raise mixed(*(name.decode() for name in details))
        return [job_id.decode() for job_id in details[0]] if verdict == b"admitted" else []

    async def _stage(self, requests: Iterable[Request]) -> None:
        """Store the payloads for STAGE_S seconds. Admission extends their life."""
        staged: list[str] = []
        try:
            for request in requests:
                if request.refusal is None:
                    staged.append(self._keys.payload(request.id))
                    await self._link.put(staged[-1], request.submission.payload, life_s=STAGE_S)
        except BaseException:  # Redis is full, or the caller has left: free the memory now, not after STAGE_S
            with suppress(*AWAY):
                await self._link.drop(staged)
            raise

    async def _overloaded(self, depth: QueueDepth) -> Overloaded:
        limits = self._settings
        retry_s = retry_after_s(depth, await self._jobs_per_s())
        return Overloaded(
            f"the queue holds {depth.jobs} of {limits.queue_max_jobs} jobs, {depth.cost:.3g} of "
            f"{limits.queue_max_cost:.3g} pixels, {depth.bytes} of {limits.queue_max_bytes} bytes; "
            f"retry in {retry_s:.0f} s",
            retry_after_s=retry_s,
        )

    async def _jobs_per_s(self) -> float:
        """The rate at which jobs end, from the last 64 that ended until now. 0 if none has ended lately."""
        recent = await self._link.newest(self._keys.finished, 64)
        if not recent:
            return 0.0
        oldest_s = int(recent[-1].id.partition("-")[0]) / 1000
        return len(recent) / max(0.001, await self._link.now_s() - oldest_s)


async def requests_of(
    submissions: Sequence[Submission], refusals: Mapping[int, RewardServerError]
) -> tuple[list[Request], list[int]]:
    """The distinct requests, and for each submission the position of its request.

    Submissions with the same idempotency key become one request. Raises IdempotencyConflict if they differ.
    """
    distinct: dict[str, Request] = {}
    names = []
    for position, submission in enumerate(submissions):
        request = await _request(submission, refusals.get(position))
        name = submission.context.idempotency_key or f"\0{request.id}"
        if distinct.setdefault(name, request).fingerprint != request.fingerprint:
            raise conflict(submission.context.idempotency_key, distinct[name].id)
        names.append(name)
    positions = {name: position for position, name in enumerate(distinct)}
    return list(distinct.values()), [positions[name] for name in names]


def conflict(idempotency_key: str, job_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"idempotency key '{idempotency_key}' was used for another submission (job {job_id}): other bytes, run, group, "
        "origin, seed or pinned version; use a new key for a new submission"
    )


def mixed(group_id: str, bound: str, wanted: str) -> VersionConflict:
    return VersionConflict(
        f"group '{group_id}' of this run is scored with discriminator version '{bound}', not '{wanted}', so that its "
        "rewards can be compared; give the clips a new group_id"
    )


def estimated_cost(submission: Submission, settings: Settings) -> int:
    """The cost of a clip in pixels: frames x height x width of a tensor clip, or an estimate from a video's bytes."""
    most = settings.max_frames * settings.max_frame_pixels
    if submission.media is Media.TENSOR:
        try:
            header = tensor_header(submission.payload)
            return min(most, header.frames * header.height_px * header.width_px)
        except ContractError:
            return 0  # the worker refuses it without decoding
    return min(most, len(submission.payload) * PIXELS_PER_BYTE)


def check_fits(requests: Sequence[Request], settings: Settings) -> None:
    """Raises BadRequest for a request that does not even fit an empty queue, because a retry would not help."""
    sizes = [len(request.submission.payload) for request in requests if request.refusal is None]
    if len(sizes) > settings.queue_max_jobs or sum(sizes) > settings.queue_max_bytes:
        raise BadRequest(
            f"a request of {len(sizes)} clips and {sum(sizes)} bytes never fits a queue of "
            f"{settings.queue_max_jobs} jobs and {settings.queue_max_bytes} bytes; send fewer clips at once"
        )


def retry_after_s(depth: QueueDepth, jobs_per_s: float) -> float:
    """Seconds until about a quarter of the queue has drained at the recent rate, limited to RETRY_S."""
    if jobs_per_s <= 0:
        return RETRY_UNKNOWN_S
    return min(max(depth.jobs / 4 / jobs_per_s, RETRY_S[0]), RETRY_S[1])


async def _request(submission: Submission, refusal: RewardServerError | None) -> Request:
    fingerprint = ""
    if submission.context.idempotency_key:
        fingerprint = await asyncio.to_thread(_fingerprint, submission)
    return Request(id=uuid.uuid4().hex, submission=submission, fingerprint=fingerprint, refusal=refusal)


def _fingerprint(submission: Submission) -> str:
    """A hash of all fields that decide a submission's outcome and where it is delivered."""
    context = submission.context
    asked = [
        submission.media.value,
        context.run_id,
        context.group_id,
        context.discriminator_version,
        context.query_seed,
        context.origin.value if context.origin else None,
    ]
    digest = hashlib.sha256(json.dumps(asked).encode())
    digest.update(submission.payload)
    return digest.hexdigest()
