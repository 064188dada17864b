"""Holds what one pass over a file's packets says about its video tracks, before anything is decoded.

containers.py fills a Scan and decodes by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from protos.reader.errors import UnreadableClip
from protos.reader.quick import quick_frames, slowed
from protos.reader.reel import Times, Track
from protos.reader.timeline import PacketTable, Timeline, timeline
from protos.reader.truncation import ends_early, truncated, until_hole, without_last
from protos.types import ClipWarning

HALVES = ("mpeg", "mpegts")  # forms without an index, in which two packets can be the two fields of one frame
UNTIMED = ("avi",)  # forms that store no display times


class Lined(TypedDict):
    table: PacketTable
    line: Timeline
    quick: int


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The chosen track: its packets and the times of its frames, in ticks of `unit_s` seconds.

    `kind` is empty or that of an animated picture, as quick.py says; `quick` counts its frames that browsers show for
    longer. `declared_s` is the duration that the file declares. `cut`: the file ends or is damaged after the last
    packet of the table. `untimed`: the packets have decoding times only, so frames take these in the order in which
    they come out of the decoder.
    """

    form: str
    kind: str
    codec: str
    table: PacketTable
    line: Timeline
    unit_s: float
    tracks: tuple[Track, ...]
    declared_s: float | None
    quick: int
    cut: bool = False
    untimed: bool = False

    @property
    def times_s(self) -> Times:
        return self.line.ticks.astype(np.float64) * self.unit_s

    @property
    def num_frames(self) -> int:
        """How many frames the packets give, also those with the time of another, if each packet is a frame."""
        return self.line.ticks.size + self.line.repeated

    @property
    def halves(self) -> bool:
        return self.form in HALVES

    @property
    def end_s(self) -> float:
        """When the last frame is gone, in seconds after the first one was shown."""
        times_s = self.times_s
        if not times_s.size:
            return 0.0
        gap_s = float(np.median(np.diff(times_s))) if times_s.size > 1 else 0.0
        return float(times_s[-1] - times_s[0]) + gap_s

    @property
    def ends_early(self) -> bool:
        return ends_early(self.end_s, self.declared_s)

    def cut_after(self, num_packets: int) -> Scan:
        """The scan of the first packets only. Raises UnreadableClip if there is none."""
        if num_packets < 1:
            raise UnreadableClip(
                f"the {self.form} file is cut or damaged within its first frame, so nothing can be shown; upload "
                "the whole file"
            )
        found = lined(self.table.first_packets(num_packets), self.kind, self.unit_s)
        line = without_last(found["line"]) if self.untimed else until_hole(found["line"])
        return replace(self, table=found["table"], line=line, quick=found["quick"], cut=True)

    def in_decoder_order(self) -> Scan:
        """The same track, with its frames at the packets' times in the order in which they come out of the decoder."""
        return replace(self, untimed=True, line=without_last(self.line) if self.cut else self.line)

    def least_frames(self, *, damaged: bool) -> int:
        """The number of frames that must be decodable: all but one frame and 2 %, if some are damaged."""
        num = self.line.ticks.size
        return max(1, num - 1 - num // 50 if damaged and (self.untimed or not self.halves) else num // 2 - 1)

    def where(self, damaged_at: int | None) -> str:
        """Which track is damaged, and from what time on."""
        track = next(one.index for one in self.tracks if one.chosen)
        ticks = self.line.packet_ticks
        if damaged_at is None or not ticks.size:
            return f"track {track} is cut or damaged"
        from_s = float(ticks[min(damaged_at, ticks.size - 1)] - ticks.min()) * self.unit_s
        return f"track {track} is cut or damaged from {from_s:.2f} s on"

    def counted(self, times_s: Sequence[float]) -> Scan:
        """The scan with the frame times that decoding gave."""
        ticks = np.rint(np.array(times_s) / self.unit_s).astype(np.int64)
        if self.untimed:  # frames have no times of their own, so the track's times are spread over them
            ticks = self.line.ticks[np.rint(np.linspace(0, self.line.ticks.size - 1, ticks.size)).astype(int)]
        edges = [int(np.searchsorted(ticks, self.line.ticks[edge])) for edge in self.line.breaks]
        breaks = tuple(sorted({edge for edge in edges if 0 < edge < ticks.size}))
        return replace(self, line=replace(self.line, ticks=ticks, breaks=breaks))

    @property
    def warnings(self) -> tuple[ClipWarning, ...]:
        told: list[ClipWarning] = []
        if sum(one.frames > 1 for one in self.tracks) > 1:
            chosen = next(one for one in self.tracks if one.chosen)
            names = ", ".join(f"{one.index} ({one.codec}, {one.frames} packets)" for one in self.tracks)
            message = f"the file has {len(self.tracks)} video tracks: {names}; track {chosen.index} is read"
            told.append(ClipWarning(code="several_tracks", message=message))
        if self.line.repeated:
            share = self.line.repeated / (self.line.repeated + self.line.ticks.size)
            message = f"{share:.0%} of the frames have the same time as an earlier one; only the first of each is used"
            told.append(ClipWarning(code="repeated_times", message=message, share=share))
        told += quick_frames(self.quick, len(self.table), self.kind)
        if self.cut:
            told.append(truncated(self.end_s, self.declared_s))
        return tuple(told)


def lined(table: PacketTable, kind: str, unit_s: float) -> Lined:
    """The table, the times of its frames and, of an animated picture, how many are shown for longer than they ask."""
    shift, quick = slowed(table, unit_s) if kind else (None, 0)
    return Lined(table=table, line=timeline(table, unit_s, shift), quick=quick)


def moving(container: InputContainer) -> list[av.VideoStream]:
    """The video tracks without cover pictures."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams}) or ["none"]
        raise UnreadableClip(f"the file has no video stream, only {', '.join(kinds)}; send a video file")
    return streams


def tracks_of(streams: Sequence[av.VideoStream], tables: Sequence[PacketTable], chosen: int) -> tuple[Track, ...]:
    """The video tracks in the order that `track=` counts."""
    return tuple(
        Track(
            index=at,
            codec=codec_of(stream),
            frames=len(table),
            default=bool(stream.disposition & Disposition.default),
            chosen=at == chosen,
        )
        for at, (stream, table) in enumerate(zip(streams, tables, strict=True))
    )


def codec_of(stream: av.VideoStream) -> str:
    return stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
