"""Odd but lawful clip files, made on the fly: what cameras, browsers, recorders and animation tools write.

Each maker returns the bytes of one file. Frames are `media.texture`, so that every frame differs from every other.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from tests import media
from tests.media import Frames

GOOD = {"crf": "12"}
LOSSLESS = {"container": "matroska", "codec": "ffv1", "pix_fmt": "bgr0"}
TURNED = (0, 1, -1, 0)
MIRRORED = (-1, 0, 0, 1)


def remuxed(files: Sequence[bytes], form: str, ticks: Sequence[int] | None = None) -> bytes:
    """The packets of one file, with other times in 1/90000 s, in another container."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as output, av.open(io.BytesIO(files[0])) as source:
        stream = output.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if ticks is not None:
                packet.time_base = Fraction(1, 90000)
                packet.pts = packet.dts = ticks[index]
            packet.stream = stream
            output.mux(packet)
    return buffer.getvalue()


def woven(fields: Frames) -> Frames:
    """Interlaced frames: the odd rows of each show the next moment."""
    frames = fields[::2].copy()
    frames[:, 1::2] = fields[1::2, 1::2]
    return frames


def b_frames_in_avi(frames: Frames) -> bytes:
    """AVI stores no presentation times: frames come in decoding order unless they are put in order."""
    return media.video(frames, fps=12, container="avi", codec_options={**GOOD, "bf": "3", "b-pyramid": "normal"})


def without_display_times(frames: Frames, form: str) -> bytes:
    """Frames that move in decoding, in a container whose writer gave every packet its decoding time only."""
    return remuxed([moved(frames)], form, [7500 * at for at in range(len(frames))])


def moved(frames: Frames) -> bytes:
    """A file whose frames are decoded in another order than they are shown in."""
    return media.video(frames, fps=12, codec_options={**GOOD, "bf": "3", "b-pyramid": "normal"})


def bottom_up_avi(frames: Frames) -> bytes:
    """Raw pixels with the last row first, as bitmaps of Windows have them: the height in the header is positive."""
    data = media.video(frames[:, ::-1], fps=12.5, container="avi", codec="rawvideo", pix_fmt="bgra")
    at = data.index(b"strf") + 16  # after the name, the size of the chunk and of the header, and the width
    (height,) = struct.unpack("<i", data[at : at + 4])
    assert height == -frames.shape[1]
    return data[:at] + struct.pack("<i", -height) + data[at + 4 :]


