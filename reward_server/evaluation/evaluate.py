"""Implements `motion-reward evaluate`: measures how well the rewards separate real clips from generated ones.

It reports the AUC of each reward with confidence intervals over clips, and the average rewards and saturation of both
sets. The same figures are computed for floors, which are the clips' dynamics and a few plain statistics. A reward that
does not beat the floors may have learnt only that generated clips move less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from protos.json_codec import to_json
from protos.types import Context, Outcome, Submission
from reward_server.data.shots import Shot, find_shots
from reward_server.errors import RewardServerError
from reward_server.evaluation import pages, plots, report
from reward_server.evaluation.floors import FLOORS, plain_statistics
from reward_server.evaluation.matched import Matched, Protocol, matched_submission
from reward_server.evaluation.scoring import (
    OUTCOME_COLUMNS,
    RewardSource,
    count_outcomes,
    failed_outcome,
    open_scorer,
    outcome_row,
    without_explanation,
)
from reward_server.evaluation.sets import GENERATED, NAMES, REAL, Case, SetFigures, columns
from reward_server.evaluation.strata import balanced
from reward_server.report.clips import WorstFirst
from reward_server.report.page import Page, Plot, write_page
from reward_server.report.stills import stills
from reward_server.settings import Settings

BATCH = 8  # clips handed to the scorer at once
CSV_COLUMNS = ("set", "clip", *OUTCOME_COLUMNS, *FLOORS, "rate")
EVALUATE_PLOTS = {"histograms.png": "Values of both sets", "roc.png": "ROC curves, real against generated"}


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


def case_row(case: Case) -> dict[str, object]:
    """One clip as a line of the CSV and an entry of `clips` in the JSON."""
    floors = {name: case.statistics.get(name) for name in FLOORS}
    return {"set": case.side, "clip": case.clip, **outcome_row(case.outcome), **floors, "rate": case.rate}


def draw(folder: Path, cases: Sequence[Case]) -> None:
    """Draw histograms.png and roc.png of each of NAMES that has values in both sets."""
    sides = [columns(cases, side) for side in (REAL, GENERATED)]
    both = [name for name in NAMES if all(side[name].size for side in sides)]
    if both:
        real, generated = ({name: side[name] for name in both} for side in sides)
        plots.histograms(folder / "histograms.png", real, generated)
        plots.roc_curves(folder / "roc.png", real, generated)
