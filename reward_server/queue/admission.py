"""Admits submissions into the queue: estimates their cost, checks limits and idempotency keys, and stores them.

This is part of the doors' side (door_queue.py). All jobs of a request are admitted in one transaction. Small payloads
go with it; larger ones are stored before.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from protos.codec import tensor_header
from protos.tracing import traceparent
from protos.types import Context, ContractError, Media, Submission
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
SENT_BYTES = 512 * 1024  # payloads of a request that go with its admission; a full queue then gets them in vain
Mode = Literal["dry", "staged", "sent"]  # lua/admit.lua
NO_REFUSALS: Mapping[int, RewardServerError] = {}


@dataclass(frozen=True, kw_only=True)
class QueueDepth:
    """Unfinished jobs, their estimated pixels and their payload bytes."""

    jobs: int = 0
    cost: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Quota:
    """The unfinished jobs that one API key may have, their payload bytes and their estimated pixels. 0: no limit."""

    jobs: int = 0
    bytes: int = 0
    cost: float = 0

    def __str__(self) -> str:
        limits = {"jobs": self.jobs, "bytes": self.bytes, "pixels": self.cost}
        return ", ".join(f"{limit:.12g} {name}" for name, limit in limits.items() if limit) or "no limits"

    def limits(self) -> dict[str, float]:
        """The limits for lua/admit.lua."""
        return {"jobs": self.jobs or 1e15, "bytes": self.bytes or 1e15, "cost": self.cost or 1e18}


NO_QUOTA = Quota()


@dataclass(frozen=True, kw_only=True)
class Request:
    """A submission on its way into the queue, with the id of its job."""

    id: str
    submission: Submission
    name: str  # the idempotency key within its owner and run; empty without one
    group: str  # the group within its run; without a run, within its owner
    fingerprint: str  # hash of all that its outcome depends on; empty without an idempotency key
    refusal: RewardServerError | None  # if set, the job is already done and only its outcome is stored

    def fields(self, cost: int, *, sent: bool) -> list[Argument]:
        """The arguments of lua/admit.lua for this job, with its payload if that is `sent` along."""
        context = self.submission.context
        refused = error_outcome(self.id, self.refusal, context) if self.refusal else None
        return [
            self.id,
            self.submission.media.value,
            len(self.submission.payload),
            cost,
            pack_context(context),
            context.run_id,
            self.name,
            self.fingerprint,
            "" if context.deadline_s is None else int(min(context.deadline_s, 1e9) * 1000),
            refused.kind.value if refused else "",
            pack_outcome(refused) if refused else b"",
            self.group,
            context.discriminator_version,
            self.submission.payload if sent and not self.refusal else b"",
            traceparent() if sent and not self.refusal else "",
        ]


class Admission:
    """Admits the jobs of requests."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings

    async def admit(
        self,
        submissions: Sequence[Submission],
        refusals: Mapping[int, RewardServerError] = NO_REFUSALS,
        owner: str = "",
        quota: Quota = NO_QUOTA,
    ) -> list[str]:
        """Admit all submissions or none, and return their job ids in order.

        `owner` is the id of the caller's API key, and `quota` its limits. Job ids begin with it, and idempotency keys
        of different owners or runs are different. `refusals` maps positions of submissions to errors. Such a submission
        becomes a job that has already ended with the error. Raises Overloaded, IdempotencyConflict, VersionConflict and
        NotReady. Raises BadRequest for a request that does not even fit an empty queue.
        """
        requests, positions = await requests_of(submissions, refusals, owner)
        check_quota(requests, owner, quota)
        admitted = await self._admit(requests, owner, quota)
        return [admitted[position] for position in positions]

    async def admit_as(self, job_id: str, submission: Submission) -> str:
        """Admit one submission under this id, which is returned. A job that has this id already stays as it is."""
        group = _group(submission.context, job_id.rpartition("-")[0])
        request = Request(id=job_id, name="", group=group, submission=submission, fingerprint="", refusal=None)
        [admitted] = await self._admit([request], job_id.rpartition("-")[0], NO_QUOTA)
        return admitted

    async def _admit(self, requests: Sequence[Request], owner: str, quota: Quota) -> list[str]:
        check_fits(requests, self._settings)
        if sum(len(request.submission.payload) for request in requests) <= SENT_BYTES:
            return await self._ask(requests, owner, quota, mode="sent")
        for _ in range(2):
            # Send no bytes for a full queue or for known jobs. What is sent counts from here on.
            known = await self._ask(requests, owner, quota, mode="dry")
            fresh = [request for request, job_id in zip(requests, known, strict=True) if request.id == job_id]
            await self._stage(fresh, requests[0].id)
            if admitted := await self._ask(requests, owner, quota, mode="staged"):
                return admitted
        raise NotReady(f"Redis lost payloads within {STAGE_S} s; check that its maxmemory-policy is noeviction")

    async def _ask(self, requests: Sequence[Request], owner: str, quota: Quota, *, mode: Mode) -> list[str]:
        """Job ids of the requests. They are admitted unless it is a dry run. Empty if staged payloads are gone."""
        limits, sent = self._settings, mode == "sent"
        jobs = (request.fields(estimated_cost(request.submission, limits), sent=sent) for request in requests)
        verdict, *details = await self._link.run(
            scripts.ADMIT,
            json.dumps({"mode": mode, "owner": owner} | ({} if quota == NO_QUOTA else {"quota": quota.limits()})),
            limits.queue_max_jobs,
            int(limits.queue_max_cost),
            limits.queue_max_bytes,
            limits.job_ttl_s,
            limits.result_ttl_s,
            *(field for fields in jobs for field in fields),
        )
        if verdict == b"full":
            raise await self._overloaded(QueueDepth(jobs=details[0], cost=details[1], bytes=details[2]))
        if verdict == b"quota":
            raise over_quota(owner, quota, QueueDepth(jobs=details[0], cost=details[1], bytes=details[2]))
        if verdict == b"conflict":
            given = {request.name: request.submission.context.idempotency_key for request in requests}
            raise conflict(given[details[0].decode()], details[1].decode())
        if verdict in (b"unbound", b"unserved", b"version"):
            groups = {request.group: request.submission.context.group_id for request in requests}
            raise _unjudged(verdict, groups[details[0].decode()], *(name.decode() for name in details[1:]))
        return [job_id.decode() for job_id in details[0]] if verdict == b"admitted" else []

    async def _stage(self, requests: Iterable[Request], first_id: str) -> None:
        """Store the payloads for STAGE_S seconds. Admission extends their life.

        `first_id` names the request under which their bytes are reserved.
        """
        staged: list[str] = []
        try:
            for request in requests:
                if request.refusal is None:
                    staged.append(self._keys.payload(request.id))
                    await self._link.put(staged[-1], request.submission.payload, life_s=STAGE_S)
                    if trace := traceparent():
                        staged.append(self._keys.trace(request.id))
                        await self._link.put(staged[-1], trace.encode(), life_s=self._settings.job_ttl_s)
        except BaseException:  # Redis is full, or the caller has left: free the memory now, not after STAGE_S
            with suppress(*AWAY):
                if staged:
                    await self._link.drop(staged)
                await self._link.run(scripts.UNSTAGE, first_id)
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
    submissions: Sequence[Submission], refusals: Mapping[int, RewardServerError], owner: str = ""
) -> tuple[list[Request], list[int]]:
    """The distinct requests, and for each submission the position of its request.

    Submissions of a run with the same idempotency key become one request. Raises IdempotencyConflict if they differ.
    """
    distinct: dict[str, Request] = {}
    names = []
    for position, submission in enumerate(submissions):
        request = await _request(submission, refusals.get(position), owner)
        name = request.name or f"\0{request.id}"
        if distinct.setdefault(name, request).fingerprint != request.fingerprint:
            raise conflict(submission.context.idempotency_key, distinct[name].id)
        names.append(name)
    positions = {name: position for position, name in enumerate(distinct)}
    return list(distinct.values()), [positions[name] for name in names]


