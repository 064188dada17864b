"""Computes from a track's packets the times of the frames to show, and the positions where time jumps.

These are pure functions of what the container says; nothing is decoded. Ticks are in units of the track's time base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]

GAP_S = 1.0  # a gap ends a stretch if it is longer than this and than GAP_INTERVALS frames: its motion is unknown
GAP_INTERVALS = 8
REORDERED = 17  # frames by which a presentation time can precede the previous one, if there is no decoding time


@dataclass(kw_only=True)
class PacketTable:
    """One row per packet, in decoding order. `pts` and `dts` are None if the container does not give them."""

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)  # False if an edit list cuts it off or it is a hidden reference

    def __len__(self) -> int:
        return len(self.pts)

    def first_packets(self, num: int) -> PacketTable:
        """The same table, ended after `num` packets."""
        rows = (self.pts[:num], self.dts[:num], self.durations[:num], self.keys[:num], self.shown[:num])
        pts, dts, durations, keys, shown = rows
        return replace(self, pts=pts, dts=dts, durations=durations, keys=keys, shown=shown)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The times of a track's frames.

    `ticks` [T] are the times of the frames to show, rising. `breaks` are the positions in it where a stretch begins.
    `packet_ticks` are the times of all packets. `offsets`, one per packet, were added to the container's own ticks,
    so that time continues where a track's clock restarts. `undecodable` counts the packets before the first key
    frame, `repeated` the frames that share a tick with another.
    """

    ticks: Ticks
    breaks: tuple[int, ...]
    packet_ticks: Ticks
    offsets: Ticks
    undecodable: int
    repeated: int

    @property
    def in_decoding_order(self) -> bool:
        """Whether no packet is shown before an earlier one: then no frame moves, or the times are decoding times."""
        return bool((np.diff(self.packet_ticks) >= 0).all())

    def first_frames(self, num: int) -> Timeline:
        """The same line, ended after `num` frames. All its packets stay."""
        return replace(self, ticks=self.ticks[:num], breaks=tuple(edge for edge in self.breaks if edge < num))


def timeline(table: PacketTable, unit_s: float, shift: Ticks | None = None) -> Timeline:
    """The times of the frames to show, with `shift` added to each packet's ticks.

    If the clock runs back, a new stretch begins, and its times continue after the frame before.
    """
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
    """Every packet's tick. If neither list has one, it is the previous packet's tick plus its duration."""
    filled: list[int] = []
    for tick, other, duration in zip(ticks, others, durations, strict=True):
        known = tick if tick is not None else other
        before = filled[-1] + max(1, duration) if filled else 0
        filled.append(before if known is None else known)
    return np.array(filled, np.int64)


def _interval(clock: Ticks) -> int:
    """The median number of ticks between packets, at least 1."""
    steps = np.diff(clock)
    steps = steps[steps > 0]
    return max(1, int(np.median(steps))) if steps.size else 1


def _restarts(clock: Ticks, own_clock: NDArray[np.bool_]) -> list[int]:
    """Position 0 and the packets at which the clock runs back, such as the start of a second recording in one file."""
    interval, steps = _interval(clock), np.diff(clock)
    reach = np.where(own_clock[1:] & own_clock[:-1], 3, REORDERED) * interval
    return [0, *(int(at) + 1 for at in np.flatnonzero(steps < -reach))]


def _decodable(keys: Sequence[bool], ticks: Ticks, starts: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each packet can be decoded: it is not before its part's first key frame, in the file or in time."""
    found = np.zeros(ticks.size, dtype=bool)
    for start, stop in zip(starts, [*starts[1:], ticks.size], strict=True):
        first = next((at for at in range(start, stop) if keys[at]), start)
        found[first:stop] = ticks[first:stop] >= ticks[first]
    return found
