"""Decodes groups of packets into pictures, drops damaged frames and checks the result against the container's times.

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
    """What the container says about a track's frames, and how reliable that is.

    `in_order`: the container stores no presentation times (avi), so the k-th frame has the k-th time.
    `halves`: two packets can be the two fields of one frame, and there is no index (MPEG streams).
    `beyond`: the number of packets that are listed in the index but missing from the file.
    `exact`: the times come from decoding, so they are not checked again.
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
        """Yield (time in seconds, picture) for every undamaged frame of the groups, in order of time.

        Raises Recount if the frames do not match the promised times, UnreadableClip if too many are missing.
        """
        given_s: list[float] = []
        whole, promised_s = self._is_whole(groups), self._promised_s(groups)
        for frame in self._frames(packets, groups):
            if frame.interlaced_frame and not whole:  # its two fields can be in different groups
                raise Recount
            self._guard.size(frame.height, frame.width)
            self._guard.frames(self._num_frames + 1)
            time_s = self._time_s(frame)
            self._num_frames += 1
            if time_s > self._last_s:  # if frames share a timestamp, only the first is used
                self._last_s = time_s
                self._as_promised(time_s, len(given_s), promised_s)
                given_s.append(time_s)
                yield time_s, picture(frame, self._pixel_aspect(), self._display_matrix(frame))
        self._check(np.array(given_s), promised_s, whole=whole)

    def _display_matrix(self, frame: av.VideoFrame) -> Matrix:
        """The first frame's display matrix, read again when the rotation or the size changes."""
        form = (frame.rotation, frame.height, frame.width)
        if self._matrix is None or self._matrix[0] != form:
            self._matrix = form, display_matrix(frame)
        return self._matrix[1]

    def _time_s(self, frame: av.VideoFrame) -> float:
        if self._promise.in_order or frame.pts is None:
            return float(self._times_s[min(self._num_frames, self._times_s.size - 1)])
        return frame.pts * self._promise.unit_s

    def _new_decoder(self) -> VideoCodecContext:
        """Create a decoder with one thread, since clips are decoded in parallel. vp8 and vp9 with alpha need libvpx."""
        decoder: VideoCodecContext = self._stream.codec_context
        with_alpha = ALPHA_DECODERS.get(decoder.codec.canonical_name)
        if with_alpha and self._stream.metadata.get("alpha_mode") == "1":
            decoder = cast(VideoCodecContext, av.CodecContext.create(with_alpha, "r"))
        decoder.thread_count = 1
        # A stream can be larger than its header says. The limit is doubled because the decoder counts padding too.
        decoder.options = {"max_pixels": str(2 * self._guard.limits.max_frame_pixels)}
        return decoder

    def _frames(self, packets: Iterator[Packet], groups: Sequence[Group]) -> Iterator[av.VideoFrame]:
        """Decode each group and yield its frames in display order."""
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
        """Decode one packet and yield the undamaged frames.

        After an error, frames are dropped until the next key frame, because they are built on the damaged one.
        """
        self._guard.clock()
        try:
            frames = self._decoder.decode(packet)
        except FFMPEG_ERRORS:
            self._guard.size(self._decoder.height, self._decoder.width)  # names the size if max_pixels stopped it
            self._trusted = self._clean = False
            return
        for frame in frames:
            self._trusted = not frame.is_corrupt and (self._trusted or frame.key_frame)
            self._clean = self._clean and self._trusted
            if self._trusted:
                yield frame

    def _as_promised(self, time_s: float, at: int, promised_s: Times) -> None:
        """Raise Recount if an undamaged stream gives a frame at another time than the container promised."""
        if self._promise.exact or not self._clean:
            return
        if at >= promised_s.size or abs(time_s - float(promised_s[at])) > self._tolerance_s:
            raise Recount

    def _check(self, given_s: Times, promised_s: Times, *, whole: bool) -> None:
        """Compare the number of decoded frames with the promised number.

        Raises UnreadableClip if more than one frame plus 2 % are missing. Frames that an mp4 indexes beyond the end
        of a cut file count as missing. For MPEG streams, half of the promised frames are enough. Raises Recount if
        the numbers differ without damage.
        """
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
                f"{self._decoder.codec.canonical_name} frames can be decoded, under the minimum of {least}: the file "
                "is cut or damaged; upload the whole file or re-encode it"
            )

    def _promised_s(self, groups: Sequence[Group]) -> Times:
        """The times that the container gives for the groups' frames."""
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
        """A pixel's width divided by its height; 1 if the file gives an implausible value."""
        aspect = float(self._stream.sample_aspect_ratio or self._decoder.sample_aspect_ratio or 1)
        return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _moved(packet: Packet, offset: int) -> Packet:
    """Shift the packet's times to the clock of the whole track."""
    if offset:
        packet.pts = packet.pts if packet.pts is None else packet.pts + offset
        packet.dts = packet.dts if packet.dts is None else packet.dts + offset
    return packet
