"""How `sanity`, `evaluate` and `bench` hand over their figures: cells of tables, CSV, JSON, one last line.

None is an absent figure: an empty cell, a JSON null, a dash in a table; it never becomes a number.
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
    """Where to write what, beside the standard output; None: not wanted."""

    json: Path | None = None
    csv: Path | None = None
    plots: Path | None = None  # a folder


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Indented, for people and programs; nothing where no path is given. NaN is refused, not written."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path | None, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """One line per row, absent values empty; nothing where no path is given."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def print_last_line(console: Console, document: Mapping[str, Any]) -> None:
    """The figures as one JSON line, unwrapped and unstyled, for programs that read the end of the output."""
    console.file.write(json.dumps(document, allow_nan=False) + "\n")
    console.file.flush()


def progress_bar() -> Progress:
    """A bar on the standard error, so that the output stays readable by programs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)


def figure_table(title: str, labels: Sequence[str], figures: Sequence[str]) -> Table:
    """An empty table of label columns, which never wrap, and right-aligned figures; it fits 80 columns if they do."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left", caption_justify="left")
    for name in labels:
        table.add_column(name, no_wrap=True)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def number(value: float | None, digits: int = 2) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def percent(share: Share) -> str:
    """Without the sign: the column says that it holds per cent."""
    return ABSENT if share.fraction is None else f"{100 * share.fraction:.0f}"


def interval(value: Interval | None, digits: int = 2) -> str:
    return ABSENT if value is None else f"{value.low:.{digits}f}..{value.high:.{digits}f}"


def share_json(share: Share) -> dict[str, Any]:
    return {**asdict(share), "fraction": share.fraction}


def interval_json(value: Interval | None) -> list[float] | None:
    return None if value is None else [value.low, value.high]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How one reward ordered one fault, or a set of them."""

    reward_name: str
    name: str
    by_strength: tuple[Share, ...]  # in the order of STRENGTHS
    total: Share
    interval: Interval | None  # of the total share, resampled by clip, 95%
    falling: float | None  # mean over ladders and faults, see stats.falling

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
