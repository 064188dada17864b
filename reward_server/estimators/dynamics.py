"""Measures how much a clip moves, from its `Motion`: camera and object motion, dynamic degree, surviving tracks.

The pipeline calls it after the discriminators. No reward depends on it. It reads only parts of a Motion that mean the
same in every profile: flow in pixels of the flow's own frame, its confidence, and visibility. All of it runs on the CPU
on a grid of about a thousand flow vectors per frame pair; a GPU sends only that grid.

Legend: P frame pairs, R rows and C columns of the grid, M = R*C grid points, S sampled pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import DYNAMICS, Dynamics
from reward_server.motion import Motion

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

GRID_POINTS = 1200  # at most this many flow vectors of a frame pair are read; a quarter of them fit the camera's motion
LEAST_CONFIDENCE = 0.1  # of a flow vector that counts: embedded 1.6 px of error, shift 2.3 times the median uncertainty
LEAST_POINTS = 12  # confident vectors in a frame pair; with fewer, all its vectors count
INLIER_HEIGHTS = 1 / 250  # frame heights: a vector that differs less from the camera's motion belongs to it
LEAST_INLIERS = 0.25  # share of a frame's fitted vectors that a homography or an affine motion must explain
MAX_TRIALS = 200  # random samples of a fit, which bounds its time
MAX_PERSPECTIVE = 2.0  # largest change of scale that the perspective part of a homography may cause in the frame
VISIBLE = 0.5  # a track is alive above this visibility

# VBench's rule (Huang et al. 2024, arXiv 2311.17982; vbench/dynamic_degree.py of github.com/Vchitect/VBench)
VBENCH_FPS = 8.0  # every round(fps / 8)-th frame is used
VBENCH_TOP = 0.05  # the fastest 5 % of pixels
VBENCH_PX = 6.0  # their mean flow must be above this in a frame of 256 px on its shorter side
VBENCH_SIDE_PX = 256.0
VBENCH_PAIRS = 4 / 16  # pairs that must move, per sampled frame


def mean_dynamics(motions: Sequence[Motion]) -> Dynamics:
    """The dynamics of a clip: the mean over its windows."""
    windows = [dynamics(motion) for motion in motions]
    return Dynamics(**{name: sum(getattr(one, name) for one in windows) / len(windows) for name in DYNAMICS})


def dynamics(motion: Motion) -> Dynamics:
    """How much one window moves. The same Motion gives the same bits.

    Camera motion is what a homography explains: the mean length of its displacement over the frame. Object motion is
    the mean length of the flow minus that displacement, over vectors with enough confidence, and total motion that of
    the flow. So parallax counts as object motion, and an object that fills the frame as camera motion. A profile that
    stretches clips to its own frame measures the stretched clip.
    """
    height, width = motion.flow.shape[-2:]
    places, flow, sure = _sampled(motion)
    camera = np.stack([_camera_flow(places, *pair, height * INLIER_HEIGHTS) for pair in zip(flow, sure, strict=True)])
    everywhere = np.ones_like(sure)
    lengths = [_mean_length(flow, sure), _mean_length(camera, everywhere), _mean_length(flow - camera, sure)]
    total, by_camera, by_objects = np.array(lengths) * motion.fps / height
    return Dynamics(
        total_motion=float(total),
        camera_motion=float(by_camera),
        object_motion=float(by_objects),
        dynamic_degree=float(_is_dynamic(places, flow, motion.fps, min(height, width))),
        tracks_alive=float((motion.visibility[-1] > VISIBLE).float().mean()),
    )


def _sampled(motion: Motion) -> tuple[Floats, Floats, Bools]:
    """A regular grid: places [R,C,2] (x, y) px, flow [P,R,C,2] px, and whether a vector counts [P,R,C]."""
    height, width = motion.flow.shape[-2:]
    step = max(1, math.ceil(math.sqrt(height * width / GRID_POINTS)))
    grid = (..., slice(min(step // 2, height - 1), None, step), slice(min(step // 2, width - 1), None, step))
    flow = motion.flow[grid].permute(0, 2, 3, 1).contiguous().cpu().numpy()
    sure = (motion.flow_confidence[grid] >= LEAST_CONFIDENCE).cpu().numpy()
    sure |= (sure.sum(axis=(1, 2)) < LEAST_POINTS)[:, None, None]
    rows, columns = np.arange(height)[grid[1]], np.arange(width)[grid[2]]
    return np.stack(np.meshgrid(columns, rows), axis=-1).astype(np.float32), flow, sure


# --- camera and objects ---------------------------------------------------------------------------


def _camera_flow(places: Floats, flow: Floats, sure: Bools, tolerance_px: float) -> Floats:
    """Displacement [R,C,2] px by the camera: of a homography, else of an affine motion, else of a translation.

    A model is refused if it explains too little of the frame, or if it folds the frame. The translation is the median
    of the vectors that count.
    """
    fitted, chosen = np.s_[::2, ::2], sure[::2, ::2]
    start = places[fitted][chosen]
    end = start + flow[fitted][chosen]
    for fit in (_homography, _affine):
        matrix, num_inliers = fit(start, end, tolerance_px)
        if matrix is not None and num_inliers >= LEAST_INLIERS * chosen.size and _keeps_scale(matrix, places):
            moved = cv2.perspectiveTransform(places.reshape(1, -1, 2), matrix).reshape(places.shape)
            return np.asarray(moved - places, np.float32)
    return np.broadcast_to(np.median(flow[sure], axis=0), places.shape)


def _homography(start: Floats, end: Floats, tolerance_px: float) -> tuple[Any, int]:
    """The homography [3,3] from points [M,2] to points [M,2], None if there is none, and how many it explains."""
    if len(start) < 4:
        return None, 0
    matrix, inliers = cv2.findHomography(start, end, cv2.USAC_FAST, tolerance_px, maxIters=MAX_TRIALS)
    return matrix, 0 if matrix is None else int(inliers.sum())


def _affine(start: Floats, end: Floats, tolerance_px: float) -> tuple[Any, int]:
    """The same for an affine motion."""
    if len(start) < 3:
        return None, 0
    matrix, inliers = cv2.estimateAffine2D(
        start, end, method=cv2.RANSAC, ransacReprojThreshold=tolerance_px, maxIters=MAX_TRIALS
    )
    return (None, 0) if matrix is None else (np.vstack([matrix, (0.0, 0.0, 1.0)]), int(inliers.sum()))


def _keeps_scale(matrix: NDArray[np.float64], places: Floats) -> bool:
    """Whether the homography is finite and its divisor stays near 1 in the frame's corners."""
    corners = places[[0, 0, -1, -1], [0, -1, 0, -1]]
    divisors = corners @ matrix[2, :2] + matrix[2, 2]
    return bool(
        np.isfinite(matrix).all() and (divisors > 1 / MAX_PERSPECTIVE).all() and (divisors < MAX_PERSPECTIVE).all()
    )


