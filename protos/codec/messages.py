"""Converts the contract's values to protobuf messages and back."""

from __future__ import annotations

from typing import Any, Literal

from protos import reward_pb2 as pb
from protos.codec.fields import fields_of, value_of
from protos.codec.rewards import reward_from_message, reward_to_message
from protos.error_codes import ErrorCode
from protos.types import (
    DISCRIMINATORS,
    Anchor,
    Bounds,
    Context,
    ContractError,
    DiscriminatorRefresh,
    Error,
    Input,
    Limits,
    Logits,
    Media,
    Model,
    Origin,
    Outcome,
    OutcomeKind,
    RefreshRequest,
    RefreshResponse,
    Separation,
    Submission,
    VersionHeader,
)

OF_ANCHOR = tuple(
    f"{figure}_{when}" for figure in ("copies", "amount_real", "amount_rollouts") for when in ("before", "after")
)


def context_to_message(context: Context) -> pb.Context:
    fields = {name: value for name, value in fields_of(context).items() if value is not None and name != "origin"}
    origin = pb.Origin.Value(context.origin.name) if context.origin else pb.ORIGIN_UNSPECIFIED
    return pb.Context(**fields, origin=origin)


def context_from_message(message: pb.Context) -> Context:
    return Context(
        group_id=message.group_id,
        run_id=message.run_id,
        origin=_origin_from_message(message.origin),
        query_seed=message.query_seed if message.HasField("query_seed") else None,
        deadline_s=message.deadline_s if message.HasField("deadline_s") else None,
        idempotency_key=message.idempotency_key,
        policy_version=message.policy_version,
        discriminator_version=message.discriminator_version,
        explain=message.explain,
    )


def _origin_from_message(origin: pb.Origin.ValueType) -> Origin | None:
    if origin not in pb.Origin.values():
        raise ContractError(ErrorCode.BAD_CONTEXT, f"origin is {origin}; set REAL (1) or ROLLOUT (2), or leave it out")
    return Origin[pb.Origin.Name(origin)] if origin else None


def submission_to_message(submission: Submission) -> pb.Clip:
    media = pb.Media.Value(submission.media.name)
    return pb.Clip(media=media, payload=submission.payload, context=context_to_message(submission.context))


def media_from_message(media: pb.Media.ValueType) -> Media:
    if media not in (pb.CONTAINER, pb.TENSOR):
        raise ContractError(
            ErrorCode.BAD_MEDIA, f"media is {media}; set CONTAINER (a video file) or TENSOR (safetensors)"
        )
    return Media[pb.Media.Name(media)]


def submission_from_message(message: pb.Clip) -> Submission:
    context = context_from_message(message.context)
    return Submission(payload=message.payload, media=media_from_message(message.media), context=context)


def outcome_to_message(outcome: Outcome) -> pb.Outcome:
    return pb.Outcome(
        job_id=outcome.job_id,
        kind=pb.OutcomeKind.Value(outcome.kind.name),
        reward=reward_to_message(outcome.reward) if outcome.reward else None,
        error=pb.Error(**fields_of(outcome.error)) if outcome.error else None,
        context=context_to_message(outcome.context),
        cursor=outcome.cursor,
    )


def outcome_from_message(message: pb.Outcome) -> Outcome:
    """The outcome. Raises ContractError, for instance for a kind that this version does not know."""
    if message.kind not in pb.OutcomeKind.values() or message.kind == pb.OUTCOME_UNSPECIFIED:
        raise ContractError(ErrorCode.BAD_OUTCOME, f"the outcome's kind is {message.kind}; update the client")
    return Outcome(
        job_id=message.job_id,
        kind=OutcomeKind[pb.OutcomeKind.Name(message.kind)],
        reward=reward_from_message(message.reward) if message.HasField("reward") else None,
        error=Error(code=message.error.code, message=message.error.message) if message.HasField("error") else None,
        context=context_from_message(message.context),
        cursor=message.cursor,
    )


def model_to_message(model: Model) -> pb.Model:
    nested = {"bounds": pb.Bounds, "weights": pb.Logits, "limits": pb.Limits, "input": pb.Input}
    fields = fields_of(model)
    return pb.Model(**{name: nested[name](**fields_of(v)) if name in nested else v for name, v in fields.items()})


