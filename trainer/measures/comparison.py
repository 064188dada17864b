"""Computes the figures of an evaluation: rows of samples -> means, differences and distances, with bootstrap intervals.

Intervals are percentile bootstraps. They resample first frames, because samples that share one are not independent.
As in FVMD (Liu et al. 2024, arXiv 2407.16124), motion is compared by velocities and accelerations along point tracks.
Here the distance is the Wasserstein distance between their magnitudes: FVMD's own, a distance between Gaussians over a
thousand bins, needs thousands of clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from protos.types import DYNAMICS
from trainer.measures.tracks import TrackMotion

MEASURES = (
    "combined",
    "instantaneous",
    "long_term",
    "flow_px",
    "dynamic",
    "speed_px_s",
    "acceleration_px_s2",
    *DYNAMICS,
)
KINDS = ("real", "base", "checkpoint")
MOTIONS = {"speed_px_s": "speeds_px_s", "acceleration_px_s2": "accelerations_px_s2"}
LEVEL, RESAMPLES = 0.95, 4000
DISTANCE_RESAMPLES = 1000
QUANTILES = 64  # that represent the motion of a first frame's samples, so that every first frame counts the same

Floats = NDArray[np.float64]
Interval = dict[str, float | None]


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means with intervals of every measure, for each kind of clip and for checkpoint minus base.

    The difference is taken per first frame. Rows are `Sample.row` of evaluate.py. A mean or a bound that cannot be
    computed is None.
    """
    means = {(kind, measure): _per_clip(rows, kind, measure) for kind in KINDS for measure in MEASURES}
    summary: dict[str, Any] = {kind: {measure: _mean(means[kind, measure]) for measure in MEASURES} for kind in KINDS}
    summary["checkpoint_minus_base"] = {
        measure: _mean(means["checkpoint", measure] - means["base", measure]) for measure in MEASURES
    }
    summary["num_first_frames"] = len({row["clip"] for row in rows})
    summary["num_without_reward"] = sum(1 for row in rows if row["error"])
    return summary


def motion_distances(rows: Sequence[Mapping[str, Any]], motions: Sequence[TrackMotion]) -> dict[str, Any]:
    """Distances of base and checkpoint from the real clips, in speeds (px/s) and accelerations (px/s^2).

    `motions` are in the order of `rows`. A first frame is left out for all kinds if the clips of any kind had no
    tracks. A distance is None if no first frame is left.
    """
    found: dict[str, Any] = {}
    for name, values in MOTIONS.items():
        quantiles = np.stack([_quantiles(rows, motions, kind, values) for kind in KINDS])
        known = quantiles[:, np.isfinite(quantiles).all(axis=(0, 2))]
        found[name] = {**_distances(known), "num_first_frames": known.shape[1]}
    return found


def _per_clip(rows: Sequence[Mapping[str, Any]], kind: str, measure: str) -> Floats:
    """The mean over the samples of each first frame, [first frames] in order. NaN where no value is known."""
    clips = sorted({row["clip"] for row in rows})
    values = {clip: [row[measure] for row in rows if row["clip"] == clip and row["kind"] == kind] for clip in clips}
    known = {clip: [float(value) for value in found if value is not None] for clip, found in values.items()}
    return np.array([np.mean(known[clip]) if known[clip] else np.nan for clip in clips])


def _mean(values: Floats) -> Interval:
    """The mean and, with at least two different values, its interval."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return {"mean": None, "low": None, "high": None}
    mean = float(known.mean())
    if known.size < 2 or np.ptp(known) == 0:
        return {"mean": mean, "low": None, "high": None}
    drawn = np.random.default_rng(0).integers(known.size, size=(RESAMPLES, known.size))
    return {"mean": mean, **_bounds(known[drawn].mean(axis=1))}


def _quantiles(rows: Sequence[Mapping[str, Any]], motions: Sequence[TrackMotion], kind: str, values: str) -> Floats:
    """Quantiles over the samples of each first frame, [first frames, QUANTILES] in order. NaN without tracks."""
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    found = []
    for clip in sorted({row["clip"] for row in rows}):
        parts = [
            getattr(motion, values)
            for row, motion in zip(rows, motions, strict=True)
            if (row["clip"], row["kind"]) == (clip, kind)
        ]
        pooled = np.concatenate(parts) if parts else np.empty(0)
        found.append(np.quantile(pooled, levels) if pooled.size else np.full(QUANTILES, np.nan))
    return np.stack(found)


def _distances(quantiles: Floats) -> dict[str, Any]:
    """Distances of base and checkpoint from the real clips, and their difference; quantiles [KINDS, clips, QUANTILES].

    Only the difference has an interval. The distances of a resample are too large on average; in a difference this
    bias cancels.
    """
    num = quantiles.shape[1]
    if num == 0:
        return {"base": None, "checkpoint": None, "checkpoint_minus_base": {"mean": None, "low": None, "high": None}}

    def both(chosen: NDArray[np.int64]) -> tuple[float, float]:
        real, base, checkpoint = (quantiles[kind, chosen].ravel() for kind in range(3))
        return float(wasserstein_distance(base, real)), float(wasserstein_distance(checkpoint, real))

    base, checkpoint = both(np.arange(num))
    difference: Interval = {"mean": checkpoint - base, "low": None, "high": None}
    if num > 1:
        drawn = np.random.default_rng(0).integers(num, size=(DISTANCE_RESAMPLES, num))
        pairs = np.array([both(chosen) for chosen in drawn])
        difference |= _bounds(pairs[:, 1] - pairs[:, 0])
    return {"base": base, "checkpoint": checkpoint, "checkpoint_minus_base": difference}


def _bounds(resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return {"low": float(low), "high": float(high)}
