"""Computes the strip under a clip: its windows and the residual over time, as numbers for an SVG of 1000 x 100.

Time goes from 0 to the clip's end over the whole width. The page stretches the strip to its own width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.types import Reward
from reward_server.report.stills import Still

WIDTH, HEIGHT, MARGIN = 1000.0, 100.0, 6.0


@dataclass(frozen=True, kw_only=True)
class Band:
    """One window of the strip. `points` is its residual as an SVG polyline."""

    x: float
    width: float
    points: str
    worst: bool


@dataclass(frozen=True, kw_only=True)
class Strip:
    """The strip of one clip: its windows, the places of the stills, the clip's end and the highest residual."""

    bands: tuple[Band, ...]
    stills: tuple[float, ...]
    duration_s: float
    top: float


def strip(reward: Reward, worst: int, stills: Sequence[Still]) -> Strip:
    """The strip of an explained reward whose lowest window is `worst`."""
    assert reward.explanation, "only an explained reward has curves"
    windows = reward.explanation.windows
    end_s = max(reward.provenance.source.duration_s, *(window.times_s[-1] for window in windows), 1e-3)
    top = max((value for window in windows for value in window.residual_curve), default=0.0)

    def x(time_s: float) -> float:
        return round(WIDTH * time_s / end_s, 1)

    def y(value: float) -> float:
        return round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / (top or 1.0), 1)

    bands = []
    for number, window in enumerate(windows):
        middles = [(a + b) / 2 for a, b in zip(window.times_s, window.times_s[1:], strict=False)]
        points = " ".join(f"{x(t)},{y(value)}" for t, value in zip(middles, window.residual_curve, strict=True))
        left, right = x(window.times_s[0]), x(window.times_s[-1])
        bands.append(Band(x=left, width=round(right - left, 1), points=points, worst=number == worst))
    bands.sort(key=lambda band: band.worst)  # where windows overlap, the lowest is on top
    return Strip(bands=tuple(bands), stills=tuple(x(still.time_s) for still in stills), duration_s=end_s, top=top)
