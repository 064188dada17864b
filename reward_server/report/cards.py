"""Makes the cards of a report: of each of the worst clips its numbers, its frames, its windows and its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protos.explanation import WindowPercentiles
from protos.reader.errors import ReaderError
from protos.types import DISCRIMINATORS, Model, Reward
from reward_server.errors import InvalidClip
from reward_server.report import reading
from reward_server.report.chart import Strip, strip
from reward_server.report.clips import Entry
from reward_server.report.stills import Still, worst_window

NO_PICTURES = "the server sent no explanation, it is older than this command"


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """One reward with its percentile among real clips, 0..100; None if it has none."""

    name: str
    value: str
    percentile: float | None


@dataclass(frozen=True, kw_only=True)
class WindowRow:
    """One window: its times in seconds, its two logits, their percentiles among real clips of one window (None without
    one), and whether it is the lowest of several."""

    start_s: float
    end_s: float
    instantaneous: float
    long_term: float
    percentiles: WindowPercentiles
    worst: bool


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the page shows of one clip that has a reward. `undrawn` says why there are no frames; empty if there are."""

    number: int
    entry: Entry
    gauges: tuple[Gauge, ...]
    windows: tuple[WindowRow, ...]
    stills: tuple[Still, ...]
    strip: Strip | None
    undrawn: str
    meaning: tuple[str, ...]
    limits: tuple[str, ...]
    about: str


def card(number: int, entry: Entry, model: Model) -> Card:
    """The card of an entry with a reward. Its frames are read and drawn now; what fails is said on the card."""
    reward = entry.outcome.reward
    assert reward, "only a scored clip has a card"
    worst = worst_window(reward, model.weights) if reward.windows else 0
    stills, undrawn = _stills(entry, reward, worst)
    return Card(
        number=number,
        entry=entry,
        gauges=gauges(reward),
        windows=_rows(reward, worst),
        stills=tuple(stills),
        strip=strip(reward, worst, stills) if reward.explanation else None,
        undrawn=undrawn,
        meaning=tuple(reading.meaning(reward)),
        limits=tuple(reading.limits(reward, model.input.window_frames)),
        about=_about(reward),
    )


def gauges(reward: Reward) -> tuple[Gauge, ...]:
    """Combined with its standard error, and the two logits before clipping."""
    standing, error = reward.standing, reward.standard_error
    combined = f"{reward.combined:.2f}" + (f" ±{error.combined:.2f}" if error else "")
    values: dict[str, str] = {"combined": combined}
    values |= {name: f"{getattr(reward.logits, name):.2f}" for name in DISCRIMINATORS}
    return tuple(
        Gauge(
            name=name.replace("_", "-"),
            value=value,
            percentile=getattr(standing, f"{name}_percentile") if standing else None,
        )
        for name, value in values.items()
    )


def _stills(entry: Entry, reward: Reward, worst: int) -> tuple[Sequence[Still], str]:
    if reward.explanation is None or not reward.explanation.windows:
        return (), NO_PICTURES
    if entry.draw is None:
        return (), "the clip's frames are not at hand"
    try:
        return entry.draw(reward, worst), ""
    except (InvalidClip, ReaderError, OSError) as error:
        return (), str(error)


def _rows(reward: Reward, worst: int) -> tuple[WindowRow, ...]:
    length_s = (reward.provenance.frames_used - 1) / reward.provenance.fps_used
    explained = reward.explanation.windows if reward.explanation else ()
    percentiles = [window.percentiles or WindowPercentiles() for window in explained]
    percentiles = percentiles or [WindowPercentiles() for _ in reward.windows]
    return tuple(
        WindowRow(
            start_s=window.start_s,
            end_s=window.start_s + length_s,
            instantaneous=window.logits.instantaneous,
            long_term=window.logits.long_term,
            percentiles=percentiles[number],
            worst=number == worst and len(reward.windows) > 1,
        )
        for number, window in enumerate(reward.windows)
    )


def _about(reward: Reward) -> str:
    source, dynamics = reward.provenance.source, reward.dynamics
    told = f"{source.width_px}×{source.height_px}, {source.duration_s:.1f} s, {source.fps:g} fps, {source.codec}"
    return told if dynamics is None else f"{told}; motion {dynamics.total_motion:.2f} frame heights per second"
