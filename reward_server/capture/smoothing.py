"""Smooths a clip in time, as cameras, phones and video editors do: a temporal denoiser, or a stabiliser.

Today's generators are smoother than a hand-held camera. So smoothness must not tell real from faulty: pretraining
smooths a share of its views before it makes their faulty twins, real and faulty ones alike. The denoiser is FFmpeg's.
The stabiliser evens out the camera's path and leaves a steady pan as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
from av.filter import Graph
from numpy.polynomial.polynomial import polyfit, polyval
from numpy.typing import NDArray

from protos.types import Clip

SHARES = {"denoised": 0.25, "stabilised": 0.15}
DENOISER, WINDOW = "atadenoise", 5  # averages this many frames where they are alike
EVENED_FRAMES = 4.0  # standard deviation of the Gaussian that evens out the path
ZOOM = 1.06  # hides most of the borders that the stabiliser moves into the picture
POINTS, LEAST_POINTS = 200, 12
LEAST_AGREED, LEAST_SPREAD = 0.5, 0.15  # shares of the points, and of the picture's sides (standard deviation)

Frames = NDArray[np.uint8]  # [T,H,W,3]


def drawn(rng: np.random.Generator) -> str:
    """The name of a way to smooth a view, by SHARES, or "" for none."""
    place = float(rng.random())
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return ""


def smoothed(clip: Clip, name: str) -> Clip:
    """The clip with as many frames of the same size and rate. Raises RuntimeError if this FFmpeg has no denoiser."""
    if not name:
        return clip
    frames = np.ascontiguousarray(clip.frames.transpose(0, 2, 3, 1))
    changed = {"denoised": _denoised, "stabilised": _stabilised}[name](frames)
    return Clip(frames=np.ascontiguousarray(changed.transpose(0, 3, 1, 2)), fps=clip.fps)


def _denoised(frames: Frames) -> Frames:
    if DENOISER not in av.filter.filters_available:
        raise RuntimeError(f"this FFmpeg has no filter {DENOISER}; install the package av from PyPI")
    found = list(_filtered(frames, DENOISER, f"s={WINDOW}"))
    if len(found) != len(frames):
        raise RuntimeError(
            f"{DENOISER} returned {len(found)} of {len(frames)} frames; install the package av from PyPI"
        )
    return np.stack(found)


def _filtered(frames: Frames, name: str, options: str) -> Iterator[Frames]:
    """The frames through one of FFmpeg's filters."""
    graph, tick = Graph(), Fraction(1, 25)  # the filter does not read times
    _, height, width, _ = frames.shape
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("yuv444p"), time_base=tick)
    between, sink = graph.add(name, options), graph.add("buffersink")
    source.link_to(between)
    between.link_to(sink)
    graph.configure()
    for number, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv444p")
        frame.pts, frame.time_base = number, tick
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            pulled = graph.pull()
        except (av.EOFError, av.BlockingIOError):
            return
        assert isinstance(pulled, av.VideoFrame), "the graph filters pictures alone"
        yield np.asarray(pulled.to_ndarray(format="rgb24"), np.uint8)


def _stabilised(frames: Frames) -> Frames:
    """The frames on an even path. As they are, if it is not sure how the camera moved, or if it shook too far."""
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    steps = [_step(*pair) for pair in pairwise(gray)]
    path = np.cumsum([np.zeros(3), *(step for step in steps if step is not None)], axis=0)
    if len(path) < len(frames):
        return frames
    time = np.arange(len(path))
    shake = path - polyval(time, polyfit(time, path, 1)).T  # a steady pan and a steady turn are no shake
    moves = cv2.GaussianBlur(shake, (1, 0), 0.1, sigmaY=EVENED_FRAMES, borderType=cv2.BORDER_REPLICATE) - shake
    if np.abs(moves[:, :2]).max() > (ZOOM - 1) / 2 * min(gray[0].shape):
        return frames
    return np.stack([_moved(frame, *move) for frame, move in zip(frames, moves, strict=True)])


def _step(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64] | None:
    """How the camera shifts the middle of the picture, x and y in px, and turns it, in radians. None: not sure."""
    points = cv2.goodFeaturesToTrack(first, POINTS, 0.01, 8)
    if points is None or len(points) < LEAST_POINTS:
        return None
    moved, found, _ = cv2.calcOpticalFlowPyrLK(first, second, points, None)  # type: ignore[call-overload]
    kept = found.ravel() == 1
    fit, agree = cv2.estimateAffinePartial2D(points[kept], moved[kept]) if kept.sum() >= LEAST_POINTS else (None, None)
    if fit is None or agree.mean() < LEAST_AGREED:
        return None
    size = np.array(first.shape[::-1])
    if (points[kept][agree.ravel() == 1, 0].std(axis=0) < LEAST_SPREAD * size).any():
        return None  # one thing moves, and not the camera
    shift = fit[:, :2] @ (size / 2) + fit[:, 2] - size / 2
    return np.array([*shift, np.arctan2(fit[1, 0], fit[0, 0])])


def _moved(frame: Frames, x_px: float, y_px: float, turn: float) -> Frames:
    height, width = frame.shape[:2]
    place = cv2.getRotationMatrix2D((width / 2, height / 2), -float(np.degrees(turn)), ZOOM)
    place[:, 2] += np.array([ZOOM * x_px, ZOOM * y_px])
    shown = cv2.warpAffine(frame, place, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(shown, np.uint8)
