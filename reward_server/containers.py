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
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from reward_server.errors import UnreadableClip
from reward_server.reel import Guard, Picture, Reel, over_black

if TYPE_CHECKING:  # generic in its stub only
    Packet = av.Packet[av.VideoStream]

FFMPEG_ERRORS = (av.FFmpegError, OSError, ValueError)
# Without both flags swscale's shortcuts darken a picture by up to two levels.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
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
        stream = _video_stream(container)
        guard.size(stream.codec_context.height, stream.codec_context.width)
        guard.frames(stream.frames if form != "gif" else 0)
        footage = _footage(container, stream, form, guard)
        yield Reel(
            codec=stream.codec_context.codec.canonical_name,
            times_s=footage.times_s,
            pictures=_pictures(stream, footage, guard, in_order=form == "avi"),
        )


def _open(data: bytes, form: str, guard: Guard) -> InputContainer:
    """`codec_whitelist` names no codec, so that probing cannot decode; `io_open` forbids any other file."""
    try:
        return av.open(
            io.BytesIO(data),
            mode="r",
            format=form,
            container_options={"codec_whitelist": "none"},
            io_open=_refuse_to_open,
            metadata_errors="replace",
            timeout=guard.max_decode_s,
        )
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
    packets: list[Packet] = []
    try:
        for packet in container.demux(stream):
            guard.clock()
            if packet.size:
                packets.append(packet)
                guard.frames(len(packets))
    except FFMPEG_ERRORS as error:
        guard.clock()
        if not packets:
            raise UnreadableClip(f"the file holds no readable frame ({_reason(error)}); re-encode it") from error
    return packets  # a damaged tail ends the packets; what is missing is counted against the index


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
    return stream.codec_context.codec.canonical_name == "vp8" and not bytes(packet)[0] & 16


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
    """Decode once, front to back. Frames that the decoder calls corrupt count as missing.

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
            yield time_s, _picture(frame, _pixel_aspect(stream, decoder))
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
    decoder.options = {"max_pixels": str(guard.limits.max_frame_pixels)}  # a stream may lie in its header
    return decoder


def _frames(decoder: VideoCodecContext, packets: Sequence[Packet], guard: Guard) -> Iterator[av.VideoFrame]:
    for packet in (*packets, None):
        guard.clock()
        try:
            frames = decoder.decode(packet)
        except FFMPEG_ERRORS:
            guard.size(decoder.height, decoder.width)  # what the stream itself said, where max_pixels stopped it
            continue
        yield from (frame for frame in frames if not frame.is_corrupt)


def _pixel_aspect(stream: av.VideoStream, decoder: VideoCodecContext) -> float:
    """Width of a pixel over its height; an absurd one is taken for 1."""
    aspect = float(stream.sample_aspect_ratio or decoder.sample_aspect_ratio or 1)
    return aspect if 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT else 1.0


def _picture(frame: av.VideoFrame, pixel_aspect: float) -> Picture:
    a, b, c, d = _display_matrix(frame)
    size = (frame.height, round(frame.width * pixel_aspect))
    height, width = size[::-1] if abs(b) > abs(a) else size
    return Picture(
        height_px=height,
        width_px=max(1, width),
        rgb=partial(_rgb, frame, (a, b, c, d)),
        rotation_deg=round(math.degrees(math.atan2(-c, d)) / 90) * 90 % 360,
    )


def _display_matrix(frame: av.VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d) of x' = ax + cy, y' = bx + dy, with y down: how a pixel moves on its way to the screen."""
    try:
        a, b, _, c, d = np.frombuffer(bytes(cast(Any, frame.side_data)["DISPLAYMATRIX"]), np.int32)[:5].tolist()
    except (KeyError, ValueError):  # none, or PyAV does not know another of the frame's side data
        turn = math.radians(-frame.rotation)
        a, b, c, d = math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
    return a, b, c, d


def _rgb(frame: av.VideoFrame, matrix: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    has_alpha = any(component.is_alpha for component in frame.format.components)
    try:
        converted = frame.reformat(format="rgba" if has_alpha else "rgb24", interpolation=EXACT, threads=1)
        pixels = np.asarray(converted.to_ndarray(), dtype=np.uint8)
    except FFMPEG_ERRORS as error:
        raise UnreadableClip(
            f"{frame.format.name} frames of colour matrix {frame.colorspace} cannot be converted to RGB "
            f"({_reason(error)}); re-encode the clip as yuv420p, BT.709"
        ) from error
    return _upright(over_black(pixels) if has_alpha else pixels, matrix)


def _upright(pixels: NDArray[np.uint8], matrix: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Turn and mirror [H,W,3] to the nearest of the eight ways that a display matrix can ask for."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels, along_x, along_y = pixels.swapaxes(0, 1), c, b
    else:
        along_x, along_y = a, d
    return pixels[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
