"""Compares real with generated clips only where they are alike in something else: rate, amount of motion, sharpness.

An AUC is a share of pairs. Here some pairs are left out, those whose clips are in different strata. Intervals resample
sources, because clips of one source are not independent.

Legend: R real clips, G generated clips, S sources, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reward_server.errors import BadRequest
from reward_server.stats import Floats, Interval

RATE_TOLERANCE = 0.01  # relative; rates closer than this count as equal: 29.97 / 4 and 30 / 4, but not 7.5 and 8
RESAMPLES = 1000
FEWEST = 2  # clips of each side that a comparison needs

Groups = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PairedAuc:
    """An AUC over `pairs` pairs of a real and a generated clip; None without any. `interval`: 95 %, over sources."""

    auc: float | None
    interval: Interval | None
    pairs: int


def paired_auc(
    real: ArrayLike,
    generated: ArrayLike,
    *,
    sources: tuple[Sequence[str], Sequence[str]],
    strata: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> PairedAuc:
    """The probability that a real value [R] lies above a generated one [G] of the same stratum; ties count half.

    A side with one source is resampled by clip instead. With fewer than two clips on a side there is no interval.
    """
    above, below = np.asarray(real, np.float64)[:, None], np.asarray(generated, np.float64)[None]
    allowed = np.ones((above.size, below.size))
    if strata is not None:
        allowed = (np.asarray(strata[0])[:, None] == np.asarray(strata[1])[None]).astype(np.float64)
    wins = allowed * ((above > below) + 0.5 * (above == below))
    pairs = int(allowed.sum())
    if not pairs:
        return PairedAuc(auc=None, interval=None, pairs=0)
    interval = None
    if min(wins.shape) >= FEWEST:
        rng = np.random.default_rng(seed)
        weights_BR, weights_BG = (_resampled(names, rng) for names in sources)
        counts = ((weights_BR @ allowed) * weights_BG).sum(1)
        drawn = ((weights_BR @ wins) * weights_BG).sum(1)[counts > 0] / counts[counts > 0]
        low, high = np.quantile(drawn, [0.025, 0.975])
        interval = Interval(low=float(low), high=float(high))
    return PairedAuc(auc=float(wins.sum() / pairs), interval=interval, pairs=pairs)


def _resampled(sources: Sequence[str], rng: np.random.Generator) -> Floats:
    """How often each clip is in each resample [B,clips]: its source is drawn with replacement, with all its clips."""
    names, place = np.unique(np.asarray(sources), return_inverse=True)
    if names.size == 1:
        place = np.arange(len(sources))
    num = int(place.max()) + 1
    drawn: Floats = rng.multinomial(num, np.full(num, 1 / num), size=RESAMPLES)[:, place].astype(np.float64)
    return drawn


def rate_groups(rates: ArrayLike) -> Groups:
    """A number for each rate; rates that differ by at most RATE_TOLERANCE from the next one share it."""
    values = np.asarray(rates, np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.diff(np.log(values[order])) > RATE_TOLERANCE
    groups = np.zeros(values.size, np.int64)
    groups[order] = np.concatenate([[0], np.cumsum(steps)])
    return groups


def thirds(values: ArrayLike) -> Groups:
    """Which third of the values each one is in: 0, 1 or 2."""
    sample = np.asarray(values, np.float64)
    return np.searchsorted(np.quantile(sample, [1 / 3, 2 / 3]), sample).astype(np.int64)


def balanced(rates: Sequence[float], real: Sequence[bool], seed: int = 0) -> list[int]:
    """Positions of the clips to keep so that the rate says nothing about the side.

    In every group of equal rates the kept real and generated clips have the same ratio, to the nearest clip, and groups
    too small for it are left out; which surplus clips are left out is drawn by `seed`. Raises BadRequest if too few
    clips have a rate in common.
    """
    groups, sides = rate_groups(rates), np.asarray(real, bool)
    counts = {g: (int((sides & (groups == g)).sum()), int((~sides & (groups == g)).sum())) for g in np.unique(groups)}
    shared = {g: count for g, count in counts.items() if min(count)}
    totals = np.array(list(shared.values())).reshape(-1, 2).sum(0)
    rng, kept = np.random.default_rng(seed), list[int]()
    for g, (num_real, num_generated) in shared.items():
        ratio = totals[0] / totals[1]
        most = (min(num_real, round(num_generated * ratio)), min(num_generated, round(num_real / ratio)))
        if not min(most):  # one clip would be more than its side's share
            continue
        for side, number in zip((True, False), most, strict=True):
            here = np.flatnonzero((groups == g) & (sides == side))
            kept += rng.choice(here, number, replace=False).tolist()
    if not kept or min(sum(sides[kept]), sum(~sides[kept])) < FEWEST:
        told = [_rates_told(np.asarray(rates)[sides == side]) for side in (True, False)]
        raise BadRequest(
            f"rates cannot be balanced: real clips have {told[0]} frames per second and generated ones {told[1]}, and "
            f"at least {FEWEST} of each must share a rate; convert the clips to a common rate, or leave out --matched"
        )
    return sorted(kept)


def _rates_told(rates: Floats) -> str:
    found = sorted({f"{rate:.3g}" for rate in rates})
    return ", ".join(found[:4]) + (", ..." if len(found) > 4 else "") if found else "no"
