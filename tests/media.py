"""Makes test clips: videos in any container and codec, animated webp, tensors, and damaged copies.

Frames here are uint8 [T,H,W,3]. A last axis of 1 is gray, and one of 4 has alpha. The frames of `numbered` show their
index, and those of `texture` a moving picture.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray
from PIL import Image

from protos.codec import clip_to_tensor
from protos.types import Clip, Limits, Media, Submission

Frames = NDArray[np.uint8]
LIMITS = Limits(
    max_bytes=8 * 1024**2, max_frames=300, max_frame_pixels=640 * 480, max_duration_s=30.0, max_clips_per_request=8
)
LAYOUTS = {1: "gray", 3: "rgb24", 4: "rgba"}
IDENTITY = (1, 0, 0, 1)


def numbered(num_frames: int, height: int = 32, width: int = 48) -> Frames:
    """Frames in which every pixel of frame i has the gray level 2i. At most 128. Exact in every lossless codec."""
    levels = (2 * np.arange(num_frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)).copy()


def numbers(frames: NDArray[np.uint8]) -> list[int]:
    """The indices in `numbered` of these frames [T,3,H,W]. Fails if a frame is not one of them."""
    assert frames.min(axis=(1, 2, 3)).tolist() == frames.max(axis=(1, 2, 3)).tolist()
    levels = frames[:, 0, 0, 0]
    assert not (levels % 2).any()
    return [int(level) // 2 for level in levels]


def texture(num_frames: int, height: int = 64, width: int = 96, *, seed: int = 0, step: int = 2) -> Frames:
    """Smooth coloured noise that moves `step` pixels to the left per frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, (width + step * num_frames) // 8 + 2, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((coarse.shape[1] * 8, coarse.shape[0] * 8), Image.Resampling.BICUBIC)
    whole = np.asarray(large)
    return np.stack([whole[:height, step * i : step * i + width] for i in range(num_frames)])


def video(
    frames: Frames,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: float = 24.0,
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
    colour: tuple[int, int] | None = None,
    with_audio: bool = False,
) -> bytes:
    """A video file. `ticks` are the frames' timestamps in units of `time_base`. Without them frames are 1/fps apart.

    `colour` is (matrix, range) in ffmpeg's numbers. The frames are converted to it, and the file declares it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=container, options=options or {}) as output:
            stream = output.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = pix_fmt
            stream.options = {"threads": "1", **(codec_options or {})}
            if ticks is not None:
                stream.codec_context.time_base = time_base
            if pixel_aspect is not None:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if colour is not None:
                stream.codec_context.colorspace, stream.codec_context.color_range = colour
            audio = output.add_stream("aac", rate=16000) if with_audio else None
            for index, pixels in enumerate(frames):
                frame = _frame(pixels, pix_fmt, colour)
                if ticks is not None:
                    frame.pts, frame.time_base = ticks[index], time_base
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if audio is not None:
                _mux_silence(output, audio)
        return path.read_bytes()


def sound(container: str = "mp4", *, with_cover: bool = False) -> bytes:
    """A file with audio only, and with a cover picture if asked for."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        audio = output.add_stream("aac", rate=16000)
        if with_cover:
            cover = output.add_stream("mjpeg", rate=1)
            cover.height, cover.width, cover.pix_fmt = 64, 96, "yuvj420p"
            cover.disposition = Disposition.attached_pic
            output.mux(cover.encode(_frame(texture(1)[0], "yuvj420p", None)))
            output.mux(cover.encode(None))
        _mux_silence(output, audio)
    return buffer.getvalue()


def gif(frames: Frames, *, fps: float = 10.0) -> bytes:
    return video(frames, container="gif", codec="gif", pix_fmt="rgb8" if frames.shape[-1] == 3 else "gray", fps=fps)


def webp(frames: Frames, durations_ms: int | list[int] = 100) -> bytes:
    """Animated webp, lossless, with alpha if the frames have it."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "WEBP", save_all=True, append_images=images[1:], duration=durations_ms, lossless=True, exact=True
    )
    return buffer.getvalue()


def tensor(frames: Frames, fps: float) -> bytes:
    return clip_to_tensor(Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=fps))


def submission(payload: bytes, media: Media = Media.CONTAINER) -> Submission:
    return Submission(payload=payload, media=media)


def with_display_matrix(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The mp4 with the matrix (a, b, c, d) in its track header, where x' = ax + cy and y' = bx + dy."""
    fixed = [round(value * 65536) for value in (*IDENTITY, *matrix)]
    at = mp4.index(_matrix(*fixed[:4]), mp4.index(b"tkhd"))
    return mp4[:at] + _matrix(*fixed[4:]) + mp4[at + 36 :]


def with_declared_size(mp4: bytes, width: int, height: int) -> bytes:
    """The mp4 with another frame size in its sample description. The stream itself is unchanged."""
    at = mp4.index(b"avc1", mp4.index(b"stsd")) + 28
    return mp4[:at] + struct.pack(">HH", width, height) + mp4[at + 4 :]


def with_noise(payload: bytes, first: float, last: float, seed: int = 0) -> bytes:
    """The payload with noise in place of the bytes between two fractions of its length."""
    start, stop = int(len(payload) * first), int(len(payload) * last)
    noise = np.random.default_rng(seed).integers(0, 256, stop - start, dtype=np.uint8).tobytes()
    return payload[:start] + noise + payload[stop:]


def _frame(pixels: Frames, pix_fmt: str, colour: tuple[int, int] | None) -> av.VideoFrame:
    layout = LAYOUTS[pixels.shape[-1]]
    frame = av.VideoFrame.from_ndarray(pixels[..., 0] if layout == "gray" else np.ascontiguousarray(pixels), layout)
    if colour is not None:
        frame = frame.reformat(format=pix_fmt, dst_colorspace=colour[0], dst_color_range=colour[1])
        frame.colorspace, frame.color_range = colour
    return frame


def _mux_silence(output: av.container.OutputContainer, stream: av.AudioStream) -> None:
    for index in range(8):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 1024 * index
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def _matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
