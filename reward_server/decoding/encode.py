"""Encodes frames as video bytes in memory, for the capture chain, the matched protocol, and synthetic clips."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from typing import cast

import av
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip

# Without this, x264 writes other bytes on another processor, and on one with AVX-512 even from call to call.
EXACT = {"libx264": {"x264-params": "cpu-independent=1"}}


def encode_h264(clip: Clip, *, crf: int = 18) -> bytes:
    """Encode the clip as an h264 mp4 (yuv420p). `crf`: 0 (lossless) to 51 (worst). Raises ValueError for odd sides."""
    options = {"crf": str(crf), "preset": "medium"}
    return encoded(clip.frames.transpose(0, 2, 3, 1), clip.fps, codec="libx264", options=options, container="mp4")


def encoded(
    frames_THW3: NDArray[np.uint8],
    fps: float,
    *,
    codec: str,
    options: Mapping[str, str],
    container: str,
    pixels: str = "yuv420p",
) -> bytes:
    """Encode RGB frames as `pixels` with one of FFmpeg's codecs and its `options`. Raises ValueError for odd sides.

    With libx264, the same frames give the same bytes on every processor. Its "x264-params" are not for callers.
    """
    height, width = frames_THW3.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{codec} in {pixels} needs even sides, got {height}x{width}; crop a pixel")
    buffer = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(buffer, mode="w", format=container) as output:
        stream = cast(av.VideoStream, output.add_stream(codec, rate=rate, options={**options, **EXACT.get(codec, {})}))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.thread_count = 1  # so that the number of cores does not matter
        for image in frames_THW3:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()
