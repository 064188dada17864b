"""Writes frames to video files without visible loss: FFV1 for gray sequences, H.264 at a low CRF otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from reward_server.decoding.encode import EXACT

OPTIONS = {"libx264": {"crf": "10", "preset": "veryfast", **EXACT["libx264"]}, "ffv1": {}}


def write_video(
    path: Path, frames: Iterable[NDArray[np.uint8]], fps: float, codec: Literal["libx264", "ffv1"] = "libx264"
) -> int:
    """Write frames [H,W,3], or gray frames [H,W] with FFV1, with even sides. Returns the number of frames.

    The same frames give the same bytes. The file appears only when complete.
    """
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    num = 0
    with av.open(str(partial), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=OPTIONS[codec])
        stream.thread_count = 1
        for frame in frames:
            gray = frame.ndim == 2
            if num == 0:  # the first frame opens the codec, which cannot change afterwards
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "gray" if gray else "yuv420p" if codec == "libx264" else "bgr0"
            picture = av.VideoFrame.from_ndarray(frame, format="gray" if gray else "rgb24")
            container.mux(stream.encode(picture))
            num += 1
        container.mux(stream.encode())
    partial.replace(path)
    return num