def model_from_message(message: pb.Model) -> Model:
    return Model(
        profile=message.profile,
        discriminator_version=message.discriminator_version,
        weights_digest=message.weights_digest,
        preprocessing_digest=message.preprocessing_digest,
        bounds=value_of(Bounds, message.bounds),
        weights=value_of(Logits, message.weights),
        limits=_limits_from_message(message.limits),
        input=value_of(Input, message.input),
        architecture_digest=message.architecture_digest,
    )


def _limits_from_message(message: pb.Limits) -> Limits:
    names: tuple[Literal["score_timeout_s", "refresh_timeout_s", "refresh_step_s"], ...] = (
        "score_timeout_s",
        "refresh_timeout_s",
        "refresh_step_s",
    )
    return value_of(Limits, message, **{n: getattr(message, n) if message.HasField(n) else None for n in names})


def refresh_to_message(request: RefreshRequest) -> pb.RefreshRequest:
    return pb.RefreshRequest(**{name: value for name, value in fields_of(request).items() if value is not None})


def refresh_from_message(message: pb.RefreshRequest) -> RefreshRequest:
    """The request, with defaults for absent fields. Raises ContractError("bad_refresh")."""
    optional = ("learning_rate", "ema", "clips_per_step", "seed", "deadline_s")
    given = {name: getattr(message, name) for name in optional if message.HasField(name)}  # type: ignore[arg-type]
    return RefreshRequest(
        run_id=message.run_id,
        steps=message.steps,
        max_real=message.max_real,
        max_rollouts=message.max_rollouts,
        idempotency_key=message.idempotency_key,
        max_passes=message.max_passes,
        keep_optimizer=message.keep_optimizer,
        **given,
    )


def refreshed_to_message(response: RefreshResponse) -> pb.RefreshResponse:
    discriminators: dict[str, Any] = {
        name: _discriminator_to_message(getattr(response, name)) for name in DISCRIMINATORS
    }
    return pb.RefreshResponse(**{**fields_of(response), **discriminators})


def refreshed_from_message(message: pb.RefreshResponse) -> RefreshResponse:
    return value_of(
        RefreshResponse,
        message,
        instantaneous=_discriminator_from_message(message.instantaneous),
        long_term=_discriminator_from_message(message.long_term),
        missing_real=tuple(message.missing_real),
        missing_rollouts=tuple(message.missing_rollouts),
    )


def _discriminator_to_message(discriminator: DiscriminatorRefresh) -> pb.DiscriminatorRefresh:
    before, after = pb.Separation(**fields_of(discriminator.before)), pb.Separation(**fields_of(discriminator.after))
    anchor = None if discriminator.anchor is None else _anchor_to_message(discriminator.anchor)
    return pb.DiscriminatorRefresh(losses=discriminator.losses, before=before, after=after, anchor=anchor)


def _anchor_to_message(anchor: Anchor) -> pb.Anchor:
    before, after = pb.Separation(**fields_of(anchor.before)), pb.Separation(**fields_of(anchor.after))
    return pb.Anchor(**{**fields_of(anchor), "before": before, "after": after})


def _discriminator_from_message(message: pb.DiscriminatorRefresh) -> DiscriminatorRefresh:
    before, after = value_of(Separation, message.before), value_of(Separation, message.after)
    anchor = _anchor_from_message(message.anchor) if message.HasField("anchor") else None
    return DiscriminatorRefresh(losses=tuple(message.losses), before=before, after=after, anchor=anchor)


def _anchor_from_message(message: pb.Anchor) -> Anchor:
    before, after = value_of(Separation, message.before), value_of(Separation, message.after)
    has = {name for name in OF_ANCHOR if message.HasField(name)}  # type: ignore[arg-type]
    optional = {name: getattr(message, name) if name in has else None for name in OF_ANCHOR}
    return value_of(Anchor, message, before=before, after=after, **optional)


def version_to_message(header: VersionHeader) -> pb.VersionHeader:
    return pb.VersionHeader(**{**fields_of(header), "record": refreshed_to_message(header.record)})


def version_from_message(message: pb.VersionHeader) -> VersionHeader:
    return value_of(VersionHeader, message, record=refreshed_from_message(message.record))
