"""How much a clip moves: VBench's dynamic degree with its continuous value, and the tracks to draw on a sample.

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

SAMPLE_FPS = 8.0
TOP_SHARE = 0.05  # of the pixels of a pair, those that move most
TRAIL_FRAMES = 8
SHOWN_PX = 256  # shorter side of a drawn clip at least


@dataclass(frozen=True, kw_only=True)
class DynamicDegree:
    """`flow_px` is the mean over pairs of frames of the flow of the top 5 % of pixels, in pixels of a clip whose
    shorter side is 256; `dynamic` is VBench's boolean."""

    flow_px: float
    dynamic: bool


def dynamic_degree(clip: Clip) -> DynamicDegree:
    """Of a clip taken at about 8 frames per second: a pair moves above 6 px, a clip with 4 such pairs per 16 frames."""
    stride = max(1, round(clip.fps / SAMPLE_FPS))
    frames = [_gray(frame) for frame in clip.frames[::stride]]
    if len(frames) < 2:
        raise ValueError(f"a clip of {len(frames)} frames at {SAMPLE_FPS:g} per second has no motion to measure")
    scale = 256 / min(frames[0].shape)
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


def with_tracks(clip: Clip, num_tracks: int = 48) -> Clip:
    """The clip, enlarged if small, with the trails of points that were good to track in its first frame."""
    _, _, height, width = clip.frames.shape
    scale = max(1, -(-SHOWN_PX // min(height, width)))
    images: list[Any] = [
        cv2.resize(
            np.ascontiguousarray(frame.transpose(1, 2, 0)),
            (width * scale, height * scale),
            interpolation=cv2.INTER_NEAREST,
        )
        for frame in clip.frames
    ]
    tracks_TN2, alive_TN = _tracks(clip, num_tracks)
    drawn = [_draw(image, tracks_TN2[: t + 1] * scale, alive_TN[t]) for t, image in enumerate(images)]
    return Clip(frames=np.ascontiguousarray(np.stack(drawn).transpose(0, 3, 1, 2)), fps=clip.fps)


def _tracks(clip: Clip, num_tracks: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lucas-Kanade, frame to frame: positions [T,N,2] (x, y) and whether each point was still followed [T,N]."""
    grays = [_gray(frame) for frame in clip.frames]
    found = cv2.goodFeaturesToTrack(grays[0], num_tracks, 0.01, max(2, min(grays[0].shape) / 16))
    points: Any = np.zeros((0, 1, 2), np.float32) if found is None else found
    tracks, alive = [points[:, 0]], [np.ones(len(points), bool)]
    for before, after in pairwise(grays):
        if len(points):
            follow: Any = cv2.calcOpticalFlowPyrLK
            points, status, _ = follow(before, after, points, None, winSize=(15, 15), maxLevel=2)
            alive.append(alive[-1] & (status[:, 0] == 1))
        else:
            alive.append(alive[-1])
        tracks.append(points[:, 0])
    return np.stack(tracks), np.stack(alive)


def _draw(image: NDArray[np.uint8], trail_TN2: NDArray[np.float32], alive_N: NDArray[np.bool_]) -> NDArray[np.uint8]:
    hues = np.linspace(0, 179, max(1, len(alive_N)), endpoint=False)
    for point in np.flatnonzero(alive_N):
        hsv = np.array([[[hues[point], 255, 255]]], np.uint8)
        colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        trail = trail_TN2[-TRAIL_FRAMES:, point].round().astype(np.int32)
        cv2.polylines(image, [trail[:, None]], isClosed=False, color=colour, thickness=1, lineType=cv2.LINE_AA)
        cv2.circle(image, trail[-1].tolist(), 2, colour, -1, cv2.LINE_AA)
    return image


def _gray(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[3,H,W] to [H,W]."""
    gray: Any = cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    return gray  # type: ignore[no-any-return]
