"""Writes the figures of the evaluation commands: tables, CSV and JSON files, and a last line of JSON.

None stands for an absent figure. It is an empty cell in CSV, null in JSON and a dash in a table, never a number.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from reward_server.faults import STRENGTHS
from reward_server.stats import Interval, Share

ABSENT = "–"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files to write besides standard output; None means that one is not wanted."""

    json: Path | None = None
    csv: Path | None = None
    plots: Path | None = None  # a folder
    html: Path | None = None


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write indented JSON; do nothing if `path` is None. Raises ValueError for NaN and infinity."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path | None, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write one line per row, with absent values empty; do nothing if `path` is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def print_last_line(console: Console, document: Mapping[str, Any]) -> None:
    """Print the figures as one line of JSON, neither wrapped nor styled, for programs that read the last line."""
    console.file.write(json.dumps(document, allow_nan=False) + "\n")
    console.file.flush()


def progress_bar() -> Progress:
    """A progress bar on stderr, so that programs can read stdout."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def figure_table(title: str, labels: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table with columns of labels, which do not wrap, and of figures, aligned to the right."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    for name in labels:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def number(value: float | None, digits: int = 2) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def percent(share: Share) -> str:
    """A share in per cent, without the % sign, which stands in the column's title."""
    return ABSENT if share.fraction is None else f"{100 * share.fraction:.0f}"


def interval(value: Interval | None, digits: int = 2) -> str:
    return ABSENT if value is None else f"{value.low:.{digits}f}..{value.high:.{digits}f}"


def share_json(share: Share) -> dict[str, Any]:
    return {**asdict(share), "fraction": share.fraction}


def interval_json(value: Interval | None) -> list[float] | None:
    return None if value is None else [value.low, value.high]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How well one reward orders real clips above one fault, or above a set of faults."""

    reward_name: str
    name: str
    by_strength: tuple[Share, ...]  # in the order of STRENGTHS
    total: Share
    interval: Interval | None  # 95 % bootstrap interval of the total share, resampled by clip
    falling: float | None  # mean of stats.falling over ladders and faults

    def as_json(self) -> dict[str, Any]:
        shares = {str(s): share_json(share) for s, share in zip(STRENGTHS, self.by_strength, strict=True)}
        total = {**share_json(self.total), "interval": interval_json(self.interval)}
        return {
            "reward": self.reward_name,
            "name": self.name,
            "by_strength": shares,
            "total": total,
            "falling": self.falling,
        }
