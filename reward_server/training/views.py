"""Draws random views of a source clip for pretraining: a crop, a frame rate, a time range and a flip.

A view looks as if the clip had been filmed a little differently. So the discriminators learn motion, and not the look
of a few scenes. A real view and its faulty copies share all of this. What a camera and an encoder add is drawn for
each of them apart (`reward_server/capture`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.decoding.decode import Sampling, profile_size, resize_frame
from reward_server.errors import UnreadableClip

RATE_RANGE = (0.625, 1.5)  # as a share of the profile's rate: the rates that a clip can have after its resampling
NEAR = 64  # frames: how far a later draw can start from the first one
FIXED = 0.97  # how often the crop box stands still
ASPECTS = (16 / 9, 4 / 3, 1.0, 3 / 4, 9 / 16)


@dataclass(frozen=True, kw_only=True)
class Take:
    """Evenly spaced frames of one size that views are drawn from, as positions in the file.

    `uneven` is the share of times, at the profile's rate, without a frame nearby.
    """

    positions: NDArray[np.int64]
    fps: float
    height_px: int
    width_px: int
    uneven: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DrawnView:
    """A view before its frames are decoded: the file's frames, the box to crop from each, and the output form."""

    start: int  # its first frame, as an index into the take's positions
    positions: tuple[int, ...]
    boxes: NDArray[np.float64]  # [T,4] x, y, width, height
    height_px: int
    width_px: int
    mirrored: bool
    fps: float

    def cut(self, at: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Crop the view's frame `at`, uint8 [H,W,3], from the file's frame."""
        patch = _cut(frame, self.boxes[at], self.height_px, self.width_px)
        return patch[:, ::-1] if self.mirrored else patch

    def clip(self, frames: Sequence[NDArray[np.uint8]]) -> Clip:
        """The view as a clip, from all its cropped frames."""
        return Clip(frames=np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2)), fps=self.fps)


def draw_view(take: Take, sampling: Sampling, rng: np.random.Generator, near: int | None = None) -> DrawnView:
    """Draw a random view at the profile's size and about its rate.

    It starts anywhere or, if `near` is given, within NEAR frames of that start as far as the clip allows. Raises
    UnreadableClip if the clip is too short.
    """
    stride = _random_stride(take, sampling, rng)
    num = min(sampling.window_frames, (take.positions.size - 1) // stride + 1)
    if rng.random() < 0.15:  # the discriminators also score clips shorter than a window
        num = int(rng.integers(sampling.min_frames, num + 1))
    last = take.positions.size - 1 - (num - 1) * stride
    low, high = (0, last) if near is None else (min(max(0, near - NEAR), last), min(near + NEAR, last))
    start = int(rng.integers(low, high + 1))
    boxes = _camera_path((take.height_px, take.width_px), num, rng)
    height, width = profile_size(*_box_shape(boxes[0]), sampling)
    return DrawnView(
        start=start,
        positions=tuple(take.positions[start : start + (num - 1) * stride + 1 : stride].tolist()),
        boxes=boxes,
        height_px=height,
        width_px=width,
        mirrored=bool(rng.random() < 0.5),
        fps=take.fps / stride,
    )


def _random_stride(take: Take, sampling: Sampling, rng: np.random.Generator) -> int:
    longest = (take.positions.size - 1) // (sampling.min_frames - 1)
    if longest < 1:
        raise UnreadableClip(
            f"the clip has {take.positions.size} frames, {sampling.min_frames} are needed; leave it out"
        )
    slowest, fastest = (share * sampling.fps for share in RATE_RANGE)
    strides = range(1, max(2, round(take.fps / slowest) + 1))
    fitting = [s for s in strides if slowest <= take.fps / s <= fastest and s <= longest]
    return int(rng.choice(fitting)) if fitting else 1


def _camera_path(shape: tuple[int, ...], num: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random crop boxes [T,4] (x, y, width, height): usually fixed, rarely a smooth pan and zoom.

    A pan over footage of a fixed camera has no parallax, as a pan over a photograph has none. So it is rare.
    """
    height, width = shape
    aspect = float(rng.choice(ASPECTS)) if rng.random() < 0.5 else width / height
    largest = min(float(width), height * aspect)
    size = largest * rng.uniform(0.6, 1.0)
    start = _random_box(width, height, aspect, size, rng)
    if rng.random() < FIXED:
        return np.repeat(start[None], num, axis=0)
    end = _random_box(width, height, aspect, min(largest, size * rng.uniform(0.8, 1.25)), rng)
    reach = rng.uniform(0.1, 0.6)
    ease = rng.uniform(-0.5, 0.5)  # the camera speeds up or slows down gently
    t = np.linspace(0, 1, num)[:, None]
    return start + (end - start) * reach * (t + ease * t * (1 - t))


def _random_box(width: int, height: int, aspect: float, size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    box_height = min(height, size / aspect)  # rounding can make size / aspect slightly larger than the height
    return np.array([rng.uniform(0, width - size), rng.uniform(0, height - box_height), size, box_height])


def _box_shape(box: NDArray[np.float64]) -> tuple[int, int]:
    return round(box[3]), round(box[2])


def _cut(frame: NDArray[np.uint8], box: NDArray[np.float64], height: int, width: int) -> NDArray[np.uint8]:
    """Crop a box with sub-pixel accuracy and resize it to the output size."""
    x, y, box_width, box_height = box
    patch_size = (max(1, round(box_width)), max(1, round(box_height)))
    centre = (x + (box_width - 1) / 2, y + (box_height - 1) / 2)
    patch = np.asarray(cv2.getRectSubPix(frame, patch_size, centre), dtype=np.uint8)
    return resize_frame(patch, height, width)
