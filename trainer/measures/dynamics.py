"""Measures how much a clip moves: VBench's dynamic degree, and the continuous value behind it.

VBench computes flow with RAFT, this module with OpenCV's DIS. The figures can be compared with each other, but not with
VBench's tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from trainer.measures.tracks import SHORT_SIDE_PX, gray

SAMPLE_FPS = 8.0
TOP_SHARE = 0.05  # share of a pair's pixels that is measured: those with the largest flow


@dataclass(frozen=True, kw_only=True)
class DynamicDegree:
    """How much a clip moves.

    `flow_px` is the flow of the fastest 5 % of pixels, averaged over pairs of frames, in pixels of a clip whose shorter
    side is 256. `dynamic` is VBench's boolean.
    """

    flow_px: float
    dynamic: bool


def dynamic_degree(clip: Clip) -> DynamicDegree:
    """The dynamic degree of a clip, sampled at about 8 frames per second.

    A pair of neighbouring frames moves if its flow is above 6 px. A clip is dynamic if at least 4 pairs per 16 frames
    move. Raises ValueError if fewer than two frames are sampled.
    """
    stride = max(1, round(clip.fps / SAMPLE_FPS))
    frames = [gray(frame) for frame in clip.frames[::stride]]
    if len(frames) < 2:
        raise ValueError(
            f"a clip has {len(frames)} frames when sampled at {SAMPLE_FPS:g} per second; give a clip with at least 2"
        )
    scale = SHORT_SIDE_PX / min(frames[0].shape)
    flow_px = np.array([_top_flow(*pair) for pair in pairwise(frames)]) * scale
    needed = round(4 * len(frames) / 16)
    return DynamicDegree(flow_px=float(flow_px.mean()), dynamic=bool((flow_px > 6.0).sum() >= max(1, needed)))


def _top_flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mean flow of the fastest pixels, in pixels. Frames that are too small for DIS are enlarged first."""
    enlarged: int = max(1, -(-64 // min(first.shape)))
    size = (first.shape[1] * enlarged, first.shape[0] * enlarged)
    pair = [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in (first, second)]
    estimator: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = estimator.calc(pair[0], pair[1], None)
    speed: NDArray[np.float64] = np.sort(np.hypot(flow[..., 0], flow[..., 1]).ravel())
    share: Any = speed[-max(1, int(TOP_SHARE * speed.size)) :].mean()
    return float(share) / enlarged
