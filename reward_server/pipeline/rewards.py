"""Makes the reward of a clip from the logits of its windows: clipped, with its standing, error and provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from protos.explanation import WindowPercentiles
from protos.spread import standard_error
from protos.types import (
    Logits,
    Model,
    Provenance,
    Reward,
    Standing,
    Timings,
    WindowLogits,
)
from reward_server.errors import NonFiniteLogit, RewardServerError
from reward_server.estimators.dynamics import mean_dynamics
from reward_server.motion import Motion
from reward_server.pipeline.prepared import PreparedClip
from reward_server.profiles.reference import length_band


def reward_of(
    item: PreparedClip, logits_W2: Tensor, motions: Sequence[Motion], timings: Timings, model: Model
) -> Reward | RewardServerError:
    """The reward of a clip from the logits of its W windows. NonFiniteLogit if one is NaN or infinite."""
    if not bool(torch.isfinite(logits_W2).all()):
        return NonFiniteLogit("a discriminator returned NaN or infinity; report the clip and the discriminator version")
    raw = _logits(logits_W2.mean(dim=0))
    clipped = _clipped(raw, model)
    combined = _combined(clipped, model)
    windows = tuple(
        WindowLogits(start_s=window.start_s, logits=_logits(row))
        for window, row in zip(item.decoded.windows, logits_W2, strict=True)
    )
    return Reward(
        combined=combined,
        instantaneous=clipped.instantaneous,
        long_term=clipped.long_term,
        logits=raw,
        clipped=clipped != raw,
        bounds=model.bounds,
        windows=windows,
        provenance=_provenance(item, motions, replace(timings, decode_ms=item.decode_ms), model),
        dynamics=mean_dynamics(motions),
        standing=_standing(item, raw, combined, model),
        standard_error=standard_error([[window.logits for window in windows]], model.weights),
    )


def window_percentiles(item: PreparedClip, reward: Reward, model: Model) -> list[WindowPercentiles]:
    """Where each window alone stands, as a clip of one window; without numbers if no table can tell."""
    table = item.discriminators.reference
    if table is None:
        return [WindowPercentiles() for _ in reward.windows]
    band = length_band(item.shape[0], model.input.window_frames, 1)
    found = [table.standing(w.logits, _combined(_clipped(w.logits, model), model), band, model) for w in reward.windows]
    return [
        WindowPercentiles(
            combined=standing.combined_percentile,
            instantaneous=standing.instantaneous_percentile,
            long_term=standing.long_term_percentile,
        )
        for standing in found
    ]


def _clipped(raw: Logits, model: Model) -> Logits:
    low, high = model.bounds.min, model.bounds.max
    return Logits(instantaneous=min(max(raw.instantaneous, low), high), long_term=min(max(raw.long_term, low), high))


def _combined(logits: Logits, model: Model) -> float:
    weights = model.weights
    total = weights.instantaneous * logits.instantaneous + weights.long_term * logits.long_term
    mean = total / (weights.instantaneous + weights.long_term)
    return min(max(mean, model.bounds.min), model.bounds.max)  # rounding may take the mean past a bound


def _standing(item: PreparedClip, raw: Logits, combined: float, model: Model) -> Standing:
    """Where the clip stands among real ones, by the table of the discriminators that scored it."""
    table = item.discriminators.reference
    if table is None:
        return Standing(missing=item.discriminators.no_reference)
    band = length_band(item.shape[0], model.input.window_frames, len(item.decoded.windows))
    return table.standing(raw, combined, band, model)


def _provenance(item: PreparedClip, motions: Sequence[Motion], timings: Timings, model: Model) -> Provenance:
    frames, height, width = item.shape
    return Provenance(
        profile=model.profile,
        discriminator_version=item.discriminators.version,
        weights_digest=item.discriminators.digest,
        preprocessing_digest=model.preprocessing_digest,
        query_seed=item.query_seed,
        num_tracks=model.input.num_tracks,
        source=item.decoded.source,
        fps_used=item.decoded.fps_used,
        frames_used=frames,
        height_px=height,
        width_px=width,
        mean_visibility=sum(float(m.visibility.mean()) for m in motions) / len(motions),
        mean_confidence=sum(float(m.confidence.mean()) for m in motions) / len(motions),
        timings=timings,
        warnings=item.decoded.warnings,
    )


def _logits(pair: Tensor) -> Logits:
    return Logits(instantaneous=float(pair[0]), long_term=float(pair[1]))
