"""Defines the bodies of the HTTP door as pydantic models, and texts for the OpenAPI document.

The values of protos/types.py are used directly, so that no field is defined twice.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, create_model

from protos.types import (
    END_OF_COUNTS,
    MAX_CHARACTERS,
    MAX_CLIPS_PER_STEP,
    MAX_LEARNING_RATE,
    MAX_STEPS,
    Context,
    Error,
    Outcome,
    OutcomeKind,
    Provenance,
    RefreshRequest,
    Reward,
)
from reward_server.doors.intake import ContextFields
from reward_server.queue.door_queue import JobState

_REWARD_HINTS = typing.get_type_hints(Reward)
RewardBody = create_model(
    "Reward",
    __doc__="Raw logits clipped to `bounds`, and their weighted mean. Real motion gets high values.",
    **{  # type: ignore[call-overload]
        field.name: (_REWARD_HINTS[field.name], ...)
        for field in dataclasses.fields(Reward)
        if field.name != "provenance"
    },
)


class Result(BaseModel):
    """The result of one clip: a reward if `outcome` is ok, otherwise an error."""

    id: str
    outcome: OutcomeKind
    reward: RewardBody | None
    provenance: Provenance | None
    error: Error | None
    context: Context

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        reward = outcome.reward
        return cls(
            id=outcome.job_id,
            outcome=outcome.kind,
            reward=reward and RewardBody(**{name: getattr(reward, name) for name in RewardBody.model_fields}),
            provenance=reward and reward.provenance,
            error=outcome.error,
            context=outcome.context,
        )


class Results(BaseModel):
    """One result per clip, in the order of the request."""

    results: list[Result]


class JobReference(BaseModel):
    id: str


class Jobs(BaseModel):
    """One job per clip, in the order of the request."""

    jobs: list[JobReference]


class Job(BaseModel):
    """The state of a job, and its result once it is done."""

    id: str
    state: JobState
    result: Result | None


class Live(BaseModel):
    status: typing.Literal["ok"] = "ok"


class ReadinessBody(BaseModel):
    """Whether clips can be scored now, and if not, the reasons."""

    ready: bool
    reasons: list[str]
    waiting: list[str] = Field(description="Earlier clips that wait for a version which no live worker has loaded.")


class Failure(BaseModel):
    """A request that failed as a whole. `code` is stable and meant for programs."""

    error: Error


class RefreshBody(BaseModel):
    """What a refresh trains on, and how: the fields of a protos.types.RefreshRequest with their bounds."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    run_id: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    steps: int = Field(ge=1, le=MAX_STEPS, description="Optimizer steps of each discriminator.")
    learning_rate: float = Field(RefreshRequest.learning_rate, gt=0, le=MAX_LEARNING_RATE)
    ema: float = Field(RefreshRequest.ema, ge=0, lt=1, description="Decay per step of the average that scores clips.")
    clips_per_step: int = Field(
        RefreshRequest.clips_per_step, ge=1, le=MAX_CLIPS_PER_STEP, description="Clips of each origin per step."
    )
    # Not END_OF_SEEDS (2^64): FastAPI writes bounds as floats, and a reader would get another number for 2^64.
    seed: int = Field(
        RefreshRequest.seed, ge=0, lt=10**19, description="The same clips and seed give the same weights."
    )
    max_real: int = Field(
        RefreshRequest.max_real,
        ge=0,
        lt=END_OF_COUNTS,
        description="Train on at most this many real clips, spread over all groups. 0: all that are kept.",
    )
    max_rollouts: int = Field(
        RefreshRequest.max_rollouts,
        ge=0,
        lt=END_OF_COUNTS,
        description="Train on at most this many rollouts, spread over all groups. 0: all that are kept.",
    )
    deadline_s: float | None = Field(
        RefreshRequest.deadline_s, gt=0, description="Seconds after which nothing is published."
    )
    idempotency_key: str = Field(
        RefreshRequest.idempotency_key,
        max_length=MAX_CHARACTERS,
        description="The same key and run give the same refresh, which runs once.",
    )
    max_passes: float = Field(
        RefreshRequest.max_passes,
        ge=0,
        description="Take fewer steps, so that no clip is trained on more often than this on average. 0: no limit.",
    )
    keep_optimizer: bool = Field(
        RefreshRequest.keep_optimizer,
        description="Go on with the optimizer state of the version before, and keep this one's.",
    )

    def value(self) -> RefreshRequest:
        return RefreshRequest(**dict(self))


FAILURES = {
    400: "The request is malformed.",
    401: "No API key, or one that is not valid.",
    403: "The key lacks the scope, or the host or the origin is not allowed.",
    404: "There is no such job, or its result has expired; or no clips of the run are kept.",
    409: "The idempotency key was used for another request; or the state of the run or group does not allow this.",
    413: "The clips are too many bytes together.",
    415: "The content type is neither a video nor a safetensors file.",
    429: "The queue or the quota of the key is full, or too many requests are in flight. Nothing was queued. Retry "
    "after the seconds in Retry-After.",
    500: "The server failed.",
    503: "Not ready: no Redis or no live worker yet.",
    504: "The refresh took too long; nothing was published.",
}

RESULT_EXAMPLE: dict[str, Any] = {
    "id": "5f0c9a3e6f4b4a0f8f0d1c2b3a495867",
    "outcome": "invalid",
    "reward": None,
    "provenance": None,
    "error": {"code": "clip_too_short", "message": "3 frames after resampling to 12 fps, at least 8 are needed"},
    "context": {
        "group_id": "prompt-17",
        "run_id": "",
        "origin": "rollout",
        "query_seed": None,
        "deadline_s": None,
        "idempotency_key": "",
        "policy_version": "step-200",
        "discriminator_version": "",
        "explain": False,
    },
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can fail with these HTTP statuses."""
    return {status: {"model": Failure, "description": FAILURES[status]} for status in statuses}


def clips_request_body() -> dict[str, Any]:
    """The request body of /v1/score and /v1/jobs for OpenAPI. `http_body.py` reads it."""
    context = ContextFields.model_json_schema()["properties"]
    file = {"type": "string", "format": "binary"}
    one_context = {"type": "object", "properties": context, "additionalProperties": False}
    many = {"oneOf": [one_context, {"type": "array", "items": one_context}]}
    form = {
        "type": "object",
        "properties": {
            "video": {"type": "array", "items": file, "description": "mp4, webm, mkv, avi, gif or animated webp files"},
            "tensor": {"type": "array", "items": file, "description": "safetensors files: one tensor `frames`, TCHW"},
            "context": {"description": "One context for all clips, or a list with one per clip."} | many,
        }
        | context,
        "anyOf": [{"required": ["video"]}, {"required": ["tensor"]}],
        "additionalProperties": False,
    }
    bare = {"schema": file}
    content = {"video/mp4": bare, "image/gif": bare, "image/webp": bare, "application/vnd.safetensors": bare}
    encoding = {"context": {"contentType": "application/json"}}
    return {
        "required": True,
        "content": {"multipart/form-data": {"schema": form, "encoding": encoding}, **content},
    }
