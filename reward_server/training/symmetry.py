"""Mirroring and turning cached tracks: one clip is eight training examples of the long-term discriminator.

Motion that is plausible stays so in a mirror, and a fault stays a fault. What the estimators saw of a mirrored clip
follows from what they saw of the clip, so that no estimator runs again. Only plain correlation maps can be
mirrored; a network's embedding of them cannot.
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
    """Of a frame: mirrored left to right, then top to bottom, then x and y exchanged. The default is none of these."""

    mirror_x: bool = False
    mirror_y: bool = False
    transpose: bool = False

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """One of the eight, all alike likely."""
        mirror_x, mirror_y, transpose = (bool(drawn) for drawn in rng.integers(2, size=3))
        return cls(mirror_x=mirror_x, mirror_y=mirror_y, transpose=transpose)

    def packed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The packed tracks and correlation maps (`feature_cache.pack`) of the mirrored clip; the rest as it is.

        Tracks are mirrored about the origin, not the frame's middle: track tokens hold differences alone.
        """
        return {name: self._one(name, tensor) for name, tensor in tensors.items()}

    def _one(self, name: str, tensor: Tensor) -> Tensor:
        if name == "tracks":
            return self._points(tensor)
        return self._maps(tensor) if name == "correlation" else tensor

    def _points(self, points_xy: Tensor) -> Tensor:
        signs = torch.tensor([1.0 - 2 * self.mirror_x, 1.0 - 2 * self.mirror_y])
        points = points_xy * signs  # float32: the least int16 has no positive
        return points.flip(-1) if self.transpose else points

    def _maps(self, maps_HW: Tensor) -> Tensor:
        axes = [axis for axis, mirrored in ((-1, self.mirror_x), (-2, self.mirror_y)) if mirrored]
        maps = maps_HW.flip(axes)
        return maps.transpose(-1, -2) if self.transpose else maps


PLAIN = Symmetry()
