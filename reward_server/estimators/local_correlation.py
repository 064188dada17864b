"""Correlation of a track's neighbourhood with its query's, over a feature pyramid (CoTracker3, arXiv 2410.11831).

A neighbourhood is 7x7 bilinear samples at integer offsets; its first axis is the offset in x, its second
in y. Coordinates are in cells, integers are cell centres, and samples outside repeat the border.

Shapes: T frames, N tracks, C channels, h, w cells of a level.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

RADIUS = 3
WINDOW = 2 * RADIUS + 1

Pyramid = tuple[Tensor, ...]  # level l: features [T,h,w,C], each half the size of the one before


def support_features(pyramid: Pyramid, centres_N2: Tensor, frames_N: Tensor) -> list[Tensor]:
    """Per level, the query's neighbourhood in its own frame, [N,C,49]; centres in level-0 cells, computed once."""
    levels = []
    for level, features_ThwC in enumerate(pyramid):
        samples_N77C = _mixed(*_patch(features_ThwC, centres_N2 / 2**level, frames_N))
        levels.append(samples_N77C.flatten(1, 2).transpose(1, 2).contiguous())
    return levels


def correlations(pyramid: Pyramid, support: list[Tensor], centres_NT2: Tensor) -> Iterator[Tensor]:
    """Per level, `correlation` around centres in level-0 cells: [N,T,2401]."""
    for level, (features_ThwC, support_NCK) in enumerate(zip(pyramid, support, strict=True)):
        yield correlation(features_ThwC, support_NCK, centres_NT2 / 2**level)


def correlation(features_ThwC: Tensor, support_NCK: Tensor, centres_NT2: Tensor) -> Tensor:
    """Dot products of the track's neighbourhood with its query's, at one level: [N,T,2401], query index fastest.

    All 49 samples of a neighbourhood share one fractional offset: the products of the 8x8 cells around
    it are taken first and mixed after, which is the same by linearity and needs no sampling of features.
    """
    frames_T = torch.arange(centres_NT2.shape[1], device=centres_NT2.device)
    cells, fraction = _patch(features_ThwC, centres_NT2, frames_T)
    products = cells.flatten(1, 3) @ support_NCK  # [N, T*8*8, 49]
    return _mixed(products.view(*cells.shape[:4], -1), fraction).flatten(2)


def _patch(features_ThwC: Tensor, centres: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The 8x8 cells [...,8,8,C] (x first) that 7x7 samples around `centres` [...,2] touch, and the fraction [...,2]."""
    _, height, width, channels = features_ThwC.shape
    corner = centres.floor()
    steps = torch.arange(-RADIUS, RADIUS + 2, device=centres.device)
    x = (corner[..., 0, None].long() + steps).clamp(0, width - 1)
    y = (corner[..., 1, None].long() + steps).clamp(0, height - 1)
    index = (frames[..., None, None] * height + y[..., None, :]) * width + x[..., :, None]
    cells = features_ThwC.view(-1, channels).index_select(0, index.flatten())
    return cells.view(*index.shape, channels), centres - corner


def _mixed(cells: Tensor, fraction: Tensor) -> Tensor:
    """Linear mix of neighbours along x, then y: [...,8,8,K] and fractions [...,2] -> [...,7,7,K]."""
    x, y = (fraction[..., axis, None, None, None].to(cells.dtype) for axis in (0, 1))
    cells = torch.lerp(cells[..., :-1, :, :], cells[..., 1:, :, :], x)
    return torch.lerp(cells[..., :-1, :], cells[..., 1:, :], y)
