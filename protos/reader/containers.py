"""Opens video files as a Reel, through PyAV. One pass over the packets gives the times; frames are decoded on demand.

Nothing is decoded before the limits are checked, not even by the demuxer's probing. Only the given bytes are read.
Packets are not kept in memory. Decoding reads them again, and decodes only the groups that hold a wanted frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition

from protos.reader.boxes import check_claims
from protos.reader.decoding import FFMPEG_ERRORS, Decoding, Promise
from protos.reader.errors import UnreadableClip
from protos.reader.guard import Guard
from protos.reader.packets import add_packet, groups_of
from protos.reader.payload import Payload
from protos.reader.reel import Picture, Reel, Track
from protos.reader.timeline import PacketTable, Timeline, slowed, timeline
from protos.types import ClipWarning

if TYPE_CHECKING:  # generic in its stub only
    Packet = av.Packet[av.VideoStream]

# A title in the wrong text encoding must not cause a refusal. PyAV 19 and later need no option for this.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
GROUPED = ("mov", "matroska")  # containers with reliable key frames, so that unwanted groups can be skipped
QUICKEST_CS, SLOW_CS = 1, 10  # gif frames with a delay of at most QUICKEST_CS (1/100 s) are shown for SLOW_CS


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over the packets says about the chosen track."""

    codec: str
    table: PacketTable
    line: Timeline
    unit_s: float
    indexed: int  # packets listed in an mp4's index
    tracks: tuple[Track, ...]
    quick: int  # gif frames with a delay too short for browsers


def open_container(payload: Payload, form: str, guard: Guard, track: int | None = None) -> Reel:
    """Open a video file. `form` is a demuxer's name from sniff.py, `track` a position among the video tracks.

    Raises UnreadableClip, ClipTooLarge, DecodeTooSlow.
    """
    if form == "mov":
        check_claims(payload, guard)
    file = _File(payload, form, guard, track)
    return file.reel(file.scan())


