"""Packets -> pictures: decodes groups of frames, leaves out what cannot be trusted, and holds the count to the promise.

Used by containers.py, which knows the packets and their times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from protos.reader.errors import UnreadableClip
from protos.reader.guard import Guard
from protos.reader.packets import Group
from protos.reader.pixels import Matrix, display_matrix, picture
from protos.reader.reel import Picture, Recount, Times
from protos.reader.timeline import Timeline

if TYPE_CHECKING:  # generic in its stub only
    Packet = av.Packet[av.VideoStream]

FFMPEG_ERRORS = (av.FFmpegError, OSError, ValueError)
MAX_PIXEL_ASPECT = 4.0
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the container says of a track's frames, and how far it is to be believed.

    `in_order`: the container stores no presentation times (avi), so the k-th frame has the k-th time. `halves`: two
    packets may be the fields of one frame, and there is no index (MPEG streams). `beyond` packets are named by the
    index and not there. `exact`: the times come from decoding.
    """

    line: Timeline
    unit_s: float
    in_order: bool
    halves: bool
    beyond: int
    exact: bool


class Decoding:
    """One pass over a track."""

    def __init__(self, stream: av.VideoStream, promise: Promise, guard: Guard) -> None:
        self._stream, self._promise, self._guard = stream, promise, guard
        self._decoder = self._new_decoder()
        self._times_s = promise.line.ticks.astype(np.float64) * promise.unit_s
        gaps = np.diff(self._times_s)
        self._tolerance_s = float(np.median(gaps)) / 4 if gaps.size else math.inf
        self._trusted = self._clean = True
        self._num_frames, self._last_s = 0, -math.inf
        self._matrix: tuple[tuple[int, int, int], Matrix] | None = None

    def pictures(self, packets: Iterator[Packet], groups: Sequence[Group]) -> Iterator[tuple[float, Picture]]:
        """(time in seconds, picture) of every frame of the groups that can be trusted, times rising."""
        given_s: list[float] = []
        whole, promised_s = self._is_whole(groups), self._promised_s(groups)
        for frame in self._frames(packets, groups):
            if frame.interlaced_frame and not whole:  # two packets may be its fields, and a group end between them
                raise Recount
            self._guard.size(frame.height, frame.width)
            self._guard.frames(self._num_frames + 1)
            time_s = self._time_s(frame)
            self._num_frames += 1
            if time_s > self._last_s:  # of frames with one timestamp the first is taken
                self._last_s = time_s
                self._as_promised(time_s, len(given_s), promised_s)
                given_s.append(time_s)
                yield time_s, picture(frame, self._pixel_aspect(), self._display_matrix(frame))
        self._check(np.array(given_s), promised_s, whole=whole)

    def _display_matrix(self, frame: av.VideoFrame) -> Matrix:
        """That of the first frame, and again where a frame is turned or sized otherwise."""
        form = (frame.rotation, frame.height, frame.width)
        if self._matrix is None or self._matrix[0] != form:
            self._matrix = form, display_matrix(frame)
        return self._matrix[1]

    def _time_s(self, frame: av.VideoFrame) -> float:
        if self._promise.in_order or frame.pts is None:
            return float(self._times_s[min(self._num_frames, self._times_s.size - 1)])
        return frame.pts * self._promise.unit_s

    def _new_decoder(self) -> VideoCodecContext:
        """One thread: clips are decoded side by side. Alpha of vp8 and vp9 is known to libvpx alone."""
        decoder: VideoCodecContext = self._stream.codec_context
        with_alpha = ALPHA_DECODERS.get(decoder.codec.canonical_name)
        if with_alpha and self._stream.metadata.get("alpha_mode") == "1":
            decoder = cast(VideoCodecContext, av.CodecContext.create(with_alpha, "r"))
        decoder.thread_count = 1
        # A stream may be larger than its header says; twice the limit, since the decoder counts its padding too.
        decoder.options = {"max_pixels": str(2 * self._guard.limits.max_frame_pixels)}
        return decoder

    def _frames(self, packets: Iterator[Packet], groups: Sequence[Group]) -> Iterator[av.VideoFrame]:
        """Each group's frames, in the order in which they are shown."""
        numbered, offsets = enumerate(packets), self._promise.line.offsets
        for group in groups:
            if group.first:
                self._decoder.flush_buffers()
            self._trusted = True
            for at, packet in numbered:
                if at >= group.first:
                    yield from self._decoded(_moved(packet, int(offsets[at])))
                if at + 1 >= group.last:
                    break
            yield from self._decoded(None)

    def _decoded(self, packet: Packet | None) -> Iterator[av.VideoFrame]:
        """The frames that can be trusted: after an error none is until the next key frame, for each repeats its
        damage."""
        self._guard.clock()
        try:
            frames = self._decoder.decode(packet)
        except FFMPEG_ERRORS:
            self._guard.size(self._decoder.height, self._decoder.width)  # of the stream, where max_pixels stopped it
            self._trusted = self._clean = False
            return
        for frame in frames:
            self._trusted = not frame.is_corrupt and (self._trusted or frame.key_frame)
            self._clean = self._clean and self._trusted
            if self._trusted:
                yield frame

    def _as_promised(self, time_s: float, at: int, promised_s: Times) -> None:
        """Where nothing is damaged, what the decoder gives is the truth, and another promise was not."""
        if self._promise.exact or not self._clean:
            return
        if at >= promised_s.size or abs(time_s - float(promised_s[at])) > self._tolerance_s:
            raise Recount

    def _check(self, given_s: Times, promised_s: Times, *, whole: bool) -> None:
        """Raises UnreadableClip where more than one frame and 2 % are missing: also those an mp4 indexes beyond the
        end of a cut file. Raises Recount where frames are missing and nothing is damaged."""
        promise = self._promise
        if promise.exact:
            return
        promised = promised_s.size + promise.beyond
        least = promised_s.size // 2 if promise.halves else promised - 1 - promised // 50
        if given_s.size != promised_s.size and (self._clean or promise.halves) and not promise.beyond:
            raise Recount
        if self._num_frames < max(least, int(whole)):
            raise UnreadableClip(
                f"only {self._num_frames} of the file's {self._times_s.size} or more "
                f"{self._decoder.codec.canonical_name} frames decode, under the {least} needed: it is cut or damaged; "
                "upload the whole file or re-encode it"
            )

    def _promised_s(self, groups: Sequence[Group]) -> Times:
        """The times that the groups' frames should have."""
        line = self._promise.line
        if self._is_whole(groups):
            return self._times_s
        promised: list[NDArray[np.int64]] = []
        for group in groups:
            ticks = line.packet_ticks[group.first : group.last]
            promised.append(ticks[ticks >= ticks[0]] if group.first else ticks)
        ticks = np.intersect1d(np.concatenate(promised), line.ticks) if promised else np.zeros(0, np.int64)
        return np.asarray(ticks * self._promise.unit_s)

    def _is_whole(self, groups: Sequence[Group]) -> bool:
        return [(group.first, group.last) for group in groups] == [(0, self._promise.line.packet_ticks.size)]

    def _pixel_aspect(self) -> float:
        """Width of a pixel over its height; an absurd one is taken for 1."""
        aspect = float(self._stream.sample_aspect_ratio or self._decoder.sample_aspect_ratio or 1)
        return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _moved(packet: Packet, offset: int) -> Packet:
    """The packet on the clock of the whole track."""
    if offset:
        packet.pts = packet.pts if packet.pts is None else packet.pts + offset
        packet.dts = packet.dts if packet.dts is None else packet.dts + offset
    return packet
