"""Admits submissions into the queue: estimates their cost, checks limits and idempotency keys, and stores them.

This is part of the doors' side (door_queue.py). All jobs of a request are admitted in one transaction. Small payloads
go with it; larger ones are stored before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from protos.tracing import traceparent
from protos.types import Submission
from reward_server.errors import (
    NotReady,
    Overloaded,
    RewardServerError,
    VersionConflict,
)
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.quota import NO_QUOTA, QueueDepth, Quota, check_fits, check_quota, over_quota, retry_after_s
from reward_server.queue.redis_link import AWAY, RedisLink
from reward_server.queue.requests import Request, conflict, estimated_cost, group_of, requests_of
from reward_server.settings import Settings

STAGE_S = 120
SENT_BYTES = 512 * 1024  # payloads of a request that go with its admission; a full queue then gets them in vain
Mode = Literal["dry", "staged", "sent"]  # lua/admit.lua
NO_REFUSALS: Mapping[int, RewardServerError] = {}


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
        group = group_of(submission.context, job_id.rpartition("-")[0])
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
