"""Converts rewards to protobuf messages and back."""

from __future__ import annotations

from protos import reward_pb2 as pb
from protos.codec.explanations import explanation_from_message, explanation_to_message
from protos.codec.fields import fields_of, value_of
from protos.types import (
    PERCENTILES,
    Bounds,
    ClipWarning,
    Dynamics,
    Logits,
    Provenance,
    Reward,
    Source,
    StandardError,
    Standing,
    Timings,
    WindowLogits,
)


def reward_to_message(reward: Reward) -> pb.Reward:
    provenance = fields_of(reward.provenance)
    provenance["source"] = pb.Source(**fields_of(reward.provenance.source))
    provenance["timings"] = pb.Timings(**fields_of(reward.provenance.timings))
    provenance["warnings"] = [pb.ClipWarning(**fields_of(warning)) for warning in reward.provenance.warnings]
    return pb.Reward(
        combined=reward.combined,
        instantaneous=reward.instantaneous,
        long_term=reward.long_term,
        logits=pb.Logits(**fields_of(reward.logits)),
        clipped=reward.clipped,
        bounds=pb.Bounds(**fields_of(reward.bounds)),
        windows=[pb.WindowLogits(start_s=w.start_s, logits=pb.Logits(**fields_of(w.logits))) for w in reward.windows],
        provenance=pb.Provenance(**provenance),
        dynamics=pb.Dynamics(**fields_of(reward.dynamics)) if reward.dynamics else None,
        explanation=explanation_to_message(reward.explanation) if reward.explanation else None,
        standing=pb.Standing(**fields_of(reward.standing)) if reward.standing else None,
        standard_error=pb.StandardError(**fields_of(reward.standard_error)) if reward.standard_error else None,
    )


def reward_from_message(message: pb.Reward) -> Reward:
    return Reward(
        combined=message.combined,
        instantaneous=message.instantaneous,
        long_term=message.long_term,
        logits=value_of(Logits, message.logits),
        clipped=message.clipped,
        bounds=value_of(Bounds, message.bounds),
        windows=tuple(WindowLogits(start_s=w.start_s, logits=value_of(Logits, w.logits)) for w in message.windows),
        provenance=value_of(
            Provenance,
            message.provenance,
            source=value_of(Source, message.provenance.source),
            timings=value_of(Timings, message.provenance.timings),
            warnings=tuple(value_of(ClipWarning, warning) for warning in message.provenance.warnings),
        ),
        dynamics=value_of(Dynamics, message.dynamics) if message.HasField("dynamics") else None,
        explanation=explanation_from_message(message.explanation) if message.HasField("explanation") else None,
        standing=_standing_from_message(message.standing) if message.HasField("standing") else None,
        standard_error=(
            value_of(StandardError, message.standard_error) if message.HasField("standard_error") else None
        ),
    )


def _standing_from_message(message: pb.Standing) -> Standing:
    present = {n: getattr(message, n) if message.HasField(n) else None for n in PERCENTILES}  # type: ignore[arg-type]
    return value_of(Standing, message, **present)
