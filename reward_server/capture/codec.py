"""Encodes and decodes frames with a real codec of random quality, as every clip from the web has been.

The codecs are FFmpeg's: H.264, H.265, VP9 and Motion JPEG. What the decoder returns is what a viewer sees.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Self

import av
import numpy as np
from numpy.typing import NDArray

from protos.reader import open_source
from reward_server.decoding.encode import encoded

Bytes = NDArray[np.uint8]

CODECS = ("libx264", "libx265", "libvpx-vp9", "mjpeg")
SHARES = (0.6, 0.1, 0.1, 0.2)  # how often each is drawn
GOPS = (1, 4, 12, 250)  # frames between key frames
QUALITIES = {"libx264": (16, 38), "libx265": (16, 38), "libvpx-vp9": (20, 52), "mjpeg": (2, 16)}  # lowest is best


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A codec (one of CODECS), its quality (higher is worse), and the frames between key frames."""

    name: str
    quality: int
    gop: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a codec that this build of FFmpeg has."""
        names = [name for name in CODECS if available(name)]
        shares = np.array([SHARES[CODECS.index(name)] for name in names])
        name = str(rng.choice(names, p=shares / shares.sum()))
        low, high = QUALITIES[name]
        return cls(name=name, quality=int(rng.integers(low, high + 1)), gop=int(rng.choice(GOPS)))

    def apply(self, frames: Bytes, fps: float) -> Bytes:
        """Encode and decode frames [T,H,W,3] with even sides; the same number and size of frames comes back."""
        pixels = "yuvj420p" if self.name == "mjpeg" else "yuv420p"
        data = encoded(frames, fps, codec=self.name, options=self._options(), container="matroska", pixels=pixels)
        with open_source(data) as source:
            decoded = [frame for _, frame in source.frames(range(len(source.times_s)))]
        if len(decoded) != len(frames):
            raise RuntimeError(f"{self.name} returned {len(decoded)} of {len(frames)} frames; use another FFmpeg build")
        return np.stack(decoded)

    def _options(self) -> dict[str, str]:
        quality, gop = str(self.quality), str(self.gop)
        return {
            "libx264": {"crf": quality, "g": gop, "preset": "veryfast"},
            "libx265": {"crf": quality, "preset": "ultrafast", "x265-params": f"keyint={gop}:log-level=none:pools=1"},
            "libvpx-vp9": {"crf": quality, "b": "0", "g": gop, "deadline": "realtime", "cpu-used": "8"},
            "mjpeg": {"qmin": quality, "qmax": quality},
        }[self.name]


@functools.cache
def available(name: str) -> bool:
    """Whether this build of FFmpeg can encode with a codec."""
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
