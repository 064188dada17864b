"""Correlates a track's neighbourhood with its query's over a feature pyramid (CoTracker3, arXiv 2410.11831).

A neighbourhood is 7x7 bilinear samples at integer offsets. Its first axis is the offset in x, its second the offset
in y. Coordinates are in cells; integers are cell centres. Samples outside the frame repeat the border.

Shapes: T frames, N tracks, C channels, K = 49 samples of a neighbourhood, h, w size of a level in cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RADIUS = 3
WINDOW = 2 * RADIUS + 1

Pyramid = tuple[Tensor, ...]  # level l: features [T,h,w,C], each half the size of the one before


def support_features(pyramid: Pyramid, centres_N2: Tensor, frames_N: Tensor) -> list[Tensor]:
    """Neighbourhood of each query in its own frame, [N,C,49] per level.

    `centres_N2` are the queries (x, y) in level-0 cells, `frames_N` their frames.
    """
    levels = []
    for level, features_ThwC in enumerate(pyramid):
        samples_N77C = _mixed(*_patch(features_ThwC, centres_N2 / 2**level, frames_N))
        levels.append(samples_N77C.flatten(1, 2).transpose(1, 2).contiguous())
    return levels


def correlations(pyramid: Pyramid, support: list[Tensor], centres_NT2: Tensor) -> Iterator[Tensor]:
    """Yield `correlation` [N,T,2401] for each level. `centres_NT2` are in level-0 cells."""
    for level, (features_ThwC, support_NCK) in enumerate(zip(pyramid, support, strict=True)):
        yield correlation(features_ThwC, support_NCK, centres_NT2 / 2**level)


def correlation(features_ThwC: Tensor, support_NCK: Tensor, centres_NT2: Tensor) -> Tensor:
    """Dot products of each track's neighbourhood with its query's, at one level: [N,T,2401], query index fastest.

    `centres_NT2` are in cells of this level. All 49 samples of a neighbourhood share one fractional offset. So the
    dot products are computed for the 8x8 cells around it and interpolated afterwards. By linearity the result is
    the same, and no features need to be sampled.
    """
    frames_T = torch.arange(centres_NT2.shape[1], device=centres_NT2.device)
    cells, fraction = _patch(features_ThwC, centres_NT2, frames_T)
    products = cells.flatten(1, 3) @ support_NCK  # [N, T*8*8, 49]
    return _mixed(products.view(*cells.shape[:4], -1), fraction).flatten(2)


def _patch(features_ThwC: Tensor, centres: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the 8x8 cells [...,8,8,C] (x first) that the 7x7 samples around `centres` [...,2] touch.

    Also returns the fractional offset [...,2] of the samples.
    """
    _, height, width, channels = features_ThwC.shape
    corner = centres.floor()
    steps = torch.arange(-RADIUS, RADIUS + 2, device=centres.device)
    x = (corner[..., 0, None].long() + steps).clamp(0, width - 1)
    y = (corner[..., 1, None].long() + steps).clamp(0, height - 1)
    index = (frames[..., None, None] * height + y[..., None, :]) * width + x[..., :, None]
    cells = features_ThwC.view(-1, channels).index_select(0, index.flatten())
    return cells.view(*index.shape, channels), centres - corner


def _mixed(cells: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate bilinearly, along x and then y: [...,8,8,K] and fractions [...,2] -> [...,7,7,K]."""
    x, y = (fraction[..., axis, None, None, None].to(cells.dtype) for axis in (0, 1))
    cells = torch.lerp(cells[..., :-1, :, :], cells[..., 1:, :, :], x)
    return torch.lerp(cells[..., :-1, :], cells[..., 1:, :], y)
