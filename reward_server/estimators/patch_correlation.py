"""Correlation maps of tracks: does the tracked place still look like the query, and where nearby more so?

Part of the classical motion state, beside drift, visibility and confidence. Vectorised over points,
which are the last and longest axis throughout, so that every product is one long vector operation.

Legend: T frames, N points, H, W pixels, S scales, K offsets per axis, R side of a patch, px.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def correlation_maps(gray: Floats, places: Floats, *, scales: int, window: int, patch: int, floor: float) -> Floats:
    """Maps [T,N,S,K,K] in -1..1 of the query's patch (first frame) against the surroundings of its tracked places.

    gray [T,H,W], places [T,N,2] (x, y) px. Normalised cross-correlation of R x R patches, bilinear at sub-pixel
    places, at every level of an image pyramid, offsets in pixels of the level, y then x. `floor`, in squared gray
    levels, is added to both variances: 0 without contrast, near 1 for equal patches of a contrast far above it.
    """
    maps = []
    for level in range(scales):
        if level:
            gray = np.stack([np.asarray(cv2.pyrDown(frame), np.float32) for frame in gray])
        maps.append(_level_maps(gray, places / 2**level, window, patch, floor))
    return np.ascontiguousarray(np.stack(maps).transpose(1, 4, 0, 2, 3))


def _level_maps(gray: Floats, places: Floats, window: int, patch: int, floor: float) -> Floats:
    """[T,K,K,N] of one pyramid level; frame by frame, as a frame's windows then stay in the cache."""
    margin = window // 2
    query = windows(gray[0], places[0], patch + 2 * margin)[margin : margin + patch, margin : margin + patch]
    query = query - query.mean((0, 1))
    around = (windows(frame, place, patch + 2 * margin) for frame, place in zip(gray, places, strict=True))
    return np.stack([_normalised(query, surroundings, floor) for surroundings in around])


def windows(gray: Floats, places: Floats, side: int) -> Floats:
    """Windows of odd `side` px centred on sub-pixel places: [H,W], [N,2] -> [side,side,N], clamped at the border.

    All samples of a window share one fraction, so one gather of (side+1)^2 whole pixels and two blends make it.
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
    """Likeness [N] in -1..1 of [R,R,N] patches in structure and contrast: (2 cov + floor) / (var + var + floor).

    Unlike a correlation it is 1 for two flat patches: there is nothing that tells them apart.
    """
    first, second = first - first.mean((0, 1)), second - second.mean((0, 1))
    energy = (np.square(first) + np.square(second)).mean((0, 1))
    return np.asarray((2 * (first * second).mean((0, 1)) + floor) / (energy + floor), np.float32)


def _normalised(query: Floats, around: Floats, floor: float) -> Floats:
    """Correlate [R,R,N] zero-mean patches with every R x R patch of their [R+K-1,R+K-1,N] surroundings -> [K,K,N]."""
    side, area = len(query), len(query) ** 2
    around = around - around.mean((0, 1))  # variance as a mean of squares needs small values in float32
    patches = np.lib.stride_tricks.sliding_window_view(around, (side, side), (0, 1))
    covariance = np.einsum("yxnij,ijn->yxn", patches, query) / area
    variance = _box_sum(np.square(around), side) / area - np.square(_box_sum(around, side) / area)
    scale = (variance.clip(0) + floor) * (np.square(query).mean((0, 1)) + floor)
    return np.asarray(covariance / np.sqrt(scale), np.float32).clip(-1, 1)


def _box_sum(values: Floats, side: int) -> Floats:
    """Sums over side x side boxes of the first two axes: [R+K-1,R+K-1,N] -> [K,K,N]."""
    count = len(values) - side + 1
    rows = np.sum([values[i : i + count] for i in range(side)], axis=0)
    return np.asarray(np.sum([rows[:, i : i + count] for i in range(side)], axis=0))
