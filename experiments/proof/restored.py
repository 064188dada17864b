"""Judges the third plan: its figures over data seeds, their intervals, and the verdicts of plan3.md.

D data seeds, S streams, N held-out first frames, R rollouts of each; G groups of one real clip and P rollouts. For an
interval, seeds are drawn, streams within them, and first frames within those, for all arms together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from experiments.proof.heads import read_heads
from experiments.proof.learned import ScoredGroups, partial_correlation
from experiments.proof.motion import samples_of
from experiments.proof.restoring import PartName
from experiments.proof.verdicts import LOOK_MARGIN, Floats, Interval, Verdict, percentile_interval
from trainer.errors import ConfigError

RESAMPLES = 1000
SHIFT = "shift-refreshed"
PLAIN, NOISE, PIXELS = "plain", "noise", "pixels"


@dataclass(frozen=True, kw_only=True)
class SeedRuns:
    """One data seed's results: rollouts by arm and measure [S,N,R], the motion to reach [M], and scores by recipe."""

    seed: int
    folder: Path
    records: Sequence[Mapping[str, Any]]
    samples: Mapping[str, Mapping[str, Floats]]
    data_px: Floats
    heads: Mapping[str, ScoredGroups]


Statistic = Callable[[Mapping[str, Mapping[str, Floats]], Floats], float]
"""A figure of a seed, from its samples (or a resample of them) and the speeds to reach."""


def read_runs(part: PartName, places: Sequence[Path], seeds: Sequence[int]) -> list[SeedRuns]:
    """Read a part's results of every seed. Raises ConfigError if nothing has run."""
    found = []
    for place, seed in zip(places, seeds, strict=True):
        folder = place / part
        records = [json.loads(path.read_text()) for path in sorted((folder / "arms").glob("*.json"))]
        if not records:
            raise ConfigError(f"{folder} holds no arms; run `python -m experiments.proof restore --seed {seed}` first")
        data_px = np.array(json.loads((folder / "data.json").read_text())["speed_px"])
        samples = samples_of(records)
        heads = read_heads(folder / "heads")
        found.append(SeedRuns(seed=seed, folder=folder, records=records, samples=samples, data_px=data_px, heads=heads))
    return found


# --- figures and their intervals ----------------------------------------------------------------


def over_seeds(runs: Sequence[SeedRuns], statistic: Statistic) -> Interval:
    """The mean of a figure over seeds, with a nested bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = [
        np.mean(
            [
                statistic(_resample(runs[at].samples, rng), runs[at].data_px)
                for at in rng.integers(len(runs), size=len(runs))
            ]
        )
        for _ in range(RESAMPLES)
    ]
    return percentile_interval(float(np.mean(by_seed(runs, statistic))), np.array(drawn, np.float64))


def by_seed(runs: Sequence[SeedRuns], statistic: Statistic) -> list[float]:
    """The figure of each seed."""
    return [statistic(run.samples, run.data_px) for run in runs]


def _resample(samples: Mapping[str, Mapping[str, Floats]], rng: np.random.Generator) -> dict[str, dict[str, Floats]]:
    """Streams and first frames drawn again, the same for all arms. Streams that an arm has not run are left out."""
    streams = min(len(of["speed_px"]) for of in samples.values())
    frames = next(iter(samples.values()))["speed_px"].shape[1]
    chosen = rng.integers(streams, size=(streams, 1))
    within = rng.integers(frames, size=(streams, frames))
    return {arm: {name: values[chosen, within] for name, values in of.items()} for arm, of in samples.items()}


def mean_minus(arm: str, other: str, measure: str) -> Statistic:
    """The arm's mean minus the other arm's. `data` stands for the speeds to reach."""

    def figure(samples: Mapping[str, Mapping[str, Floats]], data_px: Floats) -> float:
        means = [float(data_px.mean() if name == "data" else samples[name][measure].mean()) for name in (arm, other)]
        return means[0] - means[1]

    return figure


def distance_minus(arm: str, other: str) -> Statistic:
    """The Wasserstein distance of the arm's speeds from those to reach, minus the other arm's, px per frame."""
    return lambda samples, data_px: distance(samples[arm], data_px) - distance(samples[other], data_px)


def distance(of: Mapping[str, Floats], data_px: Floats) -> float:
    """The Wasserstein distance of an arm's speeds from those to reach, px per frame."""
    return float(wasserstein_distance(of["speed_px"].ravel(), data_px))


def share_of(arm: str, whole: str) -> Statistic:
    """What the arm adds to sft's speed, as a share of what sft lacks to `whole`: another arm, or `data`."""
    gain, lack = mean_minus(arm, "sft", "speed_px"), mean_minus(whole, "sft", "speed_px")
    return lambda samples, data_px: gain(samples, data_px) / lack(samples, data_px)


