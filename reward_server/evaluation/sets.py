"""What `motion-reward evaluate` says of real and generated clips: how well each number separates them, and averages.

The numbers are the rewards, and floors: the clips' dynamics and a few plain statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from rich.table import Table

from protos.types import DYNAMICS, REWARDS, Outcome
from reward_server.evaluation import report
from reward_server.evaluation.floors import FLOORS
from reward_server.evaluation.scoring import dynamics_of, rewards_of
from reward_server.report.clips import Draw
from reward_server.stats import Floats, Interval, auc, auc_bootstrap, auc_delong

REAL, GENERATED = "real", "generated"
NAMES = (*REWARDS, *FLOORS, *DYNAMICS)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One clip of one set with its outcome and its plain statistics, which are empty if it does not decode.

    `rate` is that of its frames, in frames per second, before the matched protocol declares another; None if unknown.
    """

    side: str
    clip: str
    outcome: Outcome
    statistics: Mapping[str, float] = field(default_factory=dict)
    rate: float | None = None
    draw: Draw | None = field(default=None, repr=False)  # its frames, if it was to be explained


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well one number separates the sets: the AUC of real above generated, None if a set is empty."""

    name: str
    auc: float | None
    bootstrap: Interval | None  # 95%, over clips
    delong: Interval | None
    num_real: int
    num_generated: int

    @property
    def either_way(self) -> float | None:
        """The AUC with the better sign: max(AUC, 1 - AUC). A floor reaches it if its direction is known."""
        return None if self.auc is None else max(self.auc, 1 - self.auc)

    def as_json(self) -> dict[str, Any]:
        ends = {"bootstrap": report.interval_json(self.bootstrap), "delong": report.interval_json(self.delong)}
        return {**asdict(self), **ends, "either_way": self.either_way}


@dataclass(frozen=True, kw_only=True)
class Average:
    """One reward over one set. `saturated` is the share of scored clips with a logit clipped to a bound."""

    side: str
    reward_name: str
    num: int
    mean: float | None
    std: float | None
    median: float | None
    saturated: float | None


@dataclass(frozen=True, kw_only=True)
class AverageDynamics:
    """One number of the dynamics (DYNAMICS) over the clips of one set that have it."""

    side: str
    name: str
    num: int
    mean: float | None
    median: float | None


@dataclass(frozen=True, kw_only=True)
class SetFigures:
    """What the command says of both sets."""

    separations: Sequence[Separation]
    averages: Sequence[Average]
    dynamics: Sequence[AverageDynamics]

    @classmethod
    def of(cls, cases: Sequence[Case], seed: int) -> Self:
        return cls(separations=separations(cases, seed), averages=side_averages(cases), dynamics=side_dynamics(cases))

    def tables(self) -> tuple[Table, ...]:
        return separation_table(self.separations), average_table(self.averages), dynamics_table(self.dynamics)

    def as_json(self) -> dict[str, Any]:
        return {
            "auc": [figure.as_json() for figure in self.separations],
            "averages": [asdict(average) for average in self.averages],
            "dynamics": [asdict(average) for average in self.dynamics],
        }


def separations(cases: Sequence[Case], seed: int = 0) -> list[Separation]:
    """The separation by each of NAMES: rewards, then floors. Clips without the number in question are left out."""
    real, generated = columns(cases, REAL), columns(cases, GENERATED)
    return [_separation(name, real[name], generated[name], seed) for name in NAMES]


def columns(cases: Sequence[Case], side: str) -> dict[str, Floats]:
    """The values of each of NAMES over one set, without absent ones."""
    mine = [case for case in cases if case.side == side]
    rewards = np.array([rewards_of(case.outcome) for case in mine]).reshape(-1, len(REWARDS))
    discriminators = dict(zip(REWARDS, rewards[~np.isnan(rewards).any(axis=1)].T, strict=True))
    measured = [{**case.statistics, **dynamics_of(case.outcome)} for case in mine]
    floors = {name: [known[name] for known in measured if name in known] for name in (*FLOORS, *DYNAMICS)}
    return discriminators | {name: np.array(values, dtype=np.float64) for name, values in floors.items()}


def _separation(name: str, real: Floats, generated: Floats, seed: int) -> Separation:
    both = bool(real.size and generated.size)
    return Separation(
        name=name,
        auc=auc(real, generated) if both else None,
        bootstrap=auc_bootstrap(real, generated, seed=seed) if both else None,
        delong=auc_delong(real, generated) if both else None,
        num_real=real.size,
        num_generated=generated.size,
    )


def side_averages(cases: Sequence[Case]) -> list[Average]:
    """Average each reward over each set: count, mean, standard deviation, median and the set's saturation."""
    return [
        _average(side, reward_name, columns(cases, side)[reward_name], [c for c in cases if c.side == side])
        for side in (REAL, GENERATED)
        for reward_name in REWARDS
    ]


def _average(side: str, reward_name: str, rewards: Floats, cases: Sequence[Case]) -> Average:
    clipped = [case.outcome.reward.clipped for case in cases if case.outcome.reward is not None]
    return Average(
        side=side,
        reward_name=reward_name,
        num=rewards.size,
        mean=float(rewards.mean()) if rewards.size else None,
        std=float(rewards.std(ddof=1)) if rewards.size > 1 else None,
        median=float(np.median(rewards)) if rewards.size else None,
        saturated=sum(clipped) / len(clipped) if clipped else None,
    )


def side_dynamics(cases: Sequence[Case]) -> list[AverageDynamics]:
    """Average each number of the dynamics over each set."""
    sides = {side: columns(cases, side) for side in (REAL, GENERATED)}
    return [
        AverageDynamics(
            side=side,
            name=name,
            num=values[name].size,
            mean=float(values[name].mean()) if values[name].size else None,
            median=float(np.median(values[name])) if values[name].size else None,
        )
        for side, values in sides.items()
        for name in DYNAMICS
    ]


def separation_table(figures: Sequence[Separation]) -> Table:
    """A table of the AUC of every reward and floor. `either way` is the AUC with the better sign."""
    title = "AUC: probability that a random real clip lies above a random generated one"
    columns = ("AUC", "bootstrap 95%", "DeLong 95%", "either way", "real", "generated")
    table = report.figure_table(title, ("by",), columns)
    for row in figures:
        numbers = (report.number(row.auc, 3), report.interval(row.bootstrap), report.interval(row.delong))
        counts = (report.number(row.either_way, 3), str(row.num_real), str(row.num_generated))
        table.add_row(row.name.replace("_", " "), *numbers, *counts, end_section=row.name == REWARDS[-1])
    table.caption = "below the line: plain statistics and dynamics, the floors that a reward must beat"
    return table


def average_table(averages: Sequence[Average]) -> Table:
    columns = ("clips", "mean", "std", "median", "% at a bound")
    table = report.figure_table("Rewards (clipped logits)", ("set", "reward"), columns)
    for row in averages:
        numbers = (report.number(value) for value in (row.mean, row.std, row.median))
        bound = report.ABSENT if row.saturated is None else f"{100 * row.saturated:.1f}"
        table.add_row(row.side, row.reward_name.replace("_", "-"), str(row.num), *numbers, bound)
    return table


def dynamics_table(averages: Sequence[AverageDynamics]) -> Table:
    title = "Dynamics (motion in frame heights per second; the others are shares)"
    table = report.figure_table(title, ("set", "number"), ("clips", "mean", "median"))
    for row in averages:
        numbers = (report.number(value, 3) for value in (row.mean, row.median))
        table.add_row(row.side, row.name.replace("_", " "), str(row.num), *numbers)
    return table
