"""Odd but lawful clip files, made on the fly: what cameras, browsers, recorders and animation tools write.

Each maker returns the bytes of one file. Frames are `media.texture`, so that every frame differs from every other.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition
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


def b_frames_in_avi(frames: Frames) -> bytes:
    """AVI stores no presentation times: frames come in decoding order unless they are put in order."""
    return media.video(frames, fps=12, container="avi", codec_options={**GOOD, "bf": "3", "b-pyramid": "normal"})


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
    kept = np.random.default_rng(seed).random(len(frames)) >= share
    kept[[0, -1]] = True
    at = np.flatnonzero(kept)
    return media.video(frames[at], ticks=[round(1000 * index / fps) for index in at], **LOSSLESS)


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
