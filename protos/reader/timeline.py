"""Packets of a video track -> the time of every frame that should be shown, and where time breaks.

Pure functions of what a container says; nothing is decoded here. Ticks are in units of the track's time base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]

GAP_S = 1.0  # a longer gap, of over GAP_INTERVALS frames, ends a stretch: nobody knows what happened in it
GAP_INTERVALS = 8
REORDERED = 17  # frames that a presentation time may lie behind the one before, where no decoding time is told


@dataclass(kw_only=True)
class PacketTable:
    """A row per packet, in decoding order. `pts` and `dts` are None where the container tells none."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)  # not cut away by an edit list, no hidden reference
    num_bytes: int = 0

    def __len__(self) -> int:
        return len(self.pts)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """`ticks` [T], rising, are of the frames to show; `breaks` the positions among them where a stretch begins.

    Per packet: `packet_ticks`, and `offsets`, which are added to the container's own ticks so that a track whose
    clock starts again goes on instead. `undecodable` packets come before the first key frame, `repeated` share a tick.
    """

    ticks: Ticks
    breaks: tuple[int, ...]
    packet_ticks: Ticks
    offsets: Ticks
    undecodable: int
    repeated: int


def slowed(table: PacketTable, quickest: int, slow: int) -> tuple[Ticks, int]:
    """Ticks to add to each packet so that one that asks for `quickest` or less is shown for `slow`; and how many ask.

    Browsers do so with animated pictures, and their authors count on it.
    """
    asked = np.array(table.durations, np.int64)
    more = np.where(asked <= quickest, slow - asked, 0)
    return np.concatenate(([0], np.cumsum(more)[:-1])), int((asked <= quickest).sum())


def timeline(table: PacketTable, unit_s: float, shift: Ticks | None = None) -> Timeline:
    """What the packets promise, each moved by `shift`. A clock that runs back starts a stretch that follows on the
    last frame."""
    raw, clock = _filled(table.pts, table.dts, table.durations), _filled(table.dts, table.pts, table.durations)
    own_clock = np.array([dts is not None for dts in table.dts], dtype=bool)
    starts = _restarts(clock, own_clock)
    interval = _interval(clock)
    offsets = np.zeros(len(table), np.int64) if shift is None else shift.copy()
    for start, stop in zip(starts[1:], [*starts[2:], len(table)], strict=False):
        before = (raw + offsets)[:start].max()
        offsets[start:stop] += before + interval - (raw + offsets)[start:stop].min()
    ticks = raw + offsets
    decodable = _decodable(table.keys, ticks, starts)
    kept = np.sort(ticks[decodable & np.array(table.shown, dtype=bool)])
    unique = np.unique(kept)
    edges = {int(np.searchsorted(unique, ticks[start:].min())) for start in starts[1:]}
    gaps = np.diff(unique)
    edges |= {int(at) + 1 for at in np.flatnonzero((gaps * unit_s > GAP_S) & (gaps > GAP_INTERVALS * interval))}
    return Timeline(
        ticks=unique,
        breaks=tuple(sorted(edge for edge in edges if 0 < edge < unique.size)),
        packet_ticks=ticks,
        offsets=offsets,
        undecodable=int((~decodable).sum()),
        repeated=kept.size - unique.size,
    )


def _filled(ticks: Sequence[int | None], others: Sequence[int | None], durations: Sequence[int]) -> Ticks:
    """Every packet's tick; where neither list tells one, it follows on the packet before."""
    filled: list[int] = []
    for tick, other, duration in zip(ticks, others, durations, strict=True):
        known = tick if tick is not None else other
        before = filled[-1] + max(1, duration) if filled else 0
        filled.append(before if known is None else known)
    return np.array(filled, np.int64)


def _interval(clock: Ticks) -> int:
    """Typical ticks between packets, at least 1."""
    steps = np.diff(clock)
    steps = steps[steps > 0]
    return max(1, int(np.median(steps))) if steps.size else 1


def _restarts(clock: Ticks, own_clock: NDArray[np.bool_]) -> list[int]:
    """Packets at which the clock has run back: 0 and, say, the first packet of a second recording in one file."""
    interval, steps = _interval(clock), np.diff(clock)
    reach = np.where(own_clock[1:] & own_clock[:-1], 3, REORDERED) * interval
    return [0, *(int(at) + 1 for at in np.flatnonzero(steps < -reach))]


def _decodable(keys: Sequence[bool], ticks: Ticks, starts: Sequence[int]) -> NDArray[np.bool_]:
    """Not those that no player shows: before a start's first key frame, in decoding order or in time."""
    found = np.zeros(ticks.size, dtype=bool)
    for start, stop in zip(starts, [*starts[1:], ticks.size], strict=True):
        first = next((at for at in range(start, stop) if keys[at]), start)
        found[first:stop] = ticks[first:stop] >= ticks[first]
    return found
