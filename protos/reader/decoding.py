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

    `in_order`: the file stores no presentation times (avi), so the k-th frame has the k-th time.
    `halves`: two packets can be the two fields of one frame, and there is no index (MPEG streams).
    `exact`: the times come from decoding, so they are not checked again.
    `cut`: frames after the last time are not shown, because some before them are missing.
    """

    line: Timeline
    unit_s: float
    in_order: bool
    halves: bool
    exact: bool
    cut: bool


class Decoding:
    """One pass over a track.

    `damaged_at` is the number of the first packet that cannot be decoded, and `mended` says whether any later one can.
    `disordered` says whether a frame had an earlier time than the one before.
    """

    def __init__(self, stream: av.VideoStream, promise: Promise, guard: Guard) -> None:
        self._stream, self._promise, self._guard = stream, promise, guard
        self._decoder = self._new_decoder()
        self._times_s = promise.line.ticks.astype(np.float64) * promise.unit_s
        gaps = np.diff(self._times_s)
        self._tolerance_s = float(np.median(gaps)) / 4 if gaps.size else math.inf
        self._end_s = float(self._times_s[-1]) + self._tolerance_s if promise.cut else math.inf
        self.damaged_at: int | None = None
        self.mended = False
        self.disordered = False
        self._trusted = True
        self._num_frames, self._last_s = 0, -math.inf
        self._matrix: tuple[tuple[int, int, int], Matrix] | None = None

    def pictures(self, packets: Iterator[Packet], groups: Sequence[Group]) -> Iterator[tuple[float, Picture]]:
        """Yield (time in seconds, picture) for every undamaged frame of the groups, in order of time.

        Raises Recount if the frames do not match the promised times, or too many are missing.
        """
        given_s: list[float] = []
        whole, promised_s = self._is_whole(groups), self._promised_s(groups)
        for frame in self._frames(packets, groups):
            if frame.interlaced_frame and not whole:  # its two fields can be in different groups
                raise Recount
            if not frame.interlaced_frame and not self._promise.exact:  # then a packet is a frame
                self._guard.frames(self._times_s.size)
            self._guard.size(frame.height, frame.width)
            self._guard.frames(self._num_frames + 1)
            time_s = self._time_s(frame)
            self._num_frames += 1
            if self._last_s < time_s <= self._end_s:  # if frames share a timestamp, only the first is used
                self._last_s = time_s
                self._as_promised(time_s, len(given_s), promised_s)
                given_s.append(time_s)
                yield time_s, picture(frame, self._pixel_aspect(), self._display_matrix(frame))
            self.disordered |= time_s < self._last_s
            del frame  # otherwise it is held while the next one is decoded
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
        """Create a decoder. vp8 and vp9 with alpha need libvpx.

        Where every frame is counted it has one thread, because several report damage too late to say where it is.
        """
        decoder: VideoCodecContext = self._stream.codec_context
        with_alpha = ALPHA_DECODERS.get(decoder.codec.canonical_name)
        if with_alpha and self._stream.metadata.get("alpha_mode") == "1":
            decoder = cast(VideoCodecContext, av.CodecContext.create(with_alpha, "r"))
        decoder.thread_count = 1 if self._promise.exact else self._guard.threads
        decoder.thread_type = "AUTO"
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
                    yield from self._decoded(_moved(packet, int(offsets[at])), at)
                if at + 1 >= group.last:
                    break
            yield from self._decoded(None, group.last)

    def _decoded(self, packet: Packet | None, at: int) -> Iterator[av.VideoFrame]:
        """Decode packet number `at`, or what the decoder still holds for None, and yield the undamaged frames.

        After an error, frames are dropped until the next key frame, because they are built on the damaged one.
        """
        self._guard.clock()
        try:
            frames = self._decoder.decode(packet)
        except FFMPEG_ERRORS:
            self._guard.size(self._decoder.height, self._decoder.width)  # names the size if max_pixels stopped it
            self._damaged(at)
            return
        for frame in frames:
            if frame.is_corrupt:
                self._damaged(at)
            else:
                self.mended |= self.damaged_at is not None and packet is not None
                self._trusted |= frame.key_frame
            if self._trusted:
                yield frame

    def _damaged(self, at: int) -> None:
        self._trusted = False
        self.damaged_at = at if self.damaged_at is None else self.damaged_at

    def _as_promised(self, time_s: float, at: int, promised_s: Times) -> None:
        """Raise Recount if an undamaged stream gives a frame at another time than the container promised."""
        if self._promise.exact or self.damaged_at is not None:
            return
        if at >= promised_s.size or abs(time_s - float(promised_s[at])) > self._tolerance_s:
            raise Recount

    def _check(self, given_s: Times, promised_s: Times, *, whole: bool) -> None:
        """Raise Recount if the number of frames differs from the promised one, which `counted` explains or refuses.

        In damaged files of reliable containers, one frame plus 2 % may be missing, but not at the end of the file.
        """
        promise = self._promise
        if promise.exact or given_s.size == promised_s.size:
            return
        least = promised_s.size - 1 - promised_s.size // 50
        at_end = given_s.size == 0 or bool(given_s[-1] < self._times_s[-1] - self._tolerance_s)
        if self.damaged_at is None or promise.halves or given_s.size < max(least, int(whole)) or at_end:
            raise Recount

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
