"""The statistics behind `evaluate` and `sanity`: pure functions of arrays, nothing is drawn without a seed.

Stands below evaluate.py, sanity.py and bench.py. A reward is "real is high" everywhere, so an AUC is the
chance that a random real clip is rewarded above a random generated one, a tie counting half.
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
    """A confidence interval, ends included."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """`right` of `pairs`; the fraction is None, never 0, where there was no pair."""

    right: int
    pairs: int

    @property
    def fraction(self) -> float | None:
        return self.right / self.pairs if self.pairs else None


def auc(real: ArrayLike, generated: ArrayLike) -> float:
    """Chance that a real value lies above a generated one, ties half (Mann-Whitney U / pairs), 0..1."""
    positive, negative = _sample("real", real), _sample("generated", generated)
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    above = ranks[: positive.size].sum() - positive.size * (positive.size + 1) / 2
    return float(above / (positive.size * negative.size))


def auc_bootstrap(
    real: ArrayLike, generated: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval | None:
    """Percentile interval of the AUC, both sets resampled by clip; None with fewer than two clips in a set.

    Perfect separation gives [1, 1]: then no resample overlaps either, which is not the same as certainty.
    """
    wins = _wins(real, generated)
    if min(wins.shape) < 2:
        return None
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64) for n in wins.shape]
    drawn = ((weights[0] @ wins) * weights[1]).sum(1) / wins.size
    return _percentiles(drawn, level)


def auc_delong(real: ArrayLike, generated: ArrayLike, *, level: float = 0.95) -> Interval | None:
    """DeLong's normal interval of the AUC, cut to 0..1; None with fewer than two clips in a set."""
    wins = _wins(real, generated)
    if min(wins.shape) < 2:
        return None
    variance = wins.mean(1).var(ddof=1) / wins.shape[0] + wins.mean(0).var(ddof=1) / wins.shape[1]
    half = float(special.ndtri((1 + level) / 2)) * math.sqrt(variance)
    centre = float(wins.mean())
    return Interval(low=max(0.0, centre - half), high=min(1.0, centre + half))


def mean_bootstrap(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval | None:
    """Percentile interval of the mean of `values` (one per clip); None with fewer than two."""
    sample = _sample("values", values)
    if sample.size < 2:
        return None
    rng = np.random.default_rng(seed)
    return _percentiles(sample[rng.integers(sample.size, size=(resamples, sample.size))].mean(1), level)


def roc(real: ArrayLike, generated: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates at every threshold, from (0, 0) to (1, 1); the area under them is `auc`."""
    positive, negative = np.sort(_sample("real", real)), np.sort(_sample("generated", generated))
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    at_least = [1 - np.searchsorted(side, thresholds, side="left") / side.size for side in (negative, positive)]
    return np.concatenate([[0.0], at_least[0]]), np.concatenate([[0.0], at_least[1]])


def falling(strengths: Sequence[float], rewards: ArrayLike) -> float | None:
    """Spearman correlation of strength with the *fall* of the reward: 1 where it falls at every step, -1..1.

    Tied values share their mean rank. Rewards that do not change at all say nothing about order: 0. None
    with fewer than three rewards, where a rank correlation has no meaning.
    """
    values = _sample("rewards", rewards)
    if values.size != len(strengths):
        raise ValueError(f"{values.size} rewards for {len(strengths)} strengths; give one each")
    if values.size < 3:
        return None
    if np.ptp(values) == 0:
        return 0.0
    return float(stats.spearmanr(strengths, -values).statistic)


def ordered(real: ArrayLike, faulty: ArrayLike) -> Share:
    """Pairs in which the real clip is rewarded strictly above the faulty one; a pair with a NaN is no pair.

    A tie is not right: a reward that cannot tell the two apart gives a trainer nothing to climb.
    """
    above, below = np.broadcast_arrays(np.asarray(real, dtype=np.float64), np.asarray(faulty, dtype=np.float64))
    return Share(right=int((above > below).sum()), pairs=int((~np.isnan(above) & ~np.isnan(below)).sum()))


def _wins(real: ArrayLike, generated: ArrayLike) -> Floats:
    """[real, generated]: 1 where the real value is higher, 0.5 where equal, else 0."""
    positive, negative = _sample("real", real)[:, None], _sample("generated", generated)[None, :]
    wins: Floats = (positive > negative) + 0.5 * (positive == negative)
    return wins


def _percentiles(drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))


def _sample(name: str, values: ArrayLike) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be a non-empty row of finite numbers, got shape {list(sample.shape)}")
    return sample
