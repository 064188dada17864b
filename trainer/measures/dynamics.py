"""How much a clip moves: VBench's dynamic degree with its continuous value.

VBench takes RAFT's flow; here it is OpenCV's DIS flow, so figures compare with each other but not with VBench's tables.
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
TOP_SHARE = 0.05  # of the pixels of a pair, those that move most


@dataclass(frozen=True, kw_only=True)
class DynamicDegree:
    """`flow_px` is the mean over pairs of frames of the flow of the top 5 % of pixels, in pixels of a clip whose
    shorter side is 256; `dynamic` is VBench's boolean."""

    flow_px: float
    dynamic: bool


def dynamic_degree(clip: Clip) -> DynamicDegree:
    """Of a clip taken at about 8 frames per second: a pair moves above 6 px, a clip with 4 such pairs per 16 frames."""
    stride = max(1, round(clip.fps / SAMPLE_FPS))
    frames = [gray(frame) for frame in clip.frames[::stride]]
    if len(frames) < 2:
        raise ValueError(f"a clip of {len(frames)} frames at {SAMPLE_FPS:g} per second has no motion to measure")
    scale = SHORT_SIDE_PX / min(frames[0].shape)
    flow_px = np.array([_top_flow(*pair) for pair in pairwise(frames)]) * scale
    needed = round(4 * len(frames) / 16)
    return DynamicDegree(flow_px=float(flow_px.mean()), dynamic=bool((flow_px > 6.0).sum() >= max(1, needed)))


def _top_flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mean magnitude of the fastest pixels, in pixels. Frames too small for DIS are enlarged first."""
    enlarged: int = max(1, -(-64 // min(first.shape)))
    size = (first.shape[1] * enlarged, first.shape[0] * enlarged)
    pair = [cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in (first, second)]
    estimator: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = estimator.calc(pair[0], pair[1], None)
    speed: NDArray[np.float64] = np.sort(np.hypot(flow[..., 0], flow[..., 1]).ravel())
    share: Any = speed[-max(1, int(TOP_SHARE * speed.size)) :].mean()
    return float(share) / enlarged
