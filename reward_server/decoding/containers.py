"""Video files -> Reel, through PyAV: packets first, to know every timestamp, then frames as they are pulled.

Between decode.py and ffmpeg. Until the limits are checked nothing is decoded, not even by the demuxer's
own probing, and only the bytes given are ever read. Interlaced frames and HDR are taken as they are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from reward_server.decoding.pixels import picture
from reward_server.decoding.reel import Guard, Picture, Reel
from reward_server.errors import UnreadableClip

if TYPE_CHECKING:  # generic in its stub only
    Packet = av.Packet[av.VideoStream]

FFMPEG_ERRORS = (av.FFmpegError, OSError, ValueError)
# Titles in another alphabet than they say are no reason to refuse a clip. From PyAV 19 on they never are.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
MAX_PIXEL_ASPECT = 4.0
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


@dataclass(frozen=True, kw_only=True)
class Footage:
    """The packets of a stream in decoding order, and what they promise.

    `times_s` [T], rising, belong to the frames that should be shown; `least_frames` of these must decode.
    """

    packets: Sequence[Packet]
    times_s: NDArray[np.float64]
    least_frames: int


@contextmanager
def open_container(data: bytes, form: str, guard: Guard) -> Iterator[Reel]:
    """`form` is a demuxer's name from sniff.py. Raises UnreadableClip, ClipTooLarge, DecodeTooSlow."""
    with _open(data, form, guard) as container:
        guard.clock()
        stream = _video_stream(container)
        guard.size(stream.codec_context.height, stream.codec_context.width)
        guard.frames(stream.frames)
        footage = _footage(container, stream, form, guard)
        yield Reel(
            codec=stream.codec_context.codec.canonical_name,
            times_s=footage.times_s,
            pictures=_pictures(stream, footage, guard, in_order=form == "avi"),
        )


class _Payload(io.BytesIO):
    """The bytes as ffmpeg reads them; they end early when time is up, since a demuxer that searches through
    megabytes of junk for the next frame looks at no clock."""

    def __init__(self, data: bytes, guard: Guard) -> None:
        super().__init__(data)
        self._guard = guard

    def read(self, size: int | None = -1, /) -> bytes:
        return b"" if self._guard.late else super().read(size)


def _open(data: bytes, form: str, guard: Guard) -> InputContainer:
    """`codec_whitelist` names no codec, so that probing cannot decode; `io_open` forbids any other file."""
    try:
        container: InputContainer = av.open(
            _Payload(data, guard),
            mode="r",
            format=form,
            container_options={"codec_whitelist": "none"},
            io_open=_refuse_to_open,
            **LENIENT,
        )
        return container
    except FFMPEG_ERRORS as error:
        guard.clock()
        raise UnreadableClip(
            f"the {len(data)} bytes begin like {form} but cannot be opened ({_reason(error)}): the file is damaged or "
            "its index never arrived; upload the whole file or re-encode it"
        ) from error


def _refuse_to_open(url: str, *_: object) -> Any:
    raise PermissionError(f"the file refers to another file, {url!r}, which is never opened")


def _video_stream(container: InputContainer) -> av.VideoStream:
    """The first stream of moving pictures; a cover picture is none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams}) or ["none"]
        raise UnreadableClip(f"the file has no video stream, only {', '.join(kinds)}; send a file with moving pictures")
    if streams[0].codec_context is None:
        raise UnreadableClip("the video's codec is not known to this server; re-encode it as h264, vp9 or av1")
    return streams[0]


def _footage(container: InputContainer, stream: av.VideoStream, form: str, guard: Guard) -> Footage:
    """Read every packet. A frame that cannot be decoded in any player is not promised: one before the first
    key frame, one that an edit list cuts away, a hidden vp8 reference."""
    packets = _packets(container, stream, guard)
    ticks = _ticks(packets)
    first = next((i for i, packet in enumerate(packets) if packet.is_keyframe), 0)
    shown = sorted(
        tick
        for packet, tick in zip(packets[first:], ticks[first:], strict=True)
        if tick >= ticks[first] and not packet.is_discard and not _is_hidden(packet, stream)
    )
    times_s = np.array(shown, np.float64) * float(stream.time_base or 1)
    if times_s.size:
        guard.duration(float(times_s[-1] - times_s[0]))
    return Footage(packets=packets, times_s=times_s, least_frames=_least_frames(len(shown), len(packets), stream, form))


def _packets(container: InputContainer, stream: av.VideoStream, guard: Guard) -> list[Packet]:
    """All packets. Their bytes count too: an index may name one stretch of the file many times, and a Matroska
    block may be a compressed one."""
    packets: list[Packet] = []
    num_bytes = 0
    trouble: Exception | None = None
    try:
        for packet in container.demux(stream):
            guard.clock()
            if packet.size:
                packets.append(packet)
                num_bytes += packet.size
                guard.frames(len(packets))
                guard.payload(num_bytes)
    except FFMPEG_ERRORS as error:
        trouble = error  # a damaged tail ends the packets; what is missing is counted against the index
    guard.clock()
    if not packets:
        why = _reason(trouble) if trouble else "it is empty"
        raise UnreadableClip(f"the file's video stream holds no frame ({why}); re-encode the clip")
    return packets


def _ticks(packets: Sequence[Packet]) -> list[int]:
    """Presentation time of each packet in units of the stream's time base; gaps are filled from decoding order."""
    ticks: list[int] = []
    for packet in packets:
        known = packet.pts if packet.pts is not None else packet.dts
        after_last = ticks[-1] + max(1, packet.duration or 0) if ticks else 0
        ticks.append(after_last if known is None else known)
    return ticks


