"""Asks whether the reward depends on how much, or in which way, a clip moves.

The *curve* is the reward of clips in bands of the amount of motion, for each set of clips. The *kinds* are real clips
sorted by what moves in them: a reward must not be unfair to slow motion, to faces that hardly move, or to still scenes
before a moving camera. Amounts do not tell a face from anything else that hardly moves, so an index may name kinds of
its own, which get a table as well. Amounts are those of `Dynamics`, in frame heights per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table
from scipy import stats

from reward_server.evaluation import report
from reward_server.stats import Floats

BANDS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # frame heights per second: the borders between bands of total motion
STILL, BARELY, CAMERA, SLOW, MOVING = "nothing moves", "hardly moves", "camera only", "slow", "moves"
KINDS = (STILL, BARELY, CAMERA, SLOW, MOVING)
FAIR_PERCENTILE = 25  # the least median percentile of a kind of real clips, except of those in which nothing moves
SLOW_UNDER = 0.2  # total motion, frame heights per second
OBJECTS_AT_LEAST = 0.4  # object motion over total motion; below it, the camera explains nearly all


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A scored clip: which set it belongs to, its combined reward, and how it moves (`Dynamics`)."""

    group: str  # "real", "generated", or the name of a fault
    reward: float
    total: float
    objects: float
    named: str = ""  # the kind that the index of a labelled set names, if any


@dataclass(frozen=True, kw_only=True)
class Band:
    """The rewards of a group's clips whose total motion is in `low`..`high`; None for a quartile of no clips."""

    group: str
    low: float
    high: float | None
    num: int
    lower: float | None
    median: float | None
    upper: float | None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Real clips of one kind: their median reward, and its percentile among all real clips, 0..100."""

    kind: str
    num: int
    median: float | None
    percentile: float | None

    @property
    def fair(self) -> bool:
        """Whether the percentile is at least FAIR_PERCENTILE, or does not count."""
        return self.kind == STILL or self.percentile is None or self.percentile >= FAIR_PERCENTILE


def moved_of(rows: Iterable[Mapping[str, Any]], group: str) -> list[Moved]:
    """The clips among the rows of a report that have a reward and dynamics. `group` names the column of the group."""
    return [
        Moved(
            group=row[group],
            reward=row["combined"],
            total=row["total_motion"],
            objects=row["object_motion"],
            named=row.get("kind", ""),
        )
        for row in rows
        if row.get("combined") is not None and row.get("total_motion") is not None
    ]


def kind_of(clip: Moved) -> str:
    """One of KINDS. Nothing moves below the first of BANDS, and hardly anything below the second."""
    if clip.total < BANDS[0]:
        return STILL
    if clip.total < BANDS[1]:
        return BARELY
    if clip.objects < OBJECTS_AT_LEAST * clip.total:
        return CAMERA
    return SLOW if clip.total < SLOW_UNDER else MOVING


def kinds(real: Sequence[Moved]) -> list[Kind]:
    """The kinds of real clips, in the order of KINDS."""
    return [_kind(kind, [clip for clip in real if kind_of(clip) == kind], real) for kind in KINDS]


def named_kinds(real: Sequence[Moved]) -> list[Kind]:
    """The kinds that the index names, in the order of their names."""
    names = sorted({clip.named for clip in real} - {""})
    return [_kind(name, [clip for clip in real if clip.named == name], real) for name in names]


def _kind(kind: str, mine: Sequence[Moved], real: Sequence[Moved]) -> Kind:
    median = float(np.median([clip.reward for clip in mine])) if mine else None
    among = [clip.reward for clip in real]
    percentile = float(stats.percentileofscore(among, median, "mean")) if median is not None else None
    return Kind(kind=kind, num=len(mine), median=median, percentile=percentile)


def curve(clips: Sequence[Moved]) -> list[Band]:
    """The quartiles of the reward by band of total motion, for each group in the order of its first clip."""
    return [
        _band(group, low, high, [clip for clip in clips if clip.group == group and _within(clip.total, low, high)])
        for group in dict.fromkeys(clip.group for clip in clips)
        for low, high in zip((0.0, *BANDS), (*BANDS, None), strict=True)
    ]


def _within(total: float, low: float, high: float | None) -> bool:
    return low <= total and (high is None or total < high)


def _band(group: str, low: float, high: float | None, clips: Sequence[Moved]) -> Band:
    rewards: Floats = np.array([clip.reward for clip in clips])
    lower, median, upper = np.quantile(rewards, [0.25, 0.5, 0.75]).tolist() if clips else (None, None, None)
    return Band(group=group, low=low, high=high, num=len(clips), lower=lower, median=median, upper=upper)


# --- report -------------------------------------------------------------------------------------


def as_json(clips: Sequence[Moved]) -> dict[str, Any]:
    real = [clip for clip in clips if clip.group == "real"]
    return {
        "kinds": [asdict(row) for row in kinds(real)],
        "named_kinds": [asdict(row) for row in named_kinds(real)],
        "curve": [asdict(row) for row in curve(clips)],
    }


def tables(clips: Sequence[Moved]) -> list[Table]:
    """The table of kinds, that of named kinds if there are any, then that of the curve."""
    real = [clip for clip in clips if clip.group == "real"]
    named = named_kinds(real)
    told = [_kind_table("Real clips by the kind that the index names", named)] if named else []
    return [_amount_kind_table(kinds(real)), *told, _curve_table(curve(clips))]


def _amount_kind_table(rows: Sequence[Kind]) -> Table:
    table = _kind_table("Real clips by what moves in them", rows)
    table.caption = (
        f"frame heights per second: nothing moves < {BANDS[0]:g}, hardly < {BANDS[1]:g}; camera only: object motion "
        f"< {OBJECTS_AT_LEAST:g} of the total; slow < {SLOW_UNDER:g}"
    )
    return table


def _kind_table(title: str, rows: Sequence[Kind]) -> Table:
    table = report.figure_table(title, ("kind",), ("clips", "median reward", "its percentile"))
    for row in rows:
        mark = "" if row.fair else f" (under {FAIR_PERCENTILE})"
        percentile = report.ABSENT if row.percentile is None else f"{row.percentile:.0f}{mark}"
        table.add_row(row.kind, str(row.num), report.number(row.median), percentile)
    return table


def _curve_table(rows: Sequence[Band]) -> Table:
    groups = list(dict.fromkeys(row.group for row in rows))
    table = report.figure_table("Median combined reward by total motion (number of clips)", ("total motion",), groups)
    bands = list(dict.fromkeys((row.low, row.high) for row in rows))
    for low, high in bands:
        cells = [_cell(row) for row in rows if (row.low, row.high) == (low, high)]
        table.add_row(f"{low:g} and more" if high is None else f"{low:g} to {high:g}", *cells)
    table.caption = "total motion in frame heights per second"
    return table


def _cell(row: Band) -> str:
    return f"{report.number(row.median)} ({row.num})"
