"""Implements `motion-reward evaluate`: measures how well the rewards separate real clips from generated ones.

It reports the AUC of each reward with confidence intervals over clips, and the average rewards and saturation of both
sets. The same figures are computed for floors, which are the clips' dynamics and a few plain statistics. A reward that
does not beat the floors may have learnt only that generated clips move less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.table import Table

from protos.json_codec import to_json
from protos.types import DYNAMICS, REWARDS, Context, Outcome, Submission
from reward_server.data.shots import Shot, find_shots
from reward_server.errors import RewardServerError
from reward_server.evaluation import pages, plots, report
from reward_server.evaluation.floors import FLOORS, plain_statistics
from reward_server.evaluation.matched import Matched, Protocol, matched_submission
from reward_server.evaluation.scoring import (
    OUTCOME_COLUMNS,
    RewardSource,
    count_outcomes,
    dynamics_of,
    failed_outcome,
    open_scorer,
    outcome_row,
    rewards_of,
    without_explanation,
)
from reward_server.evaluation.strata import balanced
from reward_server.report.clips import Draw, WorstFirst
from reward_server.report.page import Page, Plot, write_page
from reward_server.report.stills import stills
from reward_server.settings import Settings
from reward_server.stats import Floats, Interval, auc, auc_bootstrap, auc_delong

REAL, GENERATED = "real", "generated"
NAMES = (*REWARDS, *FLOORS, *DYNAMICS)
BATCH = 8  # clips handed to the scorer at once
EVALUATE_PLOTS = {"histograms.png": "Values of both sets", "roc.png": "ROC curves, real against generated"}


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


def run(
    real: Sequence[str],
    generated: Sequence[str],
    settings: Settings,
    *,
    server: str | None = None,
    matched: bool = False,
    seed: int = 0,
    fps: float | None = None,
    outputs: report.Outputs,
    console: Console | None = None,
) -> int:
    """Run the command: score all clips, print the figures and write `outputs`.

    Returns 1 if a clip has no reward, else 0. Raises BadRequest if a path names no clips.
    """
    console = console or Console()
    protocol = Protocol() if matched else None
    sides = ((REAL, real), (GENERATED, generated))
    shots = [(side, shot) for side, paths in sides for shot in find_shots(paths, fps)]
    with open_scorer(settings, server) as scorer, report.progress_bar() as bar:
        task = bar.add_task("clips", total=len(shots))
        found = judge(
            shots,
            scorer,
            settings,
            protocol=protocol,
            seed=seed,
            explain=outputs.html is not None,
            done=lambda: bar.advance(task),
        )
        worst = WorstFirst()
        cases = [_kept(case, worst) for case in found]
    kept = with_equal_rates(cases, seed) if matched else cases
    figures = SetFigures.of(kept, seed)
    counts = {side: count_outcomes(case.outcome for case in cases if case.side == side) for side in (REAL, GENERATED)}
    document = {
        "model": to_json(scorer.model),
        "scored_by": scorer.where,
        "seed": seed,
        "matched": None if protocol is None else asdict(protocol),
        "left_out_for_rate": len(cases) - len(kept),
        "outcomes": counts,
        **figures.as_json(),
    }
    console.print(*figures.tables(), f"outcomes: {counts}", sep="\n")
    report.write_json(outputs.json, {**document, "clips": [case_row(case) for case in cases]})
    report.write_csv(outputs.csv, CSV_COLUMNS, [case_row(case) for case in cases])
    drawn = pages.drawn(lambda folder: draw(folder, kept), EVALUATE_PLOTS, outputs)
    if outputs.html is not None:
        left_out = len(cases) - len(kept) if matched else None
        write_page(outputs.html, _page(worst, scorer, figures=figures, cases=cases, drawn=drawn, left_out=left_out))
    report.print_last_line(console, document)
    return int(any(case.outcome.reward is None for case in cases))


def _page(
    worst: WorstFirst,
    scorer: RewardSource,
    *,
    figures: SetFigures,
    cases: Sequence[Case],
    drawn: Sequence[Plot],
    left_out: int | None,
) -> Page:
    """The report. `left_out` clips balance the rates; None if the sets are not matched."""
    told = f"{left_out} clips were left out of the figures, so that the frame rate says nothing."
    return pages.evaluate_page(
        worst,
        scorer,
        tables=figures.tables(),
        plots=drawn,
        lead=[] if left_out is None else [told],
        sizes={side: sum(case.side == side for case in cases) for side in (REAL, GENERATED)},
        auc=figures.separations[0].auc,
    )


def judge(
    shots: Sequence[tuple[str, Shot]],
    scorer: RewardSource,
    settings: Settings,
    *,
    protocol: Protocol | None = None,
    seed: int = 0,
    explain: bool = False,
    done: Callable[[], None] = lambda: None,
) -> Iterator[Case]:
    """Score every clip with the same query seed, unchanged or under `protocol`. Yields one case per clip, in order.

    With `explain`, rewards have an explanation, and a case holds its clip, to draw it.
    """
    context = Context(query_seed=seed, explain=explain)
    for start in range(0, len(shots), BATCH):
        ready = [
            (side, shot, _submission(shot, scorer, settings, protocol, context))
            for side, shot in shots[start : start + BATCH]
        ]
        sent = [item.submission for *_, item in ready if isinstance(item, Matched)]
        scored = iter(scorer.score(sent) if sent else [])
        for side, shot, item in ready:
            if isinstance(item, Outcome):
                yield Case(side=side, clip=shot.name, outcome=item)
            else:
                known, outcome = _statistics(item.submission, scorer, settings, seed), next(scored)
                rate = item.rate or (outcome.reward.provenance.fps_used if outcome.reward else None)
                frames = partial(stills, item.submission.payload, media=item.submission.media) if explain else None
                yield Case(side=side, clip=shot.name, outcome=outcome, statistics=known, rate=rate, draw=frames)
            done()


def _kept(case: Case, worst: WorstFirst) -> Case:
    """The case without what only a report shows of it, which is handed to `worst`."""
    worst.add(pages.set_entry(case.side, case.clip, case.outcome, case.draw))
    return replace(case, outcome=without_explanation(case.outcome), draw=None)


def with_equal_rates(cases: Sequence[Case], seed: int) -> list[Case]:
    """The scored clips that are left when the rate says nothing about the side. Raises BadRequest if too few are."""
    known = [case for case in cases if case.rate is not None and case.outcome.reward is not None]
    kept = balanced([case.rate or 0.0 for case in known], [case.side == REAL for case in known], seed)
    return [known[position] for position in kept]


def _submission(
    shot: Shot, scorer: RewardSource, settings: Settings, protocol: Protocol | None, context: Context
) -> Matched | Outcome:
    try:
        submission = shot.submission(context)
        if protocol is None:
            return Matched(submission=submission, rate=None)
        return matched_submission(submission, protocol, scorer, settings, context)
    except (RewardServerError, OSError) as error:
        return failed_outcome(error)


def _statistics(submission: Submission, scorer: RewardSource, settings: Settings, seed: int) -> dict[str, float]:
    """Plain statistics of the clip's first window; empty if it does not decode (its outcome then says why)."""
    try:
        decoded = scorer.decode(submission, replace(scorer.sampling, max_windows=1), settings)
    except RewardServerError:
        return {}
    return plain_statistics(decoded.windows[0].clip, seed)


# --- figures ------------------------------------------------------------------------------------


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


# --- reports ------------------------------------------------------------------------------------

CSV_COLUMNS = ("set", "clip", *OUTCOME_COLUMNS, *FLOORS, "rate")


def case_row(case: Case) -> dict[str, object]:
    """One clip as a line of the CSV and an entry of `clips` in the JSON."""
    floors = {name: case.statistics.get(name) for name in FLOORS}
    return {"set": case.side, "clip": case.clip, **outcome_row(case.outcome), **floors, "rate": case.rate}


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


def draw(folder: Path, cases: Sequence[Case]) -> None:
    """Draw histograms.png and roc.png of each of NAMES that has values in both sets."""
    sides = [columns(cases, side) for side in (REAL, GENERATED)]
    both = [name for name in NAMES if all(side[name].size for side in sides)]
    if both:
        real, generated = ({name: side[name] for name in both} for side in sides)
        plots.histograms(folder / "histograms.png", real, generated)
        plots.roc_curves(folder / "roc.png", real, generated)