def hidden_vp9(frames: Frames) -> bytes:
    """References that are never shown, as packets of their own.

    In one pass libvpx makes none, so each key frame is written twice, first with its show_frame bit off.
    """
    whole = media.video(frames, fps=12, container="webm", codec="libvpx-vp9", codec_options={"g": "6", "crf": "10"})
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(whole)) as source,
        av.open(buffer, "w", format="webm", options={"fflags": "-autobsf"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in (packet for packet in source.demux(video=0) if packet.size):
            if packet.is_keyframe:
                data = bytes(packet)
                hidden = av.Packet(bytes([data[0] & ~2]) + data[1:])
                hidden.stream, hidden.time_base = stream, packet.time_base
                hidden.pts = hidden.dts = max(0, packet.pts - 5)
                hidden.is_keyframe = True
                output.mux(hidden)
            packet.stream = stream
            output.mux(packet)
    return buffer.getvalue()


def concatenated_ts(frames: Frames) -> bytes:
    """Two recordings in one file, the clock starting anew in the second: `cat a.ts b.ts`."""
    half = len(frames) // 2
    return b"".join(
        media.video(part, fps=12, container="mpegts", codec_options={**GOOD, "bf": "0"})
        for part in (frames[:half], frames[half:])
    )


def with_gap(frames: Frames, *, after: int, gap_ms: int) -> bytes:
    ticks = [round(1000 * at / 12) + (gap_ms if at >= after else 0) for at in range(len(frames))]
    return media.video(frames, ticks=ticks, **LOSSLESS)


def in_threes(frames: Frames) -> bytes:
    """Three frames to a time."""
    mjpeg = media.video(frames, fps=12, container="matroska", codec="mjpeg", pix_fmt="yuvj420p")
    return remuxed([mjpeg], "matroska", [7500 * (at // 3) for at in range(len(frames))])


def dropped(frames: Frames, share: float, *, fps: float = 30.0, seed: int = 0) -> bytes:
    """Frames left out at random, the others at their right times."""
    at = kept(len(frames), share, seed)
    return media.video(frames[at], ticks=[round(1000 * index / fps) for index in at], **LOSSLESS)


def kept(num: int, share: float, seed: int = 0) -> NDArray[np.int64]:
    """The positions of the frames that `dropped` keeps."""
    stays = np.random.default_rng(seed).random(num) >= share
    stays[[0, -1]] = True
    return np.flatnonzero(stays)


def two_sizes(frames: Frames) -> bytes:
    """As a browser records when the phone is turned half way: vp8 in webm."""
    half = len(frames) // 2
    turned = np.ascontiguousarray(frames[half:].swapaxes(1, 2))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as output:
        stream = output.add_stream("libvpx", rate=12)
        stream.height, stream.width, stream.pix_fmt = (*frames.shape[1:3], "yuv420p")
        stream.time_base = Fraction(1, 1000)
        for part, first in ((frames[:half], 0), (turned, half)):
            for packet in _encoded(part, first):
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


def _encoded(frames: Frames, first: int) -> list[av.Packet]:
    encoder = av.CodecContext.create("libvpx", "w")
    encoder.height, encoder.width, encoder.pix_fmt = (*frames.shape[1:3], "yuv420p")
    encoder.time_base, encoder.framerate = Fraction(1, 12), Fraction(12)
    encoder.options = {"deadline": "realtime", "lag-in-frames": "0", "crf": "4", "b": "4M"}
    packets: list[av.Packet] = []
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
        frame.pts, frame.time_base = first + index, Fraction(1, 12)
        packets += encoder.encode(frame)
    return packets + encoder.encode(None)


def two_tracks(still: Frames, moving: Frames) -> bytes:
    """A still track first, the moving default track second."""
    return _tracks([(still, 0), (moving, Disposition.default)])


def with_cover(moving: Frames) -> bytes:
    """A one-picture track first, not marked as a cover."""
    return _tracks([(moving[:1] // 2, 0), (moving, 0)])


def _tracks(tracks: Sequence[tuple[Frames, int]]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        streams = []
        for frames, disposition in tracks:
            stream = output.add_stream("ffv1", rate=12)
            stream.height, stream.width, stream.pix_fmt = (*frames.shape[1:3], "bgr0")
            stream.disposition = disposition
            streams.append(stream)
        for (frames, _), stream in zip(tracks, streams, strict=True):
            for pixels in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
            output.mux(stream.encode(None))
    return buffer.getvalue()


def gif_of(frames: Frames, delay_ms: int) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=delay_ms, loop=0, disposal=2)
    return buffer.getvalue()


def see_through(frames: Frames) -> Frames:
    """The left half can be seen through."""
    alpha = np.full((*frames.shape[:3], 1), 255, np.uint8)
    alpha[:, :, : frames.shape[2] // 2] = 0
    return np.concatenate([frames, alpha], axis=-1)


def opaque(frames: Frames) -> Frames:
    """With an alpha channel that hides nothing."""
    return np.concatenate([frames, np.full((*frames.shape[:3], 1), 255, np.uint8)], axis=-1)


def animated(frames: Frames, kind: str, delay_ms: int = 80, **options: object) -> bytes:
    """An animation by Pillow, "AVIF" or "PNG"."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=delay_ms, **options)
    return buffer.getvalue()


def picture(frame: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind)
    return buffer.getvalue()


def y4m(frames: Frames) -> bytes:
    """Raw frames at 12 frames per second."""
    height, width = frames.shape[1:3]
    head = f"YUV4MPEG2 W{width} H{height} F12:1 Ip A1:1 C420jpeg\n".encode()
    raw = [av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p").to_ndarray() for frame in frames]
    return head + b"".join(b"FRAME\n" + frame.tobytes() for frame in raw)


def m2ts(stream: bytes) -> bytes:
    """A transport stream as camcorders write it: 4 bytes of time before each packet."""
    return b"".join(bytes(4) + stream[at : at + 188] for at in range(0, len(stream), 188))


def edited_mov(frames: Frames) -> bytes:
    """The first eight frames are before time 0, so that an edit list cuts them off. 20 frames per second."""
    ticks = list(range(-400, 50 * len(frames) - 400, 50))
    return media.video(frames, ticks=ticks, container="mov", codec="qtrle", pix_fmt="rgb24")


def cut(payload: bytes, share: float = 0.8) -> bytes:
    """The first part of a file, ending within a packet of a transport stream."""
    return payload[: int(len(payload) * share) // 188 * 188 + 100]


def compressed_index(mp4: bytes) -> bytes:
    """The mp4 with its index declared as compressed, as old QuickTime wrote it."""
    at = mp4.index(b"mvhd")
    return mp4[:at] + b"cmov" + mp4[at + 4 :]


def spoiled(mjpeg: bytes, which: Sequence[int]) -> bytes:
    """The file with some of its JPEG frames wiped out."""
    data, starts = bytearray(mjpeg), []
    while (at := mjpeg.find(b"\xff\xd8\xff", starts[-1] + 1 if starts else 0)) >= 0:
        starts.append(at)
    for index in which:
        size = min(starts[index + 1] - starts[index], 500)
        data[starts[index] : starts[index] + size - 40] = bytes(size - 40)  # keeps the next packet's header
    return bytes(data)


def damaged_webp(webp: bytes, at: int) -> bytes:
    """The animated webp with noise in place of most of frame number `at`."""
    starts = [place for place in range(len(webp)) if webp[place : place + 4] == b"ANMF"]
    start, stop = starts[at] + 60, starts[at + 1]
    return webp[:start] + b"\xff" * (stop - start) + webp[stop:]


def claiming(samples: int, edits: int = 0, handler: bytes = b"vide") -> bytes:
    """An mp4 of a few bytes whose index claims `samples` samples of one byte each."""

    def box(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), name) + body

    media_box = box(b"hdlr", bytes(8) + handler + bytes(13)) + box(
        b"minf",
        box(
            b"stbl",
            box(b"stts", struct.pack(">4I", 0, 1, samples, 2)) + box(b"stsz", struct.pack(">3I", 0, 1, samples)),
        ),
    )
    listed = box(b"edts", box(b"elst", struct.pack(">2I", 0, edits))) if edits else b""
    return box(b"ftyp", b"isom" + bytes(12)) + box(b"moov", box(b"trak", listed + box(b"mdia", media_box)))
