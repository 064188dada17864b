"""Fills the packet table and finds the packets to decode for the wanted frames. Used by containers.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import numpy as np

from protos.reader.timeline import PacketTable, Timeline

if TYPE_CHECKING:  # generic in its stub only
    Packet = av.Packet[av.VideoStream]

SUPERFRAME = 0b110  # top bits of a vp9 packet's last byte: it holds several frames, one of which is shown


@dataclass(frozen=True, kw_only=True)
class Group:
    """Packets `first`..`last` (exclusive) to decode, starting at a key frame."""

    first: int
    last: int


def add_packet(table: PacketTable, packet: Packet, codec: str) -> None:
    table.pts.append(packet.pts)
    table.dts.append(packet.dts)
    table.durations.append(packet.duration or 0)
    table.keys.append(packet.is_keyframe)
    table.shown.append(not packet.is_discard and not _is_hidden(packet, codec))


def _is_hidden(packet: Packet, codec: str) -> bool:
    """Whether a packet only updates a reference: show_frame is off (RFC 6386, 9.1; VP9 bitstream, 7.2)."""
    if codec == "vp8":
        return not memoryview(packet)[0] & 16
    if codec != "vp9" or memoryview(packet)[-1] >> 5 == SUPERFRAME:
        return False
    first = memoryview(packet)[0]
    return first & 0b00110000 != 0b00110000 and not first & 0b1000 and not first & 0b0010


def groups_of(table: PacketTable, line: Timeline, wanted: Sequence[int] | None) -> list[Group]:
    """The groups of packets that the wanted frames need, adjacent ones merged; one group of all packets for None."""
    everything = [Group(first=0, last=len(table))]
    if wanted is None:
        return everything
    keys = [at for at, key in enumerate(table.keys) if key]
    starts = np.array(keys if keys and keys[0] == 0 else [0, *keys])
    ticks = line.packet_ticks
    needed = np.zeros(starts.size, dtype=bool)
    at_tick = {int(tick): at for at, tick in reversed(list(enumerate(ticks)))}
    for index in wanted:
        packet = at_tick[int(line.ticks[index])]
        group = int(np.searchsorted(starts, packet, side="right")) - 1
        needed[group] = True
        while group and ticks[packet] < ticks[starts[group]]:  # shown before its key frame: needs the previous group
            group -= 1
            needed[group] = True
    return _runs(starts.tolist(), [*starts[1:].tolist(), len(table)], needed.tolist())


def _runs(starts: Sequence[int], ends: Sequence[int], needed: Sequence[bool]) -> list[Group]:
    """The needed groups, with adjacent ones merged."""
    runs: list[Group] = []
    for start, end, is_needed in zip(starts, ends, needed, strict=True):
        if is_needed and runs and runs[-1].last == start:
            runs[-1] = Group(first=runs[-1].first, last=end)
        elif is_needed:
            runs.append(Group(first=start, last=end))
    return runs
