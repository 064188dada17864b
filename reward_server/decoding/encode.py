"""Encodes decoded frames as mp4 bytes in memory, for the matched protocol and for the benchmark's synthetic clips."""

from __future__ import annotations

import io
from fractions import Fraction

import av

from protos.types import Clip


def encode_h264(clip: Clip, *, crf: int = 18) -> bytes:
    """Encode the clip as an h264 mp4 (yuv420p). `crf`: 0 (lossless) to 51 (worst). Raises ValueError for odd sides."""
    _, _, height, width = clip.frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"h264 in yuv420p needs even sides, got {height}x{width}; crop a pixel")
    buffer = io.BytesIO()
    rate = Fraction(clip.fps).limit_denominator(1001)
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # so that every machine writes the same bytes
        for image in clip.frames.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