def follows_speed(scored: ScoredGroups, rows: Any = slice(None)) -> float:
    """Rank correlation of the long-term advantage with speed at like look, over those groups."""
    of = scored.measures
    return partial_correlation(scored.rewards["long_term"][rows], of["speed_px"][rows], of["look_error"][rows])


def recipes_apart(runs: Sequence[SeedRuns], one: str, other: str) -> Interval:
    """`follows_speed` of one recipe minus that of the other, over seeds; seeds and groups are drawn."""
    rng = np.random.default_rng(0)

    def apart(run: SeedRuns, rows: Any = slice(None)) -> float:
        return follows_speed(run.heads[one], rows) - follows_speed(run.heads[other], rows)

    groups, drawn = len(runs[0].heads[one].measures["speed_px"]), []
    for _ in range(RESAMPLES):
        chosen = [runs[at] for at in rng.integers(len(runs), size=len(runs))]
        drawn.append(float(np.mean([apart(run, rng.integers(groups, size=groups)) for run in chosen])))
    return percentile_interval(float(np.mean([apart(run) for run in runs])), drawn)


# --- verdicts -----------------------------------------------------------------------------------


def restored_verdicts(part: PartName, runs: Sequence[SeedRuns]) -> list[Verdict]:
    """The verdicts of a part, in the order of plan3.md. Without its premise, a claim is not judged."""
    ran = {arm for arm in runs[0].samples if all(arm in run.samples for run in runs)}
    lacking = ("data", "sft") if part == "damped" else ("base", "sft")
    premise = _verdict(runs, ran, "premise", *lacking, above=True)
    found = [
        _verdict(runs, ran, "more speed", SHIFT, "sft", above=True, each=True),
        _verdict(runs, ran, "nearer to the data", SHIFT, "sft", above=False, distances=True),
        _verdict(runs, ran, "not replay", SHIFT, "replay", above=True),
        _look_held(runs, ran),
    ]
    if part == "static":
        found.append(_verdict(runs, ran, "the reference set does it", SHIFT, "shift-own", above=True))
    if not premise.holds:
        found = [
            Verdict(name=one.name, claim=f"{one.claim} (no premise)", interval=one.interval, holds=None)
            for one in found
        ]
    return [premise, *found, *(_recipe_verdicts(runs, ran) if part == "damped" else ())]


def _verdict(
    runs: Sequence[SeedRuns],
    ran: set[str],
    name: str,
    arm: str,
    other: str,
    *,
    above: bool,
    each: bool = False,
    distances: bool = False,
) -> Verdict:
    """The verdict that speed, or the distance of the speeds from those to reach, differs in a direction."""
    claim = f"{'distance' if distances else 'speed'}, {arm} - {other} {'>' if above else '<'} 0"
    if each:
        claim += ", on each seed"
    if not {arm, other} <= ran | {"data"}:
        return Verdict(name=name, claim=claim, interval=None, holds=None)
    statistic = distance_minus(arm, other) if distances else mean_minus(arm, other, "speed_px")
    found = over_seeds(runs, statistic)
    holds = found.low > 0 if above else found.high < 0
    if each:
        holds = holds and all(value > 0 for value in by_seed(runs, statistic))
    return Verdict(name=name, claim=claim, interval=found, holds=holds)


def _look_held(runs: Sequence[SeedRuns], ran: set[str]) -> Verdict:
    claim = f"look error, {SHIFT} - sft < {LOOK_MARGIN:g} of sft's"
    if not {SHIFT, "sft"} <= ran:
        return Verdict(name="look held", claim=claim, interval=None, holds=None)
    found = over_seeds(runs, mean_minus(SHIFT, "sft", "look_error"))
    margin = LOOK_MARGIN * float(np.mean([run.samples["sft"]["look_error"].mean() for run in runs]))
    return Verdict(name="look held", claim=f"{claim} ({margin:.3f})", interval=found, holds=found.high < margin)


def _recipe_verdicts(runs: Sequence[SeedRuns], ran: set[str]) -> list[Verdict]:
    found = []
    for name, one, other in (("noise follows speed", NOISE, PLAIN), ("pixels do not", PLAIN, PIXELS)):
        claim = f"long-term correlation with speed, {one} - {other} > 0"
        if all({one, other} <= run.heads.keys() for run in runs):
            apart = recipes_apart(runs, one, other)
            found.append(Verdict(name=name, claim=claim, interval=apart, holds=apart.low > 0))
        else:
            found.append(Verdict(name=name, claim=claim, interval=None, holds=None))
    found.append(_verdict(runs, ran, "noise restores", "fixed-noise", "shift-fixed", above=True))
    found.append(_verdict(runs, ran, "pixels lose", "shift-fixed", "fixed-pixels", above=True))
    return found
