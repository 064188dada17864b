"""Computes correlation maps of tracks: how much the surroundings of a tracked position look like the query's patch.

They are part of the classical motion state, besides positions, visibility and confidence. Points are the last and
longest axis throughout, so that every product is one long vector operation.

Legend: T frames, N points, H, W frame size in pixels, S scales, K offsets per axis, R side of a patch in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def correlation_maps(gray: Floats, places: Floats, *, scales: int, window: int, patch: int, floor: float) -> Floats:
    """Correlate each query's patch, taken in the first frame, with the surroundings of its tracked positions.

    gray is [T,H,W], places [T,N,2] (x, y) px, the result [T,N,S,K,K] in -1..1. It is the normalised cross-correlation
    of R x R patches (R = `patch`) at every level of an image pyramid (`scales` levels). Patches are sampled
    bilinearly. The K = `window` offsets per axis are in pixels of the level, y then x. `floor`, in squared gray
    levels, is added to both variances. So the value is 0 without contrast, and near 1 for equal patches whose
    contrast is far above the floor.
    """
    maps = []
    for level in range(scales):
        if level:
            gray = np.stack([np.asarray(cv2.pyrDown(frame), np.float32) for frame in gray])
        maps.append(_level_maps(gray, places / 2**level, window, patch, floor))
    return np.ascontiguousarray(np.stack(maps).transpose(1, 4, 0, 2, 3))


def _level_maps(gray: Floats, places: Floats, window: int, patch: int, floor: float) -> Floats:
    """Maps [T,K,K,N] of one pyramid level. Frames are processed one by one, so that a frame's windows stay in cache."""
    margin = window // 2
    query = windows(gray[0], places[0], patch + 2 * margin)[margin : margin + patch, margin : margin + patch]
    query = query - query.mean((0, 1))
    around = (windows(frame, place, patch + 2 * margin) for frame, place in zip(gray, places, strict=True))
    return np.stack([_normalised(query, surroundings, floor) for surroundings in around])


def windows(gray: Floats, places: Floats, side: int) -> Floats:
    """Sample windows of odd `side` px centred on sub-pixel places: [H,W], [N,2] -> [side,side,N], clamped to the frame.

    All samples of a window share one fractional offset. So each window takes one gather of (side+1)^2 whole pixels
    and two blends.
    """
    height, width = gray.shape
    corner = np.floor(places)
    right, down = (places - corner).T
    column, row = corner.T.astype(np.intp)
    span = np.arange(side + 1)[:, None] - side // 2
    columns, rows = (column + span).clip(0, width - 1), (row + span).clip(0, height - 1)
    pixels = gray.reshape(-1).take(rows[:, None] * width + columns)
    blended = pixels[:-1] + down * (pixels[1:] - pixels[:-1])
    return np.asarray(blended[:, :-1] + right * (blended[:, 1:] - blended[:, :-1]), np.float32)


def resemblance(first: Floats, second: Floats, floor: float) -> Floats:
    """Similarity [N] in -1..1 of patches [R,R,N] in structure and contrast: (2 cov + floor) / (var1 + var2 + floor).

    Unlike a correlation it is 1 for two flat patches, because nothing distinguishes them.
    """
    first, second = first - first.mean((0, 1)), second - second.mean((0, 1))
    energy = (np.square(first) + np.square(second)).mean((0, 1))
    return np.asarray((2 * (first * second).mean((0, 1)) + floor) / (energy + floor), np.float32)


def _normalised(query: Floats, around: Floats, floor: float) -> Floats:
    """Correlate zero-mean patches [R,R,N] with every R x R patch of their surroundings [R+K-1,R+K-1,N] -> [K,K,N]."""
    side, area = len(query), len(query) ** 2
    around = around - around.mean((0, 1))  # the mean of squares below is only accurate in float32 for small values
    patches = np.lib.stride_tricks.sliding_window_view(around, (side, side), (0, 1))
    covariance = np.einsum("yxnij,ijn->yxn", patches, query) / area
    variance = _box_sum(np.square(around), side) / area - np.square(_box_sum(around, side) / area)
    scale = (variance.clip(0) + floor) * (np.square(query).mean((0, 1)) + floor)
    return np.asarray(covariance / np.sqrt(scale), np.float32).clip(-1, 1)


def _box_sum(values: Floats, side: int) -> Floats:
    """Sum over side x side boxes of the first two axes: [R+K-1,R+K-1,N] -> [K,K,N]."""
    count = len(values) - side + 1
    rows = np.sum([values[i : i + count] for i in range(side)], axis=0)
    return np.asarray(np.sum([rows[:, i : i + count] for i in range(side)], axis=0))
