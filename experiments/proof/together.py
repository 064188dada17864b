"""Combines Level 3 over its data seeds. The plan's claim holds if it holds on every seed.

D data seeds, S streams, N held-out first frames. It reads the results of `python -m experiments.proof motion`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.proof.motion import (
    SHOWN,
    DataMeasures,
    SetName,
    fresh_auc,
    motion_verdicts,
    read_data,
    samples_of,
    speed_distance,
)
from experiments.proof.plots import plot_seeds
from experiments.proof.report import plain, table_of, time_over_sft, verdict_lines
from experiments.proof.verdicts import Floats, Interval, Table, Verdict, difference, nested_interval
from trainer.errors import ConfigError

COLUMNS = ("speed_px", "acceleration_px", "look_error")
COMPARED = ("speed_px", "acceleration_px", "look_error", "flow_px")


@dataclass(frozen=True, kw_only=True)
class SeedRuns:
    """One data seed's arms on one fine-tuning set, the set, and the results computed from them."""

    seed: int
    records: Sequence[Mapping[str, Any]]
    data: DataMeasures
    table: Table
    samples: Mapping[str, Mapping[str, Floats]]  # from `samples_of`
    verdicts: Sequence[Verdict]


def read_seed(folder: Path, seed: int) -> SeedRuns:
    """Read the results in a level's folder. Raises ConfigError if nothing has run there."""
    paths = sorted((folder / "arms").glob("*.json"))
    if not paths:
        raise ConfigError(f"{folder} holds no arms; run `python -m experiments.proof motion --seed {seed}` first")
    records, data = [json.loads(path.read_text()) for path in paths], read_data(folder)
    table = table_of(records)
    found = motion_verdicts(table, float(np.mean(data.train["speed_px"])))
    return SeedRuns(seed=seed, records=records, data=data, table=table, samples=samples_of(records), verdicts=found)


def arms_of(runs: Sequence[SeedRuns]) -> list[str]:
    """The arms that have run on every seed."""
    return [arm for arm in SHOWN if all(arm in run.table for run in runs)]


def minus_sft(runs: Sequence[SeedRuns], arm: str, measure: str) -> list[Floats]:
    """The arm's measure minus that of sft, [S,N] for each seed."""
    return [difference(run.table, arm, "sft", measure) for run in runs]


def write_together(runs: Sequence[SeedRuns], name: SetName, folder: Path) -> dict[str, Any]:
    """Write NAME.txt and NAME.png to `folder`. Returns the summary."""
    arms = arms_of(runs)
    compared = {
        arm: {measure: nested_interval(minus_sft(runs, arm, measure)) for measure in COMPARED}
        for arm in arms
        if "sft" in arms and arm != "sft"
    }
    rows = {arm: _figures(runs, arm) for arm in arms}
    holds = all(verdict.holds for run in runs for verdict in run.verdicts)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_arm_lines(runs, rows), "", *_difference_lines(runs, compared), "", *_verdict_lines(runs)]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    plot_seeds({run.seed: run.table for run in runs}, _data_means(runs), arms, folder / f"{name}.png")
    return {
        "seeds": [run.seed for run in runs],
        "streams": {arm: _num_streams(runs, arm) for arm in arms},
        "arms": rows,
        "minus_sft": {
            arm: {measure: [round(x, 4) for x in (of.mean, of.low, of.high)] for measure, of in values.items()}
            for arm, values in compared.items()
        },
        "verdicts": {run.seed: {verdict.name: plain(verdict) for verdict in run.verdicts} for run in runs},
        "time_over_sft": [time_over_sft(run.records) for run in runs],
        "holds": holds,
    }


def _figures(runs: Sequence[SeedRuns], arm: str) -> dict[str, list[float]]:
    """An arm's means, distance from the data's speeds, and fresh AUC, with a value per seed."""
    found = {measure: [float(run.table[arm][measure].mean()) for run in runs] for measure in COLUMNS}
    samples = [run.samples[arm] for run in runs]
    speeds = [speed_distance(of["speed_px"], run.data.train["speed_px"]) for of, run in zip(samples, runs, strict=True)]
    found["wasserstein_px"] = [distance.mean for distance in speeds]
    found["fresh_auc"] = [fresh_auc(of, run.data.unseen) for of, run in zip(samples, runs, strict=True)]
    return {measure: [round(value, 4) for value in values] for measure, values in found.items()}


def _num_streams(runs: Sequence[SeedRuns], arm: str) -> list[int]:
    return [len(run.table[arm]["speed_px"]) for run in runs]


def _data_means(runs: Sequence[SeedRuns]) -> dict[int, dict[str, float]]:
    return {run.seed: {name: float(np.mean(run.data.train[name])) for name in COLUMNS} for run in runs}


def _arm_lines(runs: Sequence[SeedRuns], rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """A line per arm, with values in the order of the seeds."""
    data = {name: [means[name] for means in _data_means(runs).values()] for name in COLUMNS}
    names = next(iter(rows.values())).keys() if rows else COLUMNS
    lines = [
        f"of seeds {', '.join(str(run.seed) for run in runs)}",
        "arm".ljust(14) + "".join(f"{n:24}" for n in names),
    ]
    for arm, values in {"data": data, **rows}.items():
        cells = (", ".join(f"{value:.3f}" for value in values.get(name, ())) for name in names)
        streams = f"streams: {', '.join(map(str, _num_streams(runs, arm)))}" if arm in rows else ""
        lines.append(f"{arm:14}" + "".join(f"{cell:24}" for cell in cells) + streams)
    return lines


def _difference_lines(runs: Sequence[SeedRuns], compared: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    lines = ["minus sft's, seeds, streams and first frames resampled; by seed:"]
    for arm, values in compared.items():
        for measure, of in values.items():
            each = ", ".join(f"{values_SN.mean():+.3f}" for values_SN in minus_sft(runs, arm, measure))
            lines.append(f"  {arm:14}{measure:18}{of!s:28}{each}")
    return lines


def _verdict_lines(runs: Sequence[SeedRuns]) -> list[str]:
    return [line for run in runs for line in (f"seed {run.seed}", *verdict_lines(run.verdicts))]
