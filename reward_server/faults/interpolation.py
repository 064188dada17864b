"""Resamples a clip at other source times, by motion-compensated interpolation between frames.

For a time between two frames, both are warped to it along their optical flow. The nearer frame gives the pixels, and
the other frame fills the areas that are hidden in the nearer one. So the result neither repeats a frame nor
cross-fades two. Motion that flow cannot follow, such as a fast hand at 12 fps, jumps half way between the frames.

Shapes: T frames, H, W frame size in pixels. Images are [H,W,3] and fields [H,W,2], as in OpenCV.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from protos.types import Clip

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]
Samples = TypeVar("Samples", Floats, Image)

SNAP_FRAMES = 1e-4  # a source time this close to a frame gives that frame
MISS_PX2 = 0.25  # px^2; the squared miss (`_origin`) of the near frame at which the far frame begins to count


def time_remap(clip: Clip, source_times: ArrayLike) -> Clip:
    """Resample a clip at `source_times`, in frames, each within 0..T-1. The fps stays the same.

    The result has one frame per time: uint8 [len(source_times),3,H,W]. Whole times return the frames exactly. Raises
    ValueError unless the times are a list of finite numbers within the clip.
    """
    times = _checked_times(source_times, len(clip.frames))
    lower = np.floor(times).astype(np.int64)
    frames = clip.frames[lower]
    for first in np.unique(lower[times > lower]):
        pair = _Pair(clip.frames[first], clip.frames[first + 1])
        for i in np.flatnonzero((lower == first) & (times > lower)):
            frames[i] = pair.between(float(times[i] - first)).transpose(2, 0, 1)
    return Clip(frames=frames, fps=clip.fps)


def _checked_times(source_times: ArrayLike, num_frames: int) -> NDArray[np.float64]:
    times = np.asarray(source_times, np.float64)
    if times.ndim != 1 or not times.size or not np.isfinite(times).all():
        raise ValueError(f"source_times must be a list of finite numbers, got shape {list(times.shape)}")
    nearest = np.round(times)
    times = np.where(np.abs(times - nearest) < SNAP_FRAMES, nearest, times)
    if times.min() < 0 or times.max() > num_frames - 1:
        raise ValueError(f"source_times must be within 0..{num_frames - 1}, got {times.min():g}..{times.max():g}")
    return times


class _Pair:
    """Two neighbouring frames [3,H,W] with the flow between them in both directions."""

    def __init__(self, first: Image, second: Image) -> None:
        self.images = [np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in (first, second)]
        grays = [np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in self.images]
        self.grid = pixel_grid(*grays[0].shape)
        self.flows = [_flow(grays[0], grays[1]), _flow(grays[1], grays[0])]

    def between(self, phase: float) -> Image:
        """The image [H,W,3] at the fraction `phase`, in (0,1), of the time from the first frame to the second."""
        near = 0 if phase <= 0.5 else 1
        place, miss = self._origin(near, phase)
        far_place, far_miss = self._origin(1 - near, phase)
        main = sample_sharp(self.images[near], place).astype(np.float32)
        fill = sample_linear(self.images[1 - near], far_place)
        share = miss / (miss + far_miss + MISS_PX2)
        return np.asarray(np.rint(main + share[..., None] * (fill - main)), np.uint8)

    def _origin(self, side: int, phase: float) -> tuple[Floats, Floats]:
        """Where in frame `side` the pixels at `phase` come from, [H,W,2], and the squared miss [H,W] in px^2.

        The miss is the distance between a pixel and the point to which the flow takes its origin. It is large where
        the pixel is hidden in that frame.
        """
        ours, theirs = self.flows[side], self.flows[1 - side]
        distance = np.float32(phase if side == 0 else 1 - phase)
        toward = np.asarray(distance * (distance * theirs - (1 - distance) * ours), np.float32)
        place = self.grid - distance * sample_linear(ours, self.grid + toward)
        miss = place + distance * sample_linear(ours, place) - self.grid
        return place, miss[..., 0] ** 2 + miss[..., 1] ** 2


def _flow(first: Image, second: Image) -> Floats:
    """Optical flow [H,W,2] in pixels between two gray images.

    The search goes down to full resolution, because otherwise small fast objects are left behind.
    """
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    search.setFinestScale(0)
    search.setGradientDescentIterations(12)
    search.setPatchStride(6)
    return np.asarray(search.calc(first, second, np.zeros((*first.shape, 2), np.float32)), np.float32)


def pixel_grid(height: int, width: int) -> Floats:
    """The coordinates (x, y) of every pixel: float32 [H,W,2]."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def sample_sharp(image: Image, place: Floats) -> Image:
    """Sample an image at `place` [H,W,2] (x, y) with a Lanczos kernel, which keeps texture. Borders are reflected."""
    x, y = cv2.split(place)
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101), np.uint8)


def sample_linear(values: Samples, place: Floats) -> Samples:
    """Sample values [H,W] or [H,W,C] at `place` [H,W,2] (x, y), linearly. Borders are continued."""
    x, y = cv2.split(place)
    sampled = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, values.dtype)