class _File:
    """A container's bytes and the track to read from them."""

    def __init__(self, payload: Payload, form: str, guard: Guard, track: int | None) -> None:
        self._payload, self._form, self._guard, self._track = payload, form, guard, track

    def scan(self) -> Scan:
        """Read every packet of the video tracks and choose one track."""
        with self._open() as container:
            self._guard.clock()
            streams = _moving(container)
            tables = self._tables(container, streams)
            at = self._chosen(streams, tables)
            stream, table = streams[at], tables[at]
            if stream.codec_context is None:
                raise UnreadableClip("this ffmpeg does not know the video's codec; re-encode it as h264, vp9 or av1")
            self._guard.size(stream.codec_context.height, stream.codec_context.width)
            shift, quick = slowed(table, QUICKEST_CS, SLOW_CS) if self._form == "gif" else (None, 0)
            line = timeline(table, float(stream.time_base or 1), shift)
            scan = Scan(
                codec=stream.codec_context.codec.canonical_name,
                table=table,
                line=line,
                unit_s=float(stream.time_base or 1),
                indexed=len(stream.index_entries) if self._form == "mov" else 0,
                tracks=_tracks(streams, tables),
                quick=quick,
            )
        if line.ticks.size:
            self._guard.duration(float(line.ticks[-1] - line.ticks[0]) * scan.unit_s)
        return replace(scan, tracks=tuple(replace(one, chosen=one.index == at) for one in scan.tracks))

    def reel(self, scan: Scan) -> Reel:
        times_s = scan.line.ticks.astype(np.float64) * scan.unit_s

        def counted() -> tuple[Reel, list[tuple[int, int]]]:
            return self._counted(scan)

        return Reel(
            codec=scan.codec,
            times_s=times_s,
            breaks=scan.line.breaks,
            tracks=scan.tracks,
            warnings=_warnings(scan),
            pictures=lambda wanted: self._pictures(scan, wanted, exact=False),
            counted=counted,
            stoppable=self._form != "avi",
        )

    def _counted(self, scan: Scan) -> tuple[Reel, list[tuple[int, int]]]:
        """The same file with its true frame times, found by decoding every frame, and each frame's (height, width)."""
        unit_s = scan.unit_s
        seen = [(time_s, (one.height_px, one.width_px)) for time_s, one in self._pictures(scan, None, exact=True)]
        least = max(1, scan.line.ticks.size // 2 - 1)
        if len(seen) < least:
            raise UnreadableClip(
                f"only {len(seen)} of the file's {scan.line.ticks.size} {scan.codec} frames decode, under the {least} "
                "needed: it is cut or damaged; upload the whole file or re-encode it"
            )
        ticks = np.rint(np.array([time_s for time_s, _ in seen]) / unit_s).astype(np.int64)
        if self._form == "avi":  # avi frames have no times of their own, so the track's times are spread over them
            ticks = scan.line.ticks[np.rint(np.linspace(0, scan.line.ticks.size - 1, ticks.size)).astype(int)]
        edges = [int(np.searchsorted(ticks, scan.line.ticks[edge])) for edge in scan.line.breaks]
        breaks = tuple(sorted({edge for edge in edges if 0 < edge < ticks.size}))
        counted = replace(scan, line=replace(scan.line, ticks=ticks, breaks=breaks))
        reel = replace(
            self.reel(counted), pictures=lambda wanted: self._pictures(counted, wanted, exact=True), counted=None
        )
        return reel, [size for _, size in seen]

    def _pictures(self, scan: Scan, wanted: Sequence[int] | None, *, exact: bool) -> Iterator[tuple[float, Picture]]:
        """Decode what the wanted frames need, in one pass. `exact`: the scan holds the true times."""
        promise = Promise(
            line=scan.line,
            unit_s=scan.unit_s,
            in_order=self._form == "avi",
            halves=self._form in ("mpeg", "mpegts"),
            beyond=max(0, scan.indexed - len(scan.table)),
            exact=exact,
        )
        skips = self._form in GROUPED and not exact  # after a count, packets are not frames: decode them all
        groups = groups_of(scan.table, scan.line, wanted if skips else None)
        with self._open() as container:
            stream = _moving(container)[next(one.index for one in scan.tracks if one.chosen)]
            yield from Decoding(stream, promise, self._guard).pictures(_sized(container.demux(stream)), groups)

    @contextmanager
    def _open(self) -> Iterator[InputContainer]:
        """Open the demuxer. `codec_whitelist` prevents decoding while probing; `io_open` forbids other files."""
        try:
            container: InputContainer = av.open(
                self._payload.reader(self._guard),
                mode="r",
                format=self._form,
                container_options={"codec_whitelist": "none"},
                io_open=_refuse_to_open,
                **LENIENT,
            )
        except FFMPEG_ERRORS as error:
            self._guard.clock()
            raise UnreadableClip(
                f"the {len(self._payload)} bytes begin like {self._form} but cannot be opened ({_reason(error)}): the "
                "file is damaged or its index never arrived; upload the whole file or re-encode it"
            ) from error
        with container:
            yield container

    def _tables(self, container: InputContainer, streams: Sequence[av.VideoStream]) -> list[PacketTable]:
        """Read all packets of the tracks, and hold their total bytes to the limit too.

        The total can exceed the file: an index can name the same bytes many times, and a Matroska block can be
        compressed.
        """
        tables = {stream.index: PacketTable() for stream in streams}
        codecs = {stream.index: _codec(stream) for stream in streams}
        trouble: Exception | None = None
        try:
            for packet in _sized(cast("Iterator[Packet]", container.demux(*streams))):
                self._guard.clock()
                table = tables[packet.stream_index]
                add_packet(table, packet, codecs[packet.stream_index])
                self._guard.frames(len(table))
                self._guard.payload(sum(one.num_bytes for one in tables.values()))
        except FFMPEG_ERRORS as error:
            trouble = error  # a damaged end of the file stops the packets; missing frames are counted later
        self._guard.clock()
        if not any(map(len, tables.values())):
            why = _reason(trouble) if trouble else "it is empty"
            raise UnreadableClip(f"the file's video stream has no frames ({why}); re-encode the clip")
        return list(tables.values())

    def _chosen(self, streams: Sequence[av.VideoStream], tables: Sequence[PacketTable]) -> int:
        """The requested track, else the default track among the moving ones, else the first moving one."""
        if self._track is not None:
            if not 0 <= self._track < len(streams):
                raise UnreadableClip(
                    f"track={self._track} does not exist: the file has {len(streams)} video track(s), counted from 0; "
                    "choose one of them"
                )
            return self._track
        moving = [at for at, table in enumerate(tables) if len(table) > 1] or [
            at for at, table in enumerate(tables) if len(table)
        ]
        return next((at for at in moving if streams[at].disposition & Disposition.default), moving[0])


def _refuse_to_open(url: str, *_: object) -> Any:
    raise PermissionError(f"the file refers to another file, {url!r}, which is never opened")


def _moving(container: InputContainer) -> list[av.VideoStream]:
    """The video tracks without cover pictures."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams}) or ["none"]
        raise UnreadableClip(f"the file has no video stream, only {', '.join(kinds)}; send a video file")
    return streams


def _tracks(streams: Sequence[av.VideoStream], tables: Sequence[PacketTable]) -> tuple[Track, ...]:
    """The video tracks in the order that `track=` counts."""
    return tuple(
        Track(
            index=at,
            codec=_codec(stream),
            frames=len(table),
            default=bool(stream.disposition & Disposition.default),
        )
        for at, (stream, table) in enumerate(zip(streams, tables, strict=True))
    )


def _codec(stream: av.VideoStream) -> str:
    return stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"


def _sized(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Drop empty packets: they mark the end of a track or a skipped frame."""
    return (packet for packet in packets if packet.size)


def _warnings(scan: Scan) -> tuple[ClipWarning, ...]:
    told: list[ClipWarning] = []
    if sum(one.frames > 1 for one in scan.tracks) > 1:
        chosen = next(one for one in scan.tracks if one.chosen)
        names = ", ".join(f"{one.index} ({one.codec}, {one.frames} packets)" for one in scan.tracks)
        message = f"the file has {len(scan.tracks)} video tracks: {names}; track {chosen.index} is read"
        told.append(ClipWarning(code="several_tracks", message=message))
    if scan.line.repeated:
        share = scan.line.repeated / (scan.line.repeated + scan.line.ticks.size)
        message = f"{share:.0%} of the frames have the same time as an earlier one; only the first of each is used"
        told.append(ClipWarning(code="repeated_times", message=message, share=share))
    if scan.quick:
        share = scan.quick / len(scan.table)
        message = f"{share:.0%} of the gif's frames have a delay under 20 ms; they last 100 ms, as in browsers"
        told.append(ClipWarning(code="quick_frames", message=message, share=share))
    return tuple(told)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
