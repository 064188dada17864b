"""Computes verdicts from the arms' measures: paired differences and bootstrap intervals over streams and first frames.

D data seeds, S streams, N held-out first frames. The claims are those of plan.md, in its order. None is judged by a
mean alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Table = Mapping[str, Mapping[str, Floats]]
"""Arm -> measure -> [S,N]."""

LEVEL, RESAMPLES = 0.95, 4000
LOOK_MARGIN = 0.25  # share of sft's look error by which shift-mid may be worse
GRID = ("sft", "shift-low", "shift-mid", "shift-high")
ABLATIONS = ("no-anchor", "no-negative", "exp", "unmatched", "batch-centre", "std")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim, the interval that judges it, and whether it holds. Both are None until its arms have run."""

    name: str
    claim: str
    interval: Interval | None
    holds: bool | None


def interval(values_SN: Floats) -> Interval:
    """Interval of the mean. Streams are resampled, and first frames within them."""
    streams, frames = values_SN.shape
    rng = np.random.default_rng(0)
    chosen = rng.integers(streams, size=(RESAMPLES, streams, 1))
    within = rng.integers(frames, size=(RESAMPLES, streams, frames))
    means = values_SN[chosen, within].mean(axis=(1, 2))
    return percentile_interval(float(values_SN.mean()), means)


def percentile_interval(mean: float, resampled: Floats | Sequence[float]) -> Interval:
    """The middle LEVEL of the resampled values, with `mean`."""
    low, high = np.percentile(resampled, [50 - 50 * LEVEL, 50 + 50 * LEVEL])
    return Interval(mean=mean, low=float(low), high=float(high))


def nested_interval(values_DSN: Sequence[Floats]) -> Interval:
    """Interval of the mean. Data seeds are resampled, streams within them, and first frames within those."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        drawn = [values_DSN[at] for at in rng.integers(len(values_DSN), size=len(values_DSN))]
        means.append(float(np.mean([_resampled_mean(values_SN, rng) for values_SN in drawn])))
    return percentile_interval(float(np.mean([values_SN.mean() for values_SN in values_DSN])), means)


def _resampled_mean(values_SN: Floats, rng: np.random.Generator) -> float:
    streams, frames = values_SN.shape
    chosen = rng.integers(streams, size=(streams, 1))
    return float(values_SN[chosen, rng.integers(frames, size=(streams, frames))].mean())


def difference(table: Table, arm: str, other: str, measure: str) -> Floats:
    """Arm minus other, [S,N], paired by stream and first frame. Streams that only one has run are left out."""
    ours, theirs = table[arm][measure], table[other][measure]
    streams = min(len(ours), len(theirs))
    minus: Floats = ours[:streams] - theirs[:streams]
    return minus


def slope(levels: Sequence[Floats]) -> Floats:
    """Slope of each first frame's measure over the rank of the arm, [S,N]."""
    streams = min(len(level) for level in levels)
    ranks = np.arange(len(levels)) - (len(levels) - 1) / 2
    rise: Floats = np.tensordot(ranks, np.stack([level[:streams] for level in levels]), axes=1) / (ranks**2).sum()
    return rise


def verdicts(table: Table) -> list[Verdict]:
    """The verdicts of Level 1, in the order of plan.md."""
    return [
        _reward_rises(table),
        _dose_response(table),
        above(table, "not replay", "shift-mid", "replay", "reward"),
        _look_held(table),
        above(table, "anchor is what holds it", "no-anchor", "shift-mid", "look_error"),
        above(table, "hacked while fixed", "fixed", "sft", "glow"),
        _closed(table),
    ]


def _reward_rises(table: Table) -> Verdict:
    name, claim = "reward rises", "reward, shift-mid - sft > 0, in every stream"
    if not _ran(table, "shift-mid", "sft"):
        return _not_run(name, claim)
    gain = difference(table, "shift-mid", "sft", "reward")
    found = interval(gain)
    holds = found.low > 0 and bool((gain.mean(axis=1) > 0).all())
    return Verdict(name=name, claim=claim, interval=found, holds=holds)


def _dose_response(table: Table) -> Verdict:
    name, claim = "dose response", "reward per step of the grid of lambda > 0"
    if not _ran(table, *GRID):
        return _not_run(name, claim)
    found = interval(slope([table[arm]["reward"] for arm in GRID]))
    return Verdict(name=name, claim=claim, interval=found, holds=found.low > 0)


def _look_held(table: Table) -> Verdict:
    name, claim = "anchor holds the look", f"look error, shift-mid - sft < {LOOK_MARGIN:g} of sft's"
    if not _ran(table, "shift-mid", "sft"):
        return _not_run(name, claim)
    found = interval(difference(table, "shift-mid", "sft", "look_error"))
    margin = LOOK_MARGIN * float(table["sft"]["look_error"].mean())
    return Verdict(name=name, claim=f"{claim} ({margin:.3f})", interval=found, holds=found.high < margin)


def _closed(table: Table) -> Verdict:
    name, claim = "refresh closes it", "glow, refreshed - fixed < 0, and the rise over sft at most half"
    if not _ran(table, "sft", "fixed", "refreshed"):
        return _not_run(name, claim)
    found = interval(difference(table, "refreshed", "fixed", "glow"))
    hacked, left = (float(difference(table, arm, "sft", "glow").mean()) for arm in ("fixed", "refreshed"))
    return Verdict(name=name, claim=claim, interval=found, holds=found.high < 0 and left <= hacked / 2)


def above(table: Table, name: str, arm: str, other: str, measure: str) -> Verdict:
    """The verdict on the claim that the arm's measure is above the other arm's."""
    claim = f"{measure.replace('_', ' ')}, {arm} - {other} > 0"
    if not _ran(table, arm, other):
        return _not_run(name, claim)
    found = interval(difference(table, arm, other, measure))
    return Verdict(name=name, claim=claim, interval=found, holds=found.low > 0)


def _ran(table: Table, *names: str) -> bool:
    return all(name in table for name in names)


def _not_run(name: str, claim: str) -> Verdict:
    return Verdict(name=name, claim=claim, interval=None, holds=None)


def ablations(table: Table) -> dict[str, Interval]:
    """Reward of each ablation that has run, minus the reward of shift-mid."""
    return {
        arm: interval(difference(table, arm, "shift-mid", "reward"))
        for arm in ABLATIONS
        if _ran(table, arm, "shift-mid")
    }
