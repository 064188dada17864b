"""Draws lines over steps as SVG text. Colours and fonts come from the page's style (page.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 26
NUM_TICKS = 5
DOTS_UP_TO = 80  # points of a line that are drawn as dots too, with their values to read off
MAX_POINTS = 600  # a longer line is thinned, because nobody sees more on this width


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named line. Its points (step, value) are finite and in the order of the steps."""

    name: str
    points: Sequence[tuple[float, float]]


def chart(title: str, lines: Sequence[Line]) -> str:
    """An SVG image of the lines. At least one of them has a point."""
    lines = [Line(name=line.name, points=thinned(line.points)) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    across, up = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    low, high = min(*up, *ys), max(*up, *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        above = (y - low) / ((high - low) or 1)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - above * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in up:
        _, at = place(min(xs), y)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in across:
        at, _ = place(x, low)
        if LEFT <= at <= WIDTH - RIGHT + 1:
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(x)}</text>')
    for index, line in enumerate(lines):
        parts.append(_drawn(line, index, [place(*point) for point in line.points]))
    return "".join([*parts, "</svg>"])


def _drawn(line: Line, index: int, places: Sequence[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    text = f'<path class="line c{index}" d="{path}"/>'
    if len(places) <= DOTS_UP_TO:
        text += "".join(
            f'<circle class="c{index}" cx="{x:.1f}" cy="{y:.1f}" r="2.5">'
            f"<title>{escape(line.name)}, step {number(point[0])}: {number(point[1])}</title></circle>"
            for (x, y), point in zip(places, line.points, strict=True)
        )
    return text


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most MAX_POINTS of the points, evenly chosen. The first and the last are among them."""
    if len(points) <= MAX_POINTS:
        return points
    return [points[round(at * (len(points) - 1) / (MAX_POINTS - 1))] for at in range(MAX_POINTS)]


def ticks(low: float, high: float) -> list[float]:
    """About NUM_TICKS round values that span `low` to `high`."""
    if low == high:
        return [low]
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [at * step for at in range(first, last + 1)]


def number(value: float) -> str:
    """A value in at most four digits."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")
