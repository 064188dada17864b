"""Tests that every supported format gives all its frames, in order and at its rate. docs/formats.md lists them.

VVC is read but not tested, because there is no VVC encoder here.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
from PIL import Image

from protos.reader import Source, UnreadableClip, open_source, with_true_times
from tests import media, odd_files
from tests.media import Frames
from tests.odd_files import GOOD

FRAMES = media.texture(24, step=4)


def animated(kind: str, **options: object) -> bytes:
    images = [Image.fromarray(frame) for frame in FRAMES]
    buffer = io.BytesIO()
    images[0].save(buffer, kind, save_all=True, append_images=images[1:], duration=80, **options)
    return buffer.getvalue()


def y4m() -> bytes:
    height, width = FRAMES.shape[1:3]
    head = f"YUV4MPEG2 W{width} H{height} F12:1 Ip A1:1 C420jpeg\n".encode()
    frames = [av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="yuv420p").to_ndarray() for frame in FRAMES]
    return head + b"".join(b"FRAME\n" + frame.tobytes() for frame in frames)


def opaque(frames: Frames) -> Frames:
    return np.concatenate([frames, np.full((*frames.shape[:3], 1), 255, np.uint8)], axis=-1)


def x265(told: str) -> dict[str, object]:
    return {"codec": "libx265", "codec_options": {"x265-params": f"log-level=none:crf=10:{told}"}}


FORMATS: dict[str, Callable[[], bytes]] = {
    "mp4 h264": lambda: media.video(FRAMES, fps=12.5, codec_options=GOOD),
    "mp4 h264 fragmented": lambda: media.video(
        FRAMES, fps=12.5, codec_options=GOOD, options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mp4 h264 open group": lambda: media.video(
        FRAMES, fps=12.5, codec_options={**GOOD, "g": "4", "bf": "2", "x264-params": "open-gop=1"}
    ),
    "mp4 h264 4:4:4": lambda: media.video(FRAMES, fps=12.5, pix_fmt="yuv444p", codec_options=GOOD),
    "mp4 h264 10 bit": lambda: media.video(FRAMES, fps=12.5, pix_fmt="yuv420p10le", codec_options=GOOD),
    "mp4 hevc": lambda: media.video(FRAMES, fps=12.5, **x265("keyint=12")),
    "mp4 hevc open group": lambda: media.video(FRAMES, fps=12.5, **x265("keyint=4:open-gop=1:bframes=2")),
    "mp4 hevc 12 bit": lambda: media.video(FRAMES, fps=12.5, pix_fmt="yuv420p12le", **x265("keyint=12")),
    "mp4 av1 with film grain": lambda: media.video(
        FRAMES,
        fps=12.5,
        codec="libsvtav1",
        codec_options={"preset": "10", "crf": "20", "svtav1-params": "film-grain=20"},
    ),
    "mov prores 4444": lambda: media.video(
        opaque(FRAMES), fps=12.5, container="mov", codec="prores_ks", pix_fmt="yuva444p10le"
    ),
    "mkv h264 live, no duration": lambda: media.video(
        FRAMES, fps=12.5, container="matroska", codec_options=GOOD, options={"live": "1"}
    ),
    "webm vp8": lambda: media.video(
        FRAMES, fps=12.5, container="webm", codec="libvpx", codec_options={"crf": "4", "b": "4M"}
    ),
    "webm vp9": lambda: media.video(FRAMES, fps=12.5, container="webm", codec="libvpx-vp9", codec_options=GOOD),
    "avi mjpeg 4:2:2": lambda: media.video(FRAMES, fps=12.5, container="avi", codec="mjpeg", pix_fmt="yuvj422p"),
    "avi mjpeg 4:4:4": lambda: media.video(FRAMES, fps=12.5, container="avi", codec="mjpeg", pix_fmt="yuvj444p"),
    "avi mpeg4 with b-frames": lambda: media.video(
        FRAMES,
        fps=12.5,
        container="avi",
        codec="mpeg4",
        codec_options={"bf": "2", "q": "2", "flags": "+qscale"},
    ),
    "ts h264": lambda: media.video(FRAMES, fps=12.5, container="mpegts", codec_options=GOOD),
    "gif": lambda: odd_files.gif_of(FRAMES, 80),
    "webp": lambda: media.webp(FRAMES, 80),
    "avif": lambda: animated("AVIF", quality=95),
    "apng": lambda: animated("PNG"),
    "y4m": y4m,
}


def read(payload: bytes) -> tuple[Source, Frames]:
    def use(source: Source) -> tuple[Source, Frames]:
        return source, np.stack([frame for _, frame in source.frames(range(source.times_s.size))])

    with open_source(payload) as opened:
        return with_true_times(opened, use)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_gives_all_its_frames_in_order(name: str) -> None:
    source, frames = read(FORMATS[name]())
    assert frames.shape == FRAMES.shape
    distances = np.abs(frames[:, None].astype(np.int16) - FRAMES[None]).mean(axis=(2, 3, 4))
    assert distances.argmin(axis=1).tolist() == list(range(24))
    assert source.fps == pytest.approx(12 if name == "y4m" else 12.5, rel=0.01)
    assert source.warnings == ()


def test_a_stream_without_its_start_begins_at_a_key_frame() -> None:
    frames = media.texture(36, step=4)
    whole = media.video(
        frames, fps=12, container="mpegts", codec_options={**GOOD, "g": "12", "bf": "2", "x264-params": "open-gop=1"}
    )
    _, found = read(whole[len(whole) // 3 // 188 * 188 :])
    first = len(frames) - len(found)
    distances = np.abs(found[:, None].astype(np.int16) - frames[None]).mean(axis=(2, 3, 4))
    assert first % 12 == 0
    assert distances.argmin(axis=1).tolist() == list(range(first, 36))


def test_a_tiny_clip_and_a_single_frame_are_read() -> None:
    tiny = media.video(FRAMES[:, :16, :16], fps=12, **odd_files.LOSSLESS)
    assert np.array_equal(read(tiny)[1], FRAMES[:, :16, :16])
    source, frames = read(media.video(FRAMES[:1], fps=12, codec_options=GOOD))
    assert (len(frames), source.fps) == (1, 0.0)


def test_a_still_png_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(buffer, "PNG")
    with pytest.raises(UnreadableClip, match="a PNG picture"):
        read(buffer.getvalue())
