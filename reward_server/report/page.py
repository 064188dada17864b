"""Renders a report as one HTML file without scripts and without any reference to another file.

Everything that comes from a clip (its name, its errors, its codec) is data and is escaped: by Jinja's autoescape, and
before that by `shown`, which writes control characters, line breaks and bidirectional marks as escapes. A policy in
the page forbids everything but its own style and the pictures inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from protos.types import Model
from reward_server.replacing import replacing
from reward_server.report import reading
from reward_server.report.cards import NO_PICTURES, card, gauges
from reward_server.report.clips import Entry, Tone
from reward_server.report.tables import views

SHOWN_DOTS = 1000  # clips on the scale


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One count of the summary."""

    count: int
    label: str
    tone: Tone = "plain"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The axis on which all clips are shown, and the threshold on it (None if there is none).

    `percentiles`: it is that of the percentile of `combined`.
    """

    low: float
    high: float
    label: str
    threshold: float | None = None
    percentiles: bool = False

    @classmethod
    def around(cls, values: Sequence[float], *, label: str, threshold: float | None = None) -> Scale:
        """An axis with a little room around the values (at least one) and the threshold."""
        known = [*values, *([] if threshold is None else [threshold])]
        low, high = min(known), max(known)
        room = max(0.05 * (high - low), 0.1)
        return cls(low=round(low - room, 1), high=round(high + room, 1), label=label, threshold=threshold)

    def place(self, value: float) -> float:
        """Where a value is, in per cent of the axis."""
        span = self.high - self.low
        return round(100 * min(max((value - self.low) / span if span > 0 else 0.5, 0.0), 1.0), 2)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A picture of the figures as a data URI, and what it shows."""

    uri: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a report holds.

    command     the command that wrote it
    headline    the result in one sentence, coloured by `tone`
    lead        sentences on how it came about
    tiles       counts
    scale       the axis of all clips, on which `values` are their places; None for no axis
    entries     the clips, the worst first (`WorstFirst.entries`)
    values      of each entry the value on the axis; None without one
    order       what "the worst" means here, in words
    tables      figures, as printed
    plots       pictures of them
    """

    command: str
    headline: str
    tone: Tone
    lead: Sequence[str]
    tiles: Sequence[Tile]
    entries: Sequence[Entry]
    values: Sequence[float | None]
    order: str
    model: Model
    where: str
    scale: Scale | None = None
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()


def shown(text: str) -> str:
    """Text in one line: what cannot be printed (line breaks, controls, marks of direction) is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def render(page: Page) -> str:
    """The page as HTML. Frames of explained clips are read and drawn now."""
    scored = [entry for entry in page.entries if entry.outcome.reward]
    drawn = [card(number, entry, page.model) for number, entry in enumerate(scored, 1) if entry.explained]
    rows = [
        (number, entry, gauges(entry.outcome.reward), value)
        for number, (entry, value) in enumerate(zip(page.entries, page.values, strict=True), 1)
        if entry.outcome.reward
    ]
    environment = Environment(
        loader=PackageLoader("reward_server.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    style = Markup(environment.get_template("report.css").render())
    return environment.get_template("report.html").render(
        page=page,
        style=style,
        cards=drawn,
        rows=rows,
        dots=_thinned(rows),
        unscored=[entry for entry in page.entries if not entry.outcome.reward],
        tables=views(page.tables),
        never=reading.NEVER,
        no_pictures=NO_PICTURES,
        version=metadata.version("motion-reward"),
    )


def write_page(path: Path, page: Page) -> None:
    """Write the page; a file that is there is replaced as a whole. Raises OSError."""
    with replacing(path) as partial:
        partial.write_text(render(page), encoding="utf-8")


def _thinned(rows: Sequence[tuple[int, Entry, object, float | None]]) -> list[tuple[int, Entry, float]]:
    """At most SHOWN_DOTS clips for the scale, evenly chosen from the order."""
    known = [(number, entry, value) for number, entry, _, value in rows if value is not None]
    return known[:: -(-len(known) // SHOWN_DOTS)] if known else []
