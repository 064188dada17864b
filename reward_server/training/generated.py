"""Weighs generated clips that join faulty twins as negatives, so that only their motion tells them from real clips.

Generated clips differ from real ones in rate, sharpness and amount of motion before they differ in how they move. Each
is weighed by how likely a real clip is to look like it (a density ratio, estimated by a logistic regression). A
generator with many clips gets less than its share: the square root.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from reward_server.errors import BadRequest
from reward_server.stats import Floats
from reward_server.training.feature_cache import Sample

FLOOR = 1e-3  # added to a measure before its logarithm is taken
RIDGE = 1e-3  # of the squared weights
RATIO_BOUNDS = (0.25, 4.0)  # no clip counts more than 16 times as much as another of its generator


@dataclass(frozen=True, kw_only=True)
class GeneratedClips:
    """Generated clips with the weight of each, from which a training step draws."""

    samples: tuple[Sample, ...]
    weights: tuple[float, ...]

    def draw(self, shape: tuple[int, int, int], num: int, rng: np.random.Generator) -> list[Sample]:
        """`num` clips of this shape, drawn by weight with replacement; none if there are none of the shape."""
        fitting = [position for position, sample in enumerate(self.samples) if sample.shape == shape]
        if not fitting:
            return []
        weights = np.array([self.weights[position] for position in fitting])
        return [self.samples[fitting[i]] for i in rng.choice(len(fitting), size=num, p=weights / weights.sum())]


def weighed(generated: Sequence[Sample], real: Sequence[Sample]) -> GeneratedClips:
    """The generated clips, weighed against the real ones.

    Raises BadRequest if there are none of either, or for features without their rate and looks.
    """
    if not generated or not real:
        raise BadRequest(
            f"{len(generated)} generated and {len(real)} real views are left to train on; give clips of both"
        )
    if not all(sample.fps for sample in (*generated, *real)):
        raise BadRequest(
            "some features were stored without the rate and looks of their clips, by an older version; give another "
            "--work"
        )
    each = Counter(sample.source for sample in generated)
    ratios = density_ratios(_measures(generated), _measures(real))
    weights = [ratio / each[sample.source] ** 0.5 for ratio, sample in zip(ratios, generated, strict=True)]
    return GeneratedClips(samples=tuple(generated), weights=tuple(map(float, weights)))


def density_ratios(ours: Floats, others: Floats) -> Floats:
    """How much denser `others` are than `ours` at each row of `ours` [N,M], within RATIO_BOUNDS.

    A logistic regression on all measures, their squares and products tells the two apart, with both sides counting
    alike. Its odds are the ratio.
    """
    both = np.concatenate([ours, others])
    spread = both.std(axis=0)
    inputs = _terms((both - both.mean(axis=0)) / np.where(spread > 0, spread, 1))
    signs = np.repeat([-1.0, 1.0], [len(ours), len(others)])
    share = np.repeat([0.5 / len(ours), 0.5 / len(others)], [len(ours), len(others)])

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = signs * (inputs @ weights)
        slope = inputs.T @ (-signs * share / (1 + np.exp(margins)))
        ridge = np.append(0.0, weights[1:])  # the constant is free
        return float(share @ np.logaddexp(0, -margins) + RIDGE / 2 * ridge @ ridge), slope + RIDGE * ridge

    start = np.zeros(inputs.shape[1])
    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B").x  # type: ignore[no-untyped-call]
    ratios: Floats = np.clip(np.exp(inputs[: len(ours)] @ found), *RATIO_BOUNDS)
    return ratios


def _terms(measures: Floats) -> Floats:
    """A constant, the measures, their squares and products: [N,1+M+M(M+1)/2]."""
    first, second = np.triu_indices(measures.shape[1])
    products: NDArray[np.float64] = measures[:, first] * measures[:, second]
    return np.concatenate([np.ones((len(measures), 1)), measures, products], axis=1)


def _measures(samples: Sequence[Sample]) -> Floats:
    """Logarithms of each clip's amount of motion, change between frames, sharpness and rate: [N,4]."""
    rows = [(one.amount, one.change, one.sharpness, one.fps) for one in samples]
    return np.log(np.array(rows, np.float64) + FLOOR)
