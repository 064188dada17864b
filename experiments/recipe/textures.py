"""Makes square textures for simulated bodies and rooms, from noise or from photographs.

Every texture has detail at several scales, so that a tracker can follow points everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE_PX = 256

Picture = NDArray[np.uint8]  # [SIDE_PX,SIDE_PX,3], RGB
Field = NDArray[np.float32]  # [SIDE_PX,SIDE_PX], 0..1


def random_texture(rng: np.random.Generator, photos: Sequence[Path] = ()) -> Picture:
    """A texture of a random kind. If photos are given, half of the textures are cut from one."""
    if photos and rng.random() < 0.5:
        return photo_patch(photos[int(rng.integers(len(photos)))], rng)
    pattern = [_clouds, _cells, _bricks, _waves, _checks][rng.integers(5)](rng)
    detail = _clouds(rng, first_octave=4)
    return _coloured(0.8 * pattern + 0.2 * detail, rng)


def photo_patch(photo: Path, rng: np.random.Generator) -> Picture:
    """A random square of a photograph. Its side is between half and all of the photograph's shorter side."""
    picture = np.asarray(cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)
    height, width = picture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.5, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    patch = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(patch, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _clouds(rng: np.random.Generator, first_octave: int = 1) -> Field:
    """Fractal noise: octaves of smoothed random grids. Each has twice the resolution and 0.6 times the weight."""
    total = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    for octave in range(first_octave, 8):
        grid = rng.random((2**octave + 1, 2**octave + 1), dtype=np.float32)
        total += cv2.resize(grid, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return _stretched(total)


def _cells(rng: np.random.Generator) -> Field:
    """Voronoi cells of random grey."""
    seeds = np.ones((SIDE_PX, SIDE_PX), np.uint8)
    y, x = rng.integers(SIDE_PX, size=(2, rng.integers(12, 80)))
    seeds[y, x] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return np.asarray(rng.random(labels.max() + 1, dtype=np.float32)[labels])


def _bricks(rng: np.random.Generator) -> Field:
    """Rows of bricks of random grey with mortar between them. Every other row is shifted by half a brick."""
    rows, columns = int(rng.integers(4, 12)), int(rng.integers(2, 7))
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    row = (y * rows).astype(int)
    column = x * columns + 0.5 * (row % 2)
    grey = rng.uniform(0.3, 1.0, (rows, columns + 1))[row, column.astype(int)]
    mortar = ((y * rows) % 1 < 0.12) | (column % 1 < 0.06)
    return np.where(mortar, 0.1, grey).astype(np.float32)


def _waves(rng: np.random.Generator) -> Field:
    """Stripes bent by noise, like wood or marble."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    angle, periods, bend = rng.uniform(0, np.pi), rng.uniform(4, 16), rng.uniform(0.5, 5)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * periods + bend * _clouds(rng)
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * phase), dtype=np.float32)


def _checks(rng: np.random.Generator) -> Field:
    """A board of squares of random grey."""
    num = int(rng.integers(4, 16))
    board = rng.random((num, num), dtype=np.float32)
    return np.asarray(cv2.resize(board, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_NEAREST), dtype=np.float32)


def _coloured(field: Field, rng: np.random.Generator) -> Picture:
    """The field coloured by a random palette of four colours, dark to light."""
    palette = rng.uniform(0, 1, (4, 3)) * 0.5 + np.linspace(0.05, 0.5, 4)[:, None]
    stops = np.linspace(0, 1, 4)
    channels = [np.interp(_stretched(field), stops, palette[:, channel]) for channel in range(3)]
    return (np.stack(channels, axis=-1) * 255).round().astype(np.uint8)


def _stretched(field: Field) -> Field:
    low, high = field.min(), field.max()
    return np.asarray((field - low) / (high - low), dtype=np.float32)
