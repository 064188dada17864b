"""Mirrors and transposes cached motion, so that one clip gives eight training examples.

Mirrored motion is as plausible as before, and a fault stays a fault. The features of a mirrored clip follow from those
of the clip, so no estimator runs again. Only plain correlation maps can be mirrored; a network's embedding cannot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """A symmetry of the frame: mirror left to right, then top to bottom, then swap x and y. The default is none."""

    mirror_x: bool = False
    mirror_y: bool = False
    transpose: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw one of the eight symmetries, each with the same probability."""
        mirror_x, mirror_y, transpose = (bool(drawn) for drawn in rng.integers(2, size=3))
        return cls(mirror_x=mirror_x, mirror_y=mirror_y, transpose=transpose)

    def packed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Apply the symmetry to packed tracks and correlation maps (`profiles.packed.pack`); copy the other tensors.

        Tracks are mirrored about the origin, not about the frame's centre, because track tokens contain only
        differences of positions.
        """
        return {name: self._one(name, tensor) for name, tensor in tensors.items()}

    def seen(self, maps_P2HW: Tensor) -> Tensor:
        """Apply the symmetry to residual maps (`Motion.maps`)."""
        return self._maps(maps_P2HW)

    def _one(self, name: str, tensor: Tensor) -> Tensor:
        if name == "tracks":
            return self._points(tensor)
        return self._maps(tensor) if name == "correlation" else tensor

    def _points(self, points_xy: Tensor) -> Tensor:
        signs = torch.tensor([1.0 - 2 * self.mirror_x, 1.0 - 2 * self.mirror_y])
        points = points_xy * signs  # in float32, because the lowest int16 has no positive counterpart
        return points.flip(-1) if self.transpose else points

    def _maps(self, maps_HW: Tensor) -> Tensor:
        axes = [axis for axis, mirrored in ((-1, self.mirror_x), (-2, self.mirror_y)) if mirrored]
        maps = maps_HW.flip(axes)
        return maps.transpose(-1, -2) if self.transpose else maps


PLAIN = Symmetry()
