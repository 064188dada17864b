"""Implements `motion-reward attack`: tries to raise the reward of real clips without mending their motion.

For each clip it scores a suite of degenerate copies (`degenerates.py`) and searches for cheap changes that raise the
reward (`search.py`). It reports how often the real clip stays above, for the rewards and for the two plain cues of
`floors.py`, and what the searches gained. It is the regression test of published discriminators.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from protos.json_codec import to_json
from reward_server.data.shots import find_shots
from reward_server.evaluation import plots, report
from reward_server.evaluation.attacked import (
    COMBINED,
    ROWS,
    STEPS_BESIDE_SEARCH,
    Attacked,
    attack,
)
from reward_server.evaluation.degenerates import DISGUISES, KINDS, PLAIN, REAL
from reward_server.evaluation.floors import VALUES
from reward_server.evaluation.kept import KeptResults
from reward_server.evaluation.scoring import open_scorer
from reward_server.evaluation.search import SEARCHES, Budget, load_cma
from reward_server.faults.still_clips import STILL
from reward_server.settings import Settings
from reward_server.stats import Floats, Interval, Share, mean_bootstrap, ordered

FINISHED = "clips.jsonl"  # of the folder `work`
BEST = "best"  # of both searches
LARGE_GAIN = 0.25
ALL = "all"
NO_PAIRS = Share(right=0, pairs=0)


@dataclass(frozen=True, kw_only=True)
class Resisted:
    """In how many clips the real clip has the higher value than its copy of one kind under one disguise.

    `plain` compares with the real clip itself, `same` with the real clip under the same disguise.
    """

    value: str
    kind: str
    disguise: str
    plain: Share
    same: Share

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "plain": report.share_json(self.plain), "same": report.share_json(self.same)}


@dataclass(frozen=True, kw_only=True)
class Gains:
    """What a search gained over all clips, in distances between a clip and its strong faults."""

    search: str
    mean: float | None
    interval: Interval | None
    most: float | None
    large: Share  # of clips with a gain above LARGE_GAIN

    def as_json(self) -> dict[str, Any]:
        large = {"right": self.large.right, "pairs": self.large.pairs, "fraction": self.large.fraction}
        return {**asdict(self), "interval": report.interval_json(self.interval), "large": large}


def run(
    paths: Sequence[str],
    settings: Settings,
    *,
    server: str | None = None,
    budget: Budget,
    work: Path | None = None,
    seed: int = 0,
    outputs: report.Outputs,
    console: Console | None = None,
) -> int:
    """Run the command: attack all clips, print the figures and write `outputs`. `work` keeps finished clips.

    Returns 1 if a clip does not decode, if a moving real clip has no reward, or if nothing moves in any clip, else 0.
    Raises BadRequest if a path names no clips, and NotReady if the package of the search is missing.
    """
    console = console or Console()
    shots = find_shots(paths)
    if budget.evaluations:
        load_cma()  # before the first clip is scored
    with open_scorer(settings, server) as scorer, report.progress_bar() as bar:
        steps = STEPS_BESIDE_SEARCH + len(SEARCHES) * budget.generations
        task = bar.add_task("attacks", total=len(shots) * steps)
        finished, results = KeptResults(work and work / FINISHED), list[Attacked]()
        step = partial(bar.advance, task)
        for shot in shots:
            results.append(attack(shot, scorer, settings, finished, budget=budget, seed=seed, step=step))
            bar.update(task, completed=len(results) * steps)
    figures, gains = resistance(results), search_gains(results)
    document = {
        "model": to_json(scorer.model),
        "scored_by": scorer.where,
        "seed": seed,
        "budget": asdict(budget),
        "clips": len(results),
        "left_out": left_out(results),
        "outcomes": dict(sum((Counter(result.outcomes) for result in results), Counter())),
        "gains": [row.as_json() for row in gains],
        "figures": [row.as_json() for row in figures],
    }
    _print(console, results, figures, gains)
    report.write_json(outputs.json, {**document, "results": [result.as_json() for result in results]})
    report.write_csv(outputs.csv, CSV_COLUMNS, [row for result in results for row in result_rows(result)])
    if outputs.plots is not None:
        plots.resistance(outputs.plots / "suite.png", *(_fractions(figures, same) for same in (False, True)))
        plots.gains(outputs.plots / "gains.png", _gain_columns(results), LARGE_GAIN)
    report.print_last_line(console, document)
    moving = [result for result in results if result.motion is not None and not result.is_still]
    return int(not moving or any(result.error for result in results) or any(math.isnan(r.real) for r in moving))


# --- figures ------------------------------------------------------------------------------------


def resistance(results: Sequence[Attacked]) -> list[Resisted]:
    """How often the real clip stays above, by value, kind and disguise. Clips without the values do not count.

    For the kind REAL, which is the real clip under a disguise, only `plain` has pairs, and none without a disguise.
    """
    values = _stack(results)
    real = values[:, 0]
    rows = []
    for v, value in enumerate(VALUES):
        for k, kind in enumerate(ROWS):
            for g, disguise in enumerate(DISGUISES):
                own = kind == REAL
                plain = NO_PAIRS if own and disguise == PLAIN else ordered(real[:, 0, v], values[:, k, g, v])
                same = NO_PAIRS if own else ordered(real[:, g, v], values[:, k, g, v])
                rows.append(Resisted(value=value, kind=kind, disguise=disguise, plain=plain, same=same))
    return rows


def search_gains(results: Sequence[Attacked]) -> list[Gains]:
    """The gains of each search, and of the better one of each clip."""
    return [_gains(name, gains[~np.isnan(gains)]) for name, gains in _gain_columns(results).items()]


def left_out(results: Sequence[Attacked]) -> dict[str, Any]:
    """The clips in which nothing moves, by name with their motion, and those that do not decode, with the reason."""
    return {
        "still": {result.clip: result.motion for result in results if result.is_still},
        "undecodable": {result.clip: result.error for result in results if result.error},
    }


def _gains(name: str, gains: Floats) -> Gains:
    return Gains(
        search=name,
        mean=float(gains.mean()) if gains.size else None,
        interval=mean_bootstrap(gains) if gains.size else None,
        most=float(gains.max()) if gains.size else None,
        large=Share(right=int((gains > LARGE_GAIN).sum()), pairs=gains.size),
    )


def _gain_columns(results: Sequence[Attacked]) -> dict[str, Floats]:
    """Gain of every clip by search, then of the better search; NaN where there is none."""
    by_search = {name: np.array([result.gain(name) for result in results], dtype=np.float64) for name in SEARCHES}
    return by_search | {BEST: np.fmax.reduce(list(by_search.values()))}


def _stack(results: Sequence[Attacked]) -> Floats:
    """Values [C,K,G,V] of all clips; those without are NaN."""
    return np.stack([result.values for result in results])


def _together(shares: Sequence[Share]) -> Share:
    return Share(right=sum(share.right for share in shares), pairs=sum(share.pairs for share in shares))


def _fractions(figures: Sequence[Resisted], same: bool) -> dict[str, dict[str, dict[str, float | None]]]:
    """Fractions by value, disguise and kind; without the kind REAL for `same`."""
    kinds = tuple(KINDS) if same else ROWS
    found: dict[str, dict[str, dict[str, float | None]]] = {
        value: {disguise: {} for disguise in DISGUISES} for value in VALUES
    }
    for row in figures:
        if row.kind in kinds:
            found[row.value][row.disguise][row.kind] = (row.same if same else row.plain).fraction
    return found


# --- reports ------------------------------------------------------------------------------------

CSV_COLUMNS = ("clip", "motion", "kind", "disguise", *VALUES)


def result_rows(result: Attacked) -> list[dict[str, object]]:
    """A line of the CSV per copy of the clip and per search (kind "search"), or one line if nothing was scored."""
    about: dict[str, object] = {"clip": result.clip, "motion": result.motion}
    if np.isnan(result.values).all():
        return [about]
    rows: list[dict[str, object]] = [
        {**about, "kind": kind, "disguise": disguise, **{name: _known(x) for name, x in zip(VALUES, v, strict=True)}}
        for kind, values_GV in zip(ROWS, result.values, strict=True)
        for disguise, v in zip(DISGUISES, values_GV, strict=True)
    ]
    found = [{**about, "kind": "search", "disguise": one.search, "combined": one.reward} for one in result.finds]
    return rows + found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _print(console: Console, results: Sequence[Attacked], figures: Sequence[Resisted], gains: Sequence[Gains]) -> None:
    console.print(
        suite_table(figures, "combined: % of clips with the real clip above", same=False),
        suite_table(figures, "the same, against the real clip under the same disguise", same=True),
        value_table(figures),
        gain_table(gains),
        sep="\n",
    )
    apart = left_out(results)
    if apart["still"]:
        names = ", ".join(f"{name} ({motion:.3f})" for name, motion in apart["still"].items())
        limit = f"motion below {STILL} frame heights per second"
        told = f"left out because nothing moves ({limit}): {len(apart['still'])} clips: {names}"
        console.print(told, markup=False)  # a shot's name has brackets
    if apart["undecodable"]:
        console.print(f"left out because they do not decode: {len(apart['undecodable'])} clips")
        console.print(*(f"  {name}: {error}" for name, error in apart["undecodable"].items()), sep="\n", markup=False)


def suite_table(figures: Sequence[Resisted], title: str, *, same: bool) -> Table:
    """A table of the combined reward's shares, by disguise and kind."""
    kinds = tuple(KINDS) if same else ROWS
    table = report.figure_table(title, ("disguise",), (*kinds, ALL))
    shares = {
        (row.disguise, row.kind): row.same if same else row.plain for row in figures if row.value == VALUES[COMBINED]
    }
    for disguise in DISGUISES:
        row = [shares[disguise, kind] for kind in kinds]
        both = _together([shares[disguise, kind] for kind in KINDS])
        table.add_row(disguise, *map(report.percent, row), report.percent(both))
    total = [_together([shares[disguise, kind] for disguise in DISGUISES]) for kind in kinds]
    table.add_section()
    table.add_row(ALL, *map(report.percent, total), report.percent(_together(total if same else total[1:])))
    table.caption = None if same else f"{REAL}: the real clip under the disguise; not part of 'all'"
    return table


def value_table(figures: Sequence[Resisted]) -> Table:
    """A table of all rewards and of the plain cues: shares over all disguises by kind."""
    title = "% of clips with the real clip above, over all disguises"
    table = report.figure_table(title, ("kind",), [name.replace("_", " ") for name in VALUES])
    for kind in (*KINDS, ALL):
        rows = [row for row in figures if row.kind != REAL and kind in (row.kind, ALL)]
        shares = [_together([row.plain for row in rows if row.value == value]) for value in VALUES]
        table.add_row(kind, *map(report.percent, shares))
    table.caption = "the last two columns are plain cues, not rewards: the baselines"
    return table


def gain_table(gains: Sequence[Gains]) -> Table:
    columns = ("clips", "mean", "95%", "most", f"% above {LARGE_GAIN}")
    table = report.figure_table("gain: (found - real) / (real - strong faults)", ("search",), columns)
    for row in gains:
        numbers = (report.number(row.mean), report.interval(row.interval), report.number(row.most))
        table.add_row(row.search, str(row.large.pairs), *numbers, report.percent(row.large))
    return table
