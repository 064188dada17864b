"""Opens video files as a Reel, through PyAV. One pass over the packets gives the times; frames are decoded on demand.

Nothing is decoded before the limits are checked, not even by the demuxer's probing. Only the number of frames of
FIELD_CODECS is known after the first one. Only the given bytes are read.
Packets are not kept in memory. Decoding reads them again, and decodes only the groups that hold a wanted frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import av
from av.container import InputContainer
from av.stream import Disposition

from protos.reader.boxes import has_fragments
from protos.reader.decoding import FFMPEG_ERRORS, Decoding, Promise
from protos.reader.errors import UnreadableClip
from protos.reader.guard import Guard
from protos.reader.packets import Group, add_packet, groups_of
from protos.reader.payload import Payload
from protos.reader.plausible import check_plausible
from protos.reader.quick import animated_kind
from protos.reader.reel import Picture, Reel
from protos.reader.scan import UNTIMED, Scan, codec_of, lined, moving, tracks_of
from protos.reader.timeline import PacketTable
from protos.reader.truncation import avi_duration_s, bytes_are_missing

if TYPE_CHECKING:  # generic in its stub only
    Packet = av.Packet[av.VideoStream]

# A title in the wrong text encoding must not cause a refusal. PyAV 19 and later need no option for this.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
FIELD_CODECS = ("h264", "mpeg2video", "vc1")  # a frame can be two packets, one for each field
DELAYS = {"apng": {"default_fps": "10"}}  # for frames with a delay of 0; a gif's are shown for 100 ms too
GROUPED = ("mov", "matroska")  # containers with reliable key frames, so that unwanted groups can be skipped


def open_container(payload: Payload, form: str, guard: Guard, track: int | None = None) -> Reel:
    """Open a video file. `form` is a demuxer's name from sniff.py, `track` a position among the video tracks.

    Raises UnreadableClip, ClipTooLarge, DecodeTooSlow.
    """
    check_plausible(payload, form, guard)
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
            streams = moving(container)
            tables = self._tables(container, streams)
            at = self._chosen(streams, tables)
            stream, table = streams[at], tables[at]
            self._guard.packets(len(table))
            if stream.codec_context is None:
                raise UnreadableClip(
                    f"this ffmpeg does not know the codec of video track {at} of {len(streams)}, counted from 0; "
                    "re-encode it as h264, vp9 or av1"
                )
            self._guard.size(stream.codec_context.height, stream.codec_context.width)
            indexed = len(stream.index_entries) if self._form == "mov" else 0
            kind, unit_s = animated_kind(self._payload, self._form), float(stream.time_base or 1)
            scan = Scan(
                form=self._form,
                kind=kind,
                codec=stream.codec_context.codec.canonical_name,
                unit_s=unit_s,
                tracks=tracks_of(streams, tables, at),
                declared_s=self._declared_s(container, stream),
                untimed=self._form in UNTIMED,
                **lined(table, kind, unit_s),
            )
        if bytes_are_missing(self._payload, self._form) or indexed > len(table) or scan.ends_early:
            scan = scan.cut_after(len(table) - 1)
        if scan.codec not in FIELD_CODECS:  # decoding.py checks those, once it has seen whether frames have two fields
            self._guard.frames(scan.num_frames)
        if scan.line.ticks.size:
            self._guard.duration(float(scan.line.ticks[-1] - scan.line.ticks[0]) * scan.unit_s)
        return scan

    def _declared_s(self, container: InputContainer, stream: av.VideoStream) -> float | None:
        """The track's duration in seconds, if the file declares it before its frames."""
        if self._form == "avi":
            return avi_duration_s(self._payload)
        if self._form not in GROUPED or (self._form == "mov" and has_fragments(self._payload)):
            return None
        alone = len(container.streams) == 1  # otherwise the file's duration can be that of its sound
        if stream.duration and stream.time_base:
            declared_s = float(stream.duration * stream.time_base)
        else:
            declared_s = container.duration / av.time_base if alone and container.duration else 0.0
        if self._form == "matroska" and container.start_time:  # its durations begin at 0, not at the first frame
            declared_s -= max(0.0, container.start_time / av.time_base)
        return declared_s if declared_s > 0 else None

    def reel(self, scan: Scan) -> Reel:
        return Reel(
            codec=scan.codec,
            times_s=scan.times_s,
            breaks=scan.line.breaks,
            tracks=scan.tracks,
            warnings=scan.warnings,
            pictures=lambda wanted: self._pictures(scan, wanted, exact=False),
            reads_all=lambda wanted: self._groups(scan, wanted) == self._groups(scan, None),
            counted=lambda: self._counted(scan),
            stoppable=self._form != "avi",
        )

    def _counted(self, scan: Scan) -> tuple[Reel, list[tuple[int, int]]]:
        """The same file with its true frame times, found by decoding every frame, and each frame's (height, width)."""
        with self._decoding(scan, None, exact=True) as (decoding, pictures):
            seen = [(time_s, (one.height_px, one.width_px)) for time_s, one in pictures]
        if decoding.disordered and scan.line.in_decoding_order:  # the writer of the file gave decoding times only
            return self._counted(scan.in_decoder_order())
        damaged_at = decoding.damaged_at
        if damaged_at is not None and damaged_at > 1 and not decoding.mended and not scan.cut:
            return self._counted(scan.cut_after(damaged_at - 1))  # the damage can begin in the packet before
        least = scan.least_frames(damaged=damaged_at is not None)
        if len(seen) < least:
            raise UnreadableClip(
                f"only {len(seen)} of the file's {scan.line.ticks.size} or more {scan.codec} frames can be decoded, "
                f"under the minimum of {least}: {scan.where(damaged_at)}; upload the whole file or re-encode it"
            )
        counted = scan.counted([time_s for time_s, _ in seen])
        reel = replace(
            self.reel(counted),
            pictures=lambda wanted: self._pictures(counted, wanted, exact=True),
            reads_all=lambda wanted: True,
            counted=None,
        )
        return reel, [size for _, size in seen]

    def _pictures(self, scan: Scan, wanted: Sequence[int] | None, *, exact: bool) -> Iterator[tuple[float, Picture]]:
        with self._decoding(scan, wanted, exact=exact) as (_, pictures):
            yield from pictures

    def _groups(self, scan: Scan, wanted: Sequence[int] | None) -> list[Group]:
        return groups_of(scan.table, scan.line, wanted if self._form in GROUPED else None)

    @contextmanager
    def _decoding(
        self, scan: Scan, wanted: Sequence[int] | None, *, exact: bool
    ) -> Iterator[tuple[Decoding, Iterator[tuple[float, Picture]]]]:
        """Decode what the wanted frames need, in one pass. `exact`: the scan holds the true times."""
        promise = Promise(
            line=scan.line,
            unit_s=scan.unit_s,
            in_order=scan.untimed,
            halves=scan.halves,
            exact=exact,
            cut=scan.cut,
        )
        groups = self._groups(scan, None if exact else wanted)  # after a count, packets are not frames: decode them all
        with self._open() as container:
            stream = moving(container)[next(one.index for one in scan.tracks if one.chosen)]
            decoding = Decoding(stream, promise, self._guard)
            yield decoding, decoding.pictures(_sized(container.demux(stream)), groups)

    @contextmanager
    def _open(self) -> Iterator[InputContainer]:
        """Open the demuxer. `codec_whitelist` prevents decoding while probing; `io_open` forbids other files."""
        try:
            container: InputContainer = av.open(
                self._payload.reader(self._guard),
                mode="r",
                format=self._form,
                container_options={"codec_whitelist": "none", **DELAYS.get(self._form, {})},
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
        """Read all packets of the tracks, and hold their number and their total bytes to the limits.

        The total can exceed the file: an index can name the same bytes many times, and a Matroska block can be
        compressed.
        """
        tables = {stream.index: PacketTable() for stream in streams}
        codecs = {stream.index: codec_of(stream) for stream in streams}
        trouble: Exception | None = None
        num_packets, num_bytes = 0, 0
        try:
            for packet in _sized(cast("Iterator[Packet]", container.demux(*streams))):
                self._guard.clock()
                add_packet(tables[packet.stream_index], packet, codecs[packet.stream_index])
                num_packets, num_bytes = num_packets + 1, num_bytes + packet.size
                self._guard.packets(num_packets, several_tracks=len(streams) > 1)
                self._guard.payload(num_bytes)
        except FFMPEG_ERRORS as error:
            trouble = error  # a damaged end of the file stops the packets; missing frames are counted later
        self._guard.clock()
        if not any(map(len, tables.values())):
            why = _reason(trouble) if trouble else "it is empty"
            raise UnreadableClip(f"the file's {len(tables)} video track(s) have no frames ({why}); re-encode the clip")
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
        several = [at for at, table in enumerate(tables) if len(table) > 1] or [
            at for at, table in enumerate(tables) if len(table)
        ]
        return next((at for at in several if streams[at].disposition & Disposition.default), several[0])


def _refuse_to_open(url: str, *_: object) -> Any:
    raise PermissionError(f"the file refers to another file, {url!r}, which is never opened")


def _sized(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Drop empty packets: they mark the end of a track or a skipped frame."""
    return (packet for packet in packets if packet.size)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