def conflict(idempotency_key: str, job_id: str) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"idempotency key '{idempotency_key}' was used for another submission (job {job_id}): other bytes, group, "
        "origin, seed or pinned version, or with another `explain`; use a new key for a new submission"
    )


def _unjudged(verdict: bytes, group_id: str, *versions: str) -> RewardServerError:
    """Why a group is judged by no version, or not by the wanted one."""
    if verdict == b"unbound":
        return NotReady(
            f"no worker has reported its discriminator version yet, so group '{group_id}' cannot be bound to one; wait "
            "until /readyz reports ready"
        )
    return unserved(group_id, *versions) if verdict == b"unserved" else mixed(group_id, *versions)


def mixed(group_id: str, bound: str, wanted: str) -> VersionConflict:
    return VersionConflict(
        f"group '{group_id}' is scored with discriminator version '{bound}', not '{wanted}', so that its rewards can "
        "be compared; give the clips a new group_id"
    )


def unserved(group_id: str, bound: str) -> VersionConflict:
    """For a group without a run. Such a name is easily used again, long after an update, and would then wait."""
    return VersionConflict(
        f"group '{group_id}' is scored with discriminator version '{bound}', which no live worker has loaded; give the "
        "clips a new group_id, or start a worker with its checkpoint"
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


def check_quota(requests: Sequence[Request], owner: str, quota: Quota) -> None:
    """Raises BadRequest for a request that does not even fit the quota of a key without jobs."""
    sizes = [len(request.submission.payload) for request in requests if request.refusal is None]
    if len(sizes) > (quota.jobs or len(sizes)) or sum(sizes) > (quota.bytes or sum(sizes)):
        raise BadRequest(
            f"a request of {len(sizes)} clips and {sum(sizes)} bytes never fits the quota of key '{owner}' ({quota}); "
            "send fewer clips at once"
        )


def over_quota(owner: str, quota: Quota, held: QueueDepth) -> Overloaded:
    return Overloaded(
        f"key '{owner}' has {held.jobs} unfinished jobs with {held.bytes} bytes and {held.cost:.3g} pixels, and its "
        f"quota is {quota}; wait for their outcomes and retry in {RETRY_UNKNOWN_S:.0f} s, or ask for a larger quota",
        retry_after_s=RETRY_UNKNOWN_S,
    )


def retry_after_s(depth: QueueDepth, jobs_per_s: float) -> float:
    """Seconds until about a quarter of the queue has drained at the recent rate, limited to RETRY_S."""
    if jobs_per_s <= 0:
        return RETRY_UNKNOWN_S
    return min(max(depth.jobs / 4 / jobs_per_s, RETRY_S[0]), RETRY_S[1])


async def _request(submission: Submission, refusal: RewardServerError | None, owner: str) -> Request:
    context, fingerprint, name = submission.context, "", ""
    if context.idempotency_key:
        name = f"{owner}:{len(context.run_id)}:{context.run_id}:{context.idempotency_key}"
        fingerprint = await asyncio.to_thread(_fingerprint, submission)
    job_id = f"{owner}-{uuid.uuid4().hex}" if owner else uuid.uuid4().hex
    return Request(
        id=job_id,
        submission=submission,
        name=name,
        group=_group(context, owner),
        fingerprint=fingerprint,
        refusal=refusal,
    )


def _group(context: Context, owner: str) -> str:
    """What the queue calls the group. A run's name holds its owner already."""
    return f"{owner}:{context.group_id}" if owner and context.group_id and not context.run_id else context.group_id


def _fingerprint(submission: Submission) -> str:
    """A hash of all fields that decide a submission's outcome and where it is delivered."""
    context = submission.context
    asked = [
        submission.media.value,
        context.group_id,
        context.discriminator_version,
        context.query_seed,
        context.origin.value if context.origin else None,
        *(["explain"] if context.explain else []),
    ]
    digest = hashlib.sha256(json.dumps(asked).encode())
    digest.update(submission.payload)
    return digest.hexdigest()
