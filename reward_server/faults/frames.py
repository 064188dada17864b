"""Reorders the frames of a clip, and turns a frame into OpenCV's layout. All kinds of faults use these."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protos.types import Clip


def reordered(clip: Clip, indices: NDArray[np.int64]) -> Clip:
    """The clip that shows its own frames in the order of `indices`, at the same rate."""
    return Clip(frames=clip.frames[indices], fps=clip.fps)


def image_of(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert a frame [3,H,W] to OpenCV's layout: [H,W,3], contiguous."""
    return np.ascontiguousarray(frame.transpose(1, 2, 0))