def _is_hidden(packet: Packet, stream: av.VideoStream) -> bool:
    """A vp8 packet that only updates a reference: bit 4 of its first byte, show_frame, is off (RFC 6386, 9.1)."""
    return stream.codec_context.codec.canonical_name == "vp8" and not memoryview(packet)[0] & 16


def _least_frames(num_shown: int, num_packets: int, stream: av.VideoStream, form: str) -> int:
    """All frames but one and 2 % must decode, also those an mp4 indexes beyond the end of a cut file.

    MPEG streams have no index, and two of their packets may be the fields of one frame: half is enough.
    """
    if form in ("mpeg", "mpegts"):
        return max(1, num_shown // 2)
    indexed = len(stream.index_entries) if form == "mov" else 0
    promised = num_shown + max(0, indexed - num_packets)
    return max(1, promised - 1 - promised // 50)


def _pictures(
    stream: av.VideoStream, footage: Footage, guard: Guard, *, in_order: bool
) -> Iterator[tuple[float, Picture]]:
    """Decode once, front to back; a frame that cannot be trusted counts as missing.

    `in_order`: the container stores no presentation times (avi), so the k-th frame has the k-th time.
    """
    decoder = _decoder(stream, guard)
    unit_s = float(stream.time_base or 1)
    num_frames, last_s = 0, -math.inf
    for frame in _frames(decoder, footage.packets, guard):
        guard.size(frame.height, frame.width)
        guard.frames(num_frames + 1)
        ordered_s = float(footage.times_s[min(num_frames, footage.times_s.size - 1)])
        time_s = ordered_s if in_order or frame.pts is None else frame.pts * unit_s
        num_frames += 1
        if time_s > last_s:  # of frames with one timestamp the first is taken
            last_s = time_s
            yield time_s, picture(frame, _pixel_aspect(stream, decoder))
    if num_frames < footage.least_frames:
        raise UnreadableClip(
            f"only {num_frames} of the file's {footage.times_s.size} or more {decoder.codec.canonical_name} frames "
            f"decode, under the {footage.least_frames} needed: it is cut or damaged; upload the whole file or "
            "re-encode it"
        )


def _decoder(stream: av.VideoStream, guard: Guard) -> VideoCodecContext:
    """One thread: clips are decoded side by side. Alpha of vp8 and vp9 is known to libvpx alone."""
    decoder: VideoCodecContext = stream.codec_context
    with_alpha = ALPHA_DECODERS.get(decoder.codec.canonical_name)
    if with_alpha and stream.metadata.get("alpha_mode") == "1":
        decoder = cast(VideoCodecContext, av.CodecContext.create(with_alpha, "r"))
    decoder.thread_count = 1
    # A stream may be larger than its header says; twice the limit, since the decoder counts its padding too.
    decoder.options = {"max_pixels": str(2 * guard.limits.max_frame_pixels)}
    return decoder


def _frames(decoder: VideoCodecContext, packets: Sequence[Packet], guard: Guard) -> Iterator[av.VideoFrame]:
    """The frames that can be trusted: after an error none is until the next key frame, for each repeats its damage."""
    trusted = True
    for packet in (*packets, None):
        guard.clock()
        try:
            frames = decoder.decode(packet)
        except FFMPEG_ERRORS:
            guard.size(decoder.height, decoder.width)  # what the stream itself said, where max_pixels stopped it
            trusted = False
            continue
        for frame in frames:
            trusted = not frame.is_corrupt and (trusted or frame.key_frame)
            if trusted:
                yield frame


def _pixel_aspect(stream: av.VideoStream, decoder: VideoCodecContext) -> float:
    """Width of a pixel over its height; an absurd one is taken for 1."""
    aspect = float(stream.sample_aspect_ratio or decoder.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
