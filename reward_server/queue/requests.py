"""The requests that submissions become on their way into the queue: names, groups, fingerprints and estimated cost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protos.codec import tensor_header
from protos.tracing import traceparent
from protos.types import Context, ContractError, Media, Submission
from reward_server.errors import IdempotencyConflict, RewardServerError, error_outcome
from reward_server.queue.records import pack_context, pack_outcome
from reward_server.queue.redis_link import Argument
from reward_server.settings import Settings

PIXELS_PER_BYTE = 32  # estimate for compressed video; the exact number is known only after decoding


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
        group=group_of(context, owner),
        fingerprint=fingerprint,
        refusal=refusal,
    )


def group_of(context: Context, owner: str) -> str:
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
