"""The way into the queue: what a submission asks of it (cost, fingerprint, whether it can ever fit), and admission.

Part of the doors' side (door_queue.py). Payloads are staged first, then all jobs of a request are admitted at once.
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

PIXELS_PER_BYTE = 32  # of compressed video; only the worker, which decodes it, knows better
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
    """A submission on its way into the queue, under the id it will have."""

    id: str
    submission: Submission
    fingerprint: str  # of all that its reward and its way depend on; empty without an idempotency key
    refusal: RewardServerError | None  # it is done before it began: the queue holds only its outcome

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
    """How jobs come in."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings

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
                f"no worker has ever named its discriminator version, so group '{details[0].decode()}' cannot be "
                "held to one; wait until /readyz says so"
            )
        if verdict == b"version":
            raise mixed(*(name.decode() for name in details))
        return [job_id.decode() for job_id in details[0]] if verdict == b"admitted" else []

    async def _stage(self, requests: Iterable[Request]) -> None:
        """Payloads under a short life of their own; admission prolongs it."""
        staged: list[str] = []
        try:
            for request in requests:
                if request.refusal is None:
                    staged.append(self._keys.payload(request.id))
                    await self._link.put(staged[-1], request.submission.payload, life_s=STAGE_S)
        except BaseException:  # a Redis that is full, or a caller who left, must not leave it fuller for STAGE_S
            with suppress(*AWAY):
                await self._link.drop(staged)
            raise

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


async def requests_of(
    submissions: Sequence[Submission], refusals: Mapping[int, RewardServerError]
) -> tuple[list[Request], list[int]]:
    """The distinct requests, and for each submission the position of its request.

    Submissions with the same idempotency key are one request. Raises IdempotencyConflict if they differ.
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
        f"group '{group_id}' of this run is judged by discriminator version '{bound}', not '{wanted}': the rewards of "
        "a group must be comparable; give the clips a new group_id"
    )


def estimated_cost(submission: Submission, settings: Settings) -> int:
    """Frames x height x width of a tensor clip; of a video an estimate from its bytes."""
    most = settings.max_frames * settings.max_frame_pixels
    if submission.media is Media.TENSOR:
        try:
            header = tensor_header(submission.payload)
            return min(most, header.frames * header.height_px * header.width_px)
        except ContractError:
            return 0  # the worker will say what is wrong with it, at no cost
    return min(most, len(submission.payload) * PIXELS_PER_BYTE)


def check_fits(requests: Sequence[Request], settings: Settings) -> None:
    """Raises BadRequest for a request that not even an empty queue takes: to retry it would be in vain."""
    sizes = [len(request.submission.payload) for request in requests if request.refusal is None]
    if len(sizes) > settings.queue_max_jobs or sum(sizes) > settings.queue_max_bytes:
        raise BadRequest(
            f"a request of {len(sizes)} clips and {sum(sizes)} bytes never fits a queue of "
            f"{settings.queue_max_jobs} jobs and {settings.queue_max_bytes} bytes; send fewer clips at once"
        )


def retry_after_s(depth: QueueDepth, jobs_per_s: float) -> float:
    """When about a quarter of the queue will have drained at the recent rate; within RETRY_S."""
    if jobs_per_s <= 0:
        return RETRY_UNKNOWN_S
    return min(max(depth.jobs / 4 / jobs_per_s, RETRY_S[0]), RETRY_S[1])


async def _request(submission: Submission, refusal: RewardServerError | None) -> Request:
    fingerprint = ""
    if submission.context.idempotency_key:
        fingerprint = await asyncio.to_thread(_fingerprint, submission)
    return Request(id=uuid.uuid4().hex, submission=submission, fingerprint=fingerprint, refusal=refusal)


def _fingerprint(submission: Submission) -> str:
    """Of what a caller would miss if another submission's outcome came in its place."""
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