def _mean_length(vectors: Floats, counted: Bools) -> float:
    """Mean length of the counted ones of vectors [P,R,C,2]: the mean over frame pairs of the mean over the grid."""
    lengths = np.hypot(vectors[..., 0], vectors[..., 1]) * counted
    return float((lengths.sum(axis=(1, 2), dtype=np.float64) / counted.sum(axis=(1, 2))).mean())


# --- dynamic degree -------------------------------------------------------------------------------


def _is_dynamic(places: Floats, flow: Floats, fps: float, side_px: int) -> bool:
    """VBench's dynamic degree of one window.

    VBench takes every n-th frame, n = max(1, round(fps / 8)), and RAFT's flow between neighbours. A pair moves if the
    fastest 5 % of its pixels move by more than 6 px on average, in a frame whose shorter side is 256 px, times 8 / fps
    below 8 fps. A clip is dynamic if at least round(4 * frames / 16) pairs move.

    Here the flow is the profile's, on the grid, and added up along its path over n frames. At least one pair must move,
    where VBench asks for none of clips with 2 frames. The result cannot be compared with VBench's tables.
    """
    every = min(max(1, round(fps / VBENCH_FPS)), len(flow))
    speeds = np.sort(np.hypot(*np.moveaxis(_over_frames(places, flow, every), -1, 0)).reshape(len(flow) // every, -1))
    top_px = speeds[:, -max(1, int(VBENCH_TOP * speeds.shape[1])) :].mean(axis=1)
    least_px = max(1.0, VBENCH_FPS / fps) * VBENCH_PX * side_px / VBENCH_SIDE_PX
    needed = round(VBENCH_PAIRS * (len(speeds) + 1))
    return int((top_px > least_px).sum()) >= max(1, needed)


def _over_frames(places: Floats, flow: Floats, every: int) -> Floats:
    """Flow [S,R,C,2] px over `every` frames, from frames 0, every, 2 every, ...: each step from the nearest point."""
    starts = np.arange(0, len(flow) - every + 1, every)
    first, last = places[0, 0], places[-1, -1]
    num = np.array(places.shape[1::-1], np.float32)  # C, R
    step = np.maximum((last - first) / np.maximum(num - 1, 1), 1)
    moved = np.zeros((len(starts), *places.shape), np.float32)
    for frame in range(every):
        column, row = np.moveaxis(np.rint((places + moved - first) / step).clip(0, num - 1).astype(np.int64), -1, 0)
        moved += flow[(starts + frame)[:, None, None], row, column]
    return moved
