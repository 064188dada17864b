"""Checks requests and translates errors for both doors.

A request is a list of submissions. Their number and their bytes are checked here. A malformed context
or media type is a BadRequest instead of an outcome, because the caller's code is wrong and not a clip.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protos.error_codes import ErrorCode
from protos.types import END_OF_SEEDS, MAX_CHARACTERS, Context, ContractError, Media, Model, Origin, Submission
from reward_server.errors import BadRequest, RequestTooLarge, RewardServerError, UnsupportedMedia
from reward_server.settings import Settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")

log = structlog.get_logger("doors")


def request_id(given: str | None) -> str:
    """The caller's X-Request-ID, else a new one. It goes into the logs, so only 1 to 128 plain characters are taken."""
    return given if given and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def door_error(error: Exception) -> RewardServerError:
    """The error that the caller sees. Details of an unexpected error go to the log instead."""
    if isinstance(error, RewardServerError):
        return error
    if isinstance(error, ContractError):
        kind = UnsupportedMedia if error.code is ErrorCode.BAD_MEDIA else BadRequest
        return kind(str(error))
    log.error("a request failed", exc_info=error)
    return RewardServerError("the server failed on this request; look for its request id in the server's log")


class ContextFields(BaseModel):
    """The context of a clip as form fields, query parameters or JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group_id: Annotated[
        str, Field(max_length=MAX_CHARACTERS, description="Same for clips whose rewards are compared.")
    ] = ""
    run_id: Annotated[str, Field(max_length=MAX_CHARACTERS, description="The clip's training run.")] = ""
    origin: Annotated[Origin | None, Field(description="Camera footage or a model's rollout.")] = None
    query_seed: Annotated[int | None, Field(ge=0, lt=END_OF_SEEDS, description="Seed of the query points.")] = None
    deadline_s: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="Seconds within which the clip must be scored.")
    ] = None
    idempotency_key: Annotated[
        str,
        Field(
            max_length=MAX_CHARACTERS,
            description="The same key and submission give the same job. Another submission is an error.",
        ),
    ] = ""
    policy_version: Annotated[str, Field(max_length=MAX_CHARACTERS, description="Returned unchanged.")] = ""
    discriminator_version: Annotated[
        str, Field(max_length=MAX_CHARACTERS, description="Score with this version, or fail.")
    ] = ""
    explain: Annotated[bool, Field(description="Also return what the discriminators saw: `reward.explanation`.")] = (
        False
    )


def checked_fields(fields: Mapping[str, Any]) -> ContextFields:
    """The validated fields. Raises BadRequest that names every field that is unknown or out of range."""
    try:
        return ContextFields.model_validate(fields)
    except ValidationError as error:
        causes = (f"{'.'.join(map(str, e['loc'])) or 'context'}: {e['msg']}" for e in error.errors())
        raise BadRequest(f"bad context: {'; '.join(causes)}") from error


def context_of(*layers: ContextFields) -> Context:
    """The context made of all layers. A field that is given in several layers is taken from the last of them."""
    return Context(**{name: getattr(layer, name) for layer in layers for name in layer.model_fields_set})


class Intake:
    """Counts the clips of one request as they arrive. Refuses it as soon as they are too many or too large together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._num_clips = 0
        self._num_bytes = 0

    def count_clip(self) -> None:
        """Count one clip. Raises BadRequest above settings.max_clips_per_request."""
        self._num_clips += 1
        if self._num_clips > self._settings.max_clips_per_request:
            raise BadRequest(
                f"more than {self._settings.max_clips_per_request} clips in one request; send several requests"
            )

    def count_bytes(self, num_bytes: int) -> None:
        """Count the bytes. Raises RequestTooLarge above settings.max_request_bytes."""
        self._num_bytes += num_bytes
        if self._num_bytes > self._settings.max_request_bytes:
            raise RequestTooLarge(
                f"the clips of this request are over {self._settings.max_request_bytes} bytes together; "
                "send several requests, or shorter clips"
            )


def check_request(submissions: Sequence[Submission], settings: Settings) -> Sequence[Submission]:
    """The submissions of a whole request. Raises BadRequest if there is none or too many, or RequestTooLarge."""
    if not submissions:
        raise BadRequest("no clip in the request; send at least one video or safetensors tensor")
    intake = Intake(settings)
    for submission in submissions:
        intake.count_clip()
        intake.count_bytes(len(submission.payload))
    return submissions


def checked_run(run_id: str) -> str:
    """The name of a run to look up. Raises BadRequest above MAX_CHARACTERS."""
    if len(run_id) > MAX_CHARACTERS:
        raise BadRequest(f"run_id is over {MAX_CHARACTERS} characters; no run has such a name")
    return run_id


def with_timeouts(model: Model, settings: Settings) -> Model:
    """A worker's model with this door's timeouts. Clients set the timeouts of their calls a little higher."""
    limits = replace(
        model.limits,
        score_timeout_s=settings.score_timeout_s,
        refresh_timeout_s=settings.refresh_timeout_s,
        refresh_step_s=settings.refresh_step_s,
    )
    return replace(model, limits=limits)


def media_of_content_type(content_type: str) -> Media:
    """The media of a body that is one clip, by its content type. Raises UnsupportedMedia."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/vnd.safetensors":
        return Media.TENSOR
    if kind.startswith("video/") or kind in ("image/gif", "image/webp"):
        return Media.CONTAINER
    raise UnsupportedMedia(
        f"content type '{kind}' is not accepted; send multipart/form-data with files in `video` or `tensor`, "
        "or one clip as video/* or application/vnd.safetensors"
    )
