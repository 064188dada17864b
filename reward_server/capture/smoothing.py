"""Smooths a clip in time, as cameras, phones and video editors do: a temporal denoiser, or a stabiliser.

Today's generators are smoother than a hand-held camera. So smoothness must not tell real from faulty: pretraining
smooths a share of its views before it makes their faulty twins, real and faulty ones alike. The filters are FFmpeg's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from protos.types import Clip

DENOISER, STABILISER = "atadenoise", "deshake"
CHANCES = {DENOISER: 0.25, STABILISER: 0.15}
WINDOW = 5  # frames that the denoiser averages where they are alike
REACH_PX = 16  # the largest shift of a frame that the stabiliser undoes
OPTIONS = {DENOISER: f"s={WINDOW}", STABILISER: f"rx={REACH_PX}:ry={REACH_PX}:edge=mirror"}


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """A filter, one of CHANCES, or none ("")."""

    filter: str = ""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a filter that this build of FFmpeg has, or none."""
        place = float(rng.random())
        for name, chance in CHANCES.items():
            if place < chance:
                return cls(filter=name if name in av.filter.filters_available else "")
            place -= chance
        return cls()

    def apply(self, clip: Clip) -> Clip:
        """The clip with as many frames of the same size and rate."""
        if not self.filter:
            return clip
        frames = np.stack(list(_filtered(clip.frames.transpose(0, 2, 3, 1), self.filter, OPTIONS[self.filter])))
        if len(frames) != len(clip.frames):
            raise RuntimeError(f"{self.filter} returned {len(frames)} of {len(clip.frames)} frames; use another FFmpeg")
        return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=clip.fps)


def _filtered(frames: NDArray[np.uint8], name: str, options: str) -> Iterator[NDArray[np.uint8]]:
    """Frames [T,H,W,3] through one of FFmpeg's filters."""
    graph, tick = Graph(), Fraction(1, 25)  # the filters do not read times
    _, height, width, _ = frames.shape
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("yuv444p"), time_base=tick)
    between, sink = graph.add(name, options), graph.add("buffersink")
    source.link_to(between)
    between.link_to(sink)
    graph.configure()
    for number, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format="yuv444p")
        frame.pts, frame.time_base = number, tick
        graph.push(frame)
    graph.push(None)
    for _ in frames:
        yield np.asarray(_pulled(graph).to_ndarray(format="rgb24"), np.uint8)


def _pulled(graph: Graph) -> av.VideoFrame:
    frame = graph.pull()
    assert isinstance(frame, av.VideoFrame), "the graph filters pictures alone"
    return frame
