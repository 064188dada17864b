"""Computes the statistics of `evaluate`, `sanity` and refreshes: AUCs, confidence intervals and rank correlations.

All are pure functions of arrays; those that draw samples take a seed. Real clips should get the higher reward, so
an AUC is the probability that a random real clip is rewarded above a random generated one. A tie counts half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of pairs that are ordered right: `right` of `pairs`. Without any pair the fraction is None, not 0."""

    right: int
    pairs: int

    @property
    def fraction(self) -> float | None:
        return self.right / self.pairs if self.pairs else None


def auc(real: ArrayLike, generated: ArrayLike) -> float:
    """Probability, 0..1, that a real value lies above a generated one; ties count half.

    This is the Mann-Whitney U statistic divided by the number of pairs. Like all functions here except `ordered`, it
    raises ValueError unless its samples are non-empty rows of finite numbers.
    """
    positive, negative = _sample("real", real), _sample("generated", generated)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    above = ranks[: positive.size].sum() - positive.size * (positive.size + 1) / 2
    return float(above / (positive.size * negative.size))


def auc_bootstrap(
    real: ArrayLike, generated: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of the AUC; both sets are resampled by clip. None if a set has fewer than two.

    Perfect separation gives [1, 1], because then no resample overlaps either. That does not mean certainty.
    """
    wins = _wins(real, generated)
    if min(wins.shape) < 2:
        return None
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64) for n in wins.shape]
    drawn = ((weights[0] @ wins) * weights[1]).sum(1) / wins.size
    return _percentiles(drawn, level)


def auc_delong(real: ArrayLike, generated: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """DeLong's normal interval of the AUC, clipped to 0..1. None if a set has fewer than two clips."""
    wins = _wins(real, generated)
    if min(wins.shape) < 2:
        return None
    variance = wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1]
    half = float(special.ndtri((1 + level) / 2)) * math.sqrt(variance)
    centre = float(wins.mean())
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


def mean_bootstrap(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """Percentile bootstrap interval of the mean of `values`, one per clip. None with fewer than two values."""
    sample = _sample("values", values)
    if sample.size < 2:
        return None
    rng = np.random.default_rng(seed)
    return _percentiles(sample[rng.integers(sample.size, size=(resamples, sample.size))].mean(1), level)


def share_bootstrap(
    shares: Sequence[Share], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of the share of all pairs, given each clip's share; resampled by clip.

    Clips without pairs do not count. None with fewer than two others.
    """
    counts = np.array([(share.right, share.pairs) for share in shares if share.pairs], np.float64)
    if len(counts) < 2:
        return None
    rng = np.random.default_rng(seed)
    right, pairs = counts[rng.integers(len(counts), size=(resamples, len(counts)))].sum(1).T
    return _percentiles(right / pairs, level)


def roc(real: ArrayLike, generated: ArrayLike) -> tuple[Floats, Floats]:
    """ROC curve: false and true positive rates at every threshold, from (0, 0) to (1, 1). Its area equals `auc`."""
    positive, negative = np.sort(_sample("real", real)), np.sort(_sample("generated", generated))
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    at_least = [1 - np.searchsorted(side, thresholds, side="left") / side.size for side in (negative, positive)]
    return np.concatenate([[0.0], at_least[0]]), np.concatenate([[0.0], at_least[1]])


def falling(strengths: Sequence[float], rewards: ArrayLike) -> float | None:
    """Spearman correlation, -1..1, of fault strength with the negative reward: 1 if the reward falls at every step.

    Tied values share their mean rank. If all rewards are equal, the result is 0. With fewer than three rewards a
    rank correlation has no meaning, and the result is None. Raises ValueError for unequal lengths.
    """
    values = _sample("rewards", rewards)
    if values.size != len(strengths):
        raise ValueError(f"got {values.size} rewards for {len(strengths)} strengths; give one each")
    if values.size < 3:
        return None
    if np.ptp(values) == 0:
        return 0.0
    return float(stats.spearmanr(strengths, -values).statistic)


def ordered(real: ArrayLike, faulty: ArrayLike) -> Share:
    """Count the pairs in which the real clip is rewarded strictly above the faulty one.

    `real` and `faulty` are broadcast against each other. Pairs with a NaN are not counted. A tie counts as wrong,
    because a reward that cannot tell the two clips apart gives a trainer no signal.
    """
    above, below = np.broadcast_arrays(np.asarray(real, dtype=np.float64), np.asarray(faulty, dtype=np.float64))
    return Share(right=int((above > below).sum()), pairs=int((~np.isnan(above) & ~np.isnan(below)).sum()))


def _wins(real: ArrayLike, generated: ArrayLike) -> Floats:
    """Matrix [real, generated]: 1 where the real value is higher, 0.5 where both are equal, else 0."""
    positive, negative = _sample("real", real)[:, None], _sample("generated", generated)[None, :]
    wins: Floats = (positive > negative) + 0.5 * (positive == negative)
    return wins


def _percentiles(drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def _sample(name: str, values: ArrayLike) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        bad = int((~np.isfinite(sample)).sum())
        raise ValueError(
            f"{name} must be a non-empty row of finite numbers, got shape {list(sample.shape)}, {bad} not finite"
        )
    return sample
