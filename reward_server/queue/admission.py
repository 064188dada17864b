"""What a submission asks of the queue before it is in: its cost, its fingerprint, whether it can ever fit."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protos.codec import tensor_header
from protos.types import ContractError, Media, Submission
from reward_server.errors import (
    BadRequest,
    IdempotencyConflict,
    RewardServerError,
    VersionConflict,
    error_outcome,
)
from reward_server.queue.records import pack_context, pack_outcome
from reward_server.queue.redis_link import Argument
from reward_server.settings import Settings

PIXELS_PER_BYTE = 32  # of compressed video; only the worker, which decodes it, knows better
RETRY_S = (1.0, 60.0)
RETRY_UNKNOWN_S = 5.0


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
    fingerprint: str  # of media and payload; empty without an idempotency key
    refusal: RewardServerError | None  # it is done before it began: the queue holds only its outcome

    def fields(self, cost: int) -> list[Argument]:
        """The arguments of transitions.ADMIT for this job."""
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


async def requests_of(
    submissions: Sequence[Submission], refusals: Mapping[int, RewardServerError]
) -> tuple[list[Request], list[int]]:
    """The distinct requests, and for each submission the position of its request.

    Submissions with the same idempotency key are one request. Raises IdempotencyConflict if their bytes differ.
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
        f"idempotency key '{idempotency_key}' was used for other bytes (job {job_id}); use a new key for a new clip"
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
    digest = hashlib.sha256(submission.media.value.encode())
    digest.update(submission.payload)
    return digest.hexdigest()
