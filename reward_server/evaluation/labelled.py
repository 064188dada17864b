"""Implements `motion-reward evaluate --labelled FOLDER`: the validity report of a reward on a labelled set.

It scores every clip of the index once and keeps what it found in the folder `work`, so that an interrupted run goes on.
`validity.py` computes the figures, and `data/labelled.py` says what the folder holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protos.json_codec import to_json
from protos.types import REWARDS, Error, Outcome, OutcomeKind
from reward_server.data.labelled import LabelledClip, LabelledSet, read_labelled
from reward_server.data.shots import Shot
from reward_server.errors import BadRequest
from reward_server.evaluation import by_motion, pages, plots, report, validity
from reward_server.evaluation.evaluate import BATCH, CSV_COLUMNS, case_row, judge
from reward_server.evaluation.kept import KeptResults
from reward_server.evaluation.matched import Protocol
from reward_server.evaluation.scoring import RewardSource, open_scorer
from reward_server.evaluation.validity import EVERY, VALUES, Discrimination, Judged
from reward_server.report.clips import MOST_DRAWN, WorstFirst
from reward_server.report.page import Page, Plot, write_page
from reward_server.settings import Settings

SCORED = "scored.jsonl"
PLOTS = {"validity.png": "The AUC and its interval by value", "by_motion.png": "The reward by the amount of motion"}
Row = Mapping[str, Any]


def run(
    folder: Path,
    settings: Settings,
    *,
    split: str | None = None,
    work: Path,
    server: str | None = None,
    matched: bool = False,
    seed: int = 0,
    outputs: report.Outputs,
    console: Console | None = None,
) -> int:
    """Run the command: score the labelled clips, print the figures and write `outputs`.

    Returns 1 if a clip has no reward, else 0. Raises BadRequest if the set is wrong (`read_labelled`), if no clip of a
    label could be scored, or if `matched` cannot balance the rates.
    """
    console = console or Console()
    labelled = read_labelled(folder, split)
    protocol, worst = Protocol() if matched else None, WorstFirst()
    with open_scorer(settings, server) as scorer, report.progress_bar() as bar:
        found = score(labelled.clips, scorer, settings, KeptResults(work / SCORED), protocol=protocol, seed=seed)
        rows = list(bar.track(found, total=len(labelled.clips), description="clips"))
        if outputs.html is not None:
            _show_lowest(worst, labelled.clips, rows, scorer, settings, protocol=protocol, seed=seed)
    judged = judged_of(labelled.clips, rows)
    figures = figures_of(labelled, judged, balance=matched, seed=seed)
    moved = by_motion.moved_of(rows, "set")
    unscored = [f"{row['clip']}: {row['error']}" for row in rows if row["error"]]
    document = {
        "model": to_json(scorer.model),
        "scored_by": scorer.where,
        "seed": seed,
        "split": split,
        "matched": None if protocol is None else asdict(protocol),
        "clips": len(rows),
        "without_reward": len(unscored),
        **figures.as_json(),
        "by_motion": by_motion.as_json(moved),
    }
    console.print(*figures.tables(), *by_motion.tables(moved), *figures.notes(), *unscored, sep="\n", markup=False)
    report.write_json(outputs.json, {**document, "rows": rows})
    report.write_csv(outputs.csv, (*CSV_COLUMNS, "generator", "source", "kind"), rows)
    drawn = pages.drawn(partial(_draw, judged=judged, figures=figures, moved=moved), PLOTS, outputs)
    if outputs.html is not None:
        tables = [*figures.tables(), *by_motion.tables(moved)]
        page = _page(worst, scorer, figures=figures, rows=rows, tables=tables, drawn=drawn)
        write_page(outputs.html, page)
    report.print_last_line(console, document)
    return int(bool(unscored))


def _draw(
    folder: Path, *, judged: Sequence[Judged], figures: ValidityFigures, moved: Sequence[by_motion.Moved]
) -> None:
    plots.validity(folder / "validity.png", judged, figures.discriminations)
    plots.reward_by_motion(folder / "by_motion.png", by_motion.curve(moved))


def _page(
    worst: WorstFirst,
    scorer: RewardSource,
    *,
    figures: ValidityFigures,
    rows: Sequence[Row],
    tables: Sequence[Table],
    drawn: Sequence[Plot],
) -> Page:
    """The report."""
    lead = f"The {MOST_DRAWN} clips with the lowest rewards are shown; the figures are of all."
    return pages.evaluate_page(
        worst,
        scorer,
        tables=tables,
        plots=drawn,
        lead=[lead, *figures.notes()],
        auc=figures.discriminations[0].found.auc,
        sizes={label: sum(row["set"] == label for row in rows) for label in ("real", "generated")},
    )


def score(
    clips: Sequence[LabelledClip],
    scorer: RewardSource,
    settings: Settings,
    scored: KeptResults,
    *,
    protocol: Protocol | None = None,
    seed: int = 0,
) -> Iterator[Row]:
    """Yield one row per clip, in order. Only clips without a row in `scored` are scored; an error is tried again."""
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        keys = [_key(clip, scorer, protocol, seed) for clip in batch]
        todo = [clip for clip, key in zip(batch, keys, strict=True) if scored.get(key) is None]
        shots = [(clip.label, Shot(path=clip.file)) for clip in todo]
        found = dict(zip(todo, judge(shots, scorer, settings, protocol=protocol, seed=seed), strict=True))
        for clip, key in zip(batch, keys, strict=True):
            case = found.get(clip)
            row = scored.get(key) if case is None else case_row(case)
            assert row is not None, key
            if case is not None and case.outcome.reward is not None:
                scored.add(key, row)
            told = {"set": clip.label, "generator": clip.generator, "source": clip.source, "kind": clip.kind}
            yield {**row, "clip": clip.path, **told}


def _show_lowest(
    worst: WorstFirst,
    clips: Sequence[LabelledClip],
    rows: Sequence[Row],
    scorer: RewardSource,
    settings: Settings,
    *,
    protocol: Protocol | None,
    seed: int,
) -> None:
    """Score the clips with the lowest rewards once more, explained, for the report; with those without a reward."""
    pairs = list(zip(clips, rows, strict=True))
    lowest = sorted((pair for pair in pairs if pair[1]["error"] is None), key=lambda pair: float(pair[1]["combined"]))
    shots = [(clip.label, Shot(path=clip.file)) for clip, _ in lowest[:MOST_DRAWN]]
    cases = judge(shots, scorer, settings, protocol=protocol, seed=seed, explain=True)
    for (clip, _), case in zip(lowest, cases, strict=False):
        worst.add(pages.set_entry(clip.label, clip.path, case.outcome, case.draw))
    for clip, row in pairs:
        if row["error"] is not None:
            error = Error(code=row["error_code"], message=row["error"])
            outcome = Outcome(job_id="", kind=OutcomeKind(row["outcome"]), error=error)
            worst.add(pages.set_entry(clip.label, clip.path, outcome, None))


def _key(clip: LabelledClip, scorer: RewardSource, protocol: Protocol | None, seed: int) -> str:
    """Changes with whatever changes a reward: the file, the weights, the way of scoring, the seed."""
    stat, model = clip.file.stat(), scorer.model
    about = (clip.file.resolve(), stat.st_size, stat.st_mtime_ns, model.weights_digest, model.preprocessing_digest)
    return json.dumps(
        [*map(str, about), to_json(model.bounds), to_json(model.weights), str(model.input), str(protocol), seed]
    )


def judged_of(clips: Sequence[LabelledClip], rows: Sequence[Row]) -> list[Judged]:
    """The scored clips with their numbers. Raises BadRequest if no clip of a label has a reward."""
    known = [
        Judged(clip=clip, values={name: row[name] for name in VALUES if row[name] is not None})
        for clip, row in zip(clips, rows, strict=True)
        if row["error"] is None
    ]
    for label in ("real", "generated"):
        if not any(item.clip.label == label for item in known):
            error = next(row["error"] for row in rows if row["set"] == label)
            raise BadRequest(f"none of the {label} clips could be scored; the first one because: {error}")
    return known


# --- report -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ValidityFigures:
    """All figures of one validity report."""

    discriminations: Sequence[Discrimination]
    agreements: Sequence[validity.Agreement]
    pairs: Sequence[validity.PairShare]
    amounts: Sequence[validity.AmountCorrelation]
    one_source: Mapping[str, str]  # by label, if all its clips come from one source

    def as_json(self) -> dict[str, Any]:
        return {
            "auc": [row.as_json() for row in self.discriminations],
            "human": [asdict(row) for row in self.agreements],
            "pairs": [row.as_json() for row in self.pairs],
            "amount": [asdict(row) for row in self.amounts],
            "one_source": dict(self.one_source),
        }

    def tables(self) -> list[Table]:
        found = [_auc_table(self.discriminations), _generator_table(self.discriminations), _amount_table(self.amounts)]
        found += [_agreement_table(self.agreements)] if self.agreements else []
        return found + ([_pair_table(self.pairs)] if self.pairs else [])

    def notes(self) -> list[str]:
        return [
            f"all {label} clips come from one source, {source}: their part of the intervals is over clips, and says "
            "nothing about other sources"
            for label, source in self.one_source.items()
        ]


def figures_of(labelled: LabelledSet, judged: Sequence[Judged], *, balance: bool, seed: int) -> ValidityFigures:
    sources = {label: {i.clip.source for i in judged if i.clip.label == label} for label in ("real", "generated")}
    return ValidityFigures(
        discriminations=validity.discriminations(judged, balance=balance, seed=seed),
        agreements=validity.agreements(judged, labelled.ratings),
        pairs=validity.pair_shares(judged, labelled.pairs),
        amounts=validity.amount_correlations(judged),
        one_source={label: next(iter(found)) for label, found in sources.items() if len(found) == 1},
    )


def _auc_table(rows: Sequence[Discrimination]) -> Table:
    title = "AUC: probability that a random real clip lies above a random generated one (95 % over sources)"
    columns = ("all", "equal rate", "strata")
    table = report.figure_table(title, ("by",), columns)
    for value in VALUES:
        cells = [_auc_cell(row) for row in rows if (row.value, row.generator) == (value, EVERY)]
        table.add_row(value.replace("_", " "), *cells, end_section=value == REWARDS[-1])
    table.caption = "strata: equal rate, and the same third of amount and of sharpness; below the line: the floors"
    return table


def _generator_table(rows: Sequence[Discrimination]) -> Table:
    table = report.figure_table(
        "AUC of the combined reward by generator",
        ("generator",),
        ("clips", "sources", "all", "equal rate"),
    )
    table.columns[0].no_wrap = False  # some names are long, and the figures must be read
    mine = [row for row in rows if row.value == REWARDS[0] and row.generator != EVERY]
    for name in dict.fromkeys(row.generator for row in mine):
        of_name = [row for row in mine if row.generator == name]
        counts = str(of_name[0].num_generated), str(of_name[0].num_sources[1])
        table.add_row(name, *counts, _auc_cell(of_name[0]), report.number(of_name[1].found.auc))
    table.caption = "with one source of generated clips, they are resampled by clip"
    return table


def _auc_cell(row: Discrimination) -> str:
    interval = f" ({report.interval(row.found.interval)})" if row.found.interval else ""
    return report.number(row.found.auc) + interval


def _agreement_table(rows: Sequence[validity.Agreement]) -> Table:
    columns = ("clips", "plain", "given amount", "within generator")
    table = report.figure_table("Spearman correlation with people's ratings", ("rated clips", "by"), columns)
    for row in rows:
        numbers = (row.plain, row.given_amount, row.within_generator)
        table.add_row(row.label, row.value.replace("_", " "), str(row.num), *map(report.number, numbers))
    return table


def _pair_table(rows: Sequence[validity.PairShare]) -> Table:
    kinds = list(dict.fromkeys(row.moves for row in rows))
    title = "Judged pairs ordered right, in per cent (number of pairs), by how the better clip moves"
    table = report.figure_table(title, ("by",), kinds)
    for value in VALUES:
        shares = [row.share for row in rows if row.value == value]
        table.add_row(value.replace("_", " "), *(f"{report.percent(share)} ({share.pairs})" for share in shares))
    return table


def _amount_table(rows: Sequence[validity.AmountCorrelation]) -> Table:
    table = report.figure_table(
        "Spearman correlation of the reward with the amount of motion, in clips that move",
        ("clips", "reward"),
        ("clips", "rho"),
    )
    for row in rows:
        table.add_row(row.label, row.value.replace("_", "-"), str(row.num), report.number(row.rho))
    return table
