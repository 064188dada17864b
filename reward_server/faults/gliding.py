"""Implements `gliding`: a still picture that only the camera moves over, as in a clip whose scene never comes alive.

Shapes: T frames, H, W frame size in pixels, S the short side of the frame.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.faults.interpolation import Floats, pixel_grid, sample_linear, sample_sharp

GLIDE = 0.3  # rms speed of the glide at strength 1, in S per second, before a drawn factor
PACE = (0.08, 1.4)  # the drawn factor, evenly in its logarithm: a slow zoom is as much a glide as a fast pan
RELIEF = (0.25, 0.6)  # how far the speed of near and far content is from the mean, where there is parallax
INSIDE = 0.75  # how often the view stays inside the picture; outside it there is only the picture's mirror image


def gliding(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Stop the scene and move the camera: the last share `strength` of the clip glides over one frame.

    At 1 it is the first frame. The glide is a zoom, a pan, a turn or a mix, and faster when stronger. Most pans and
    turns also zoom in, as far as the view needs to stay inside the picture. Every second glide has parallax, from a
    random smooth depth.
    """
    num_frames, _, height, width = clip.frames.shape
    side = min(height, width)
    glide = _Glide(height, width, rng)
    speed = GLIDE * np.exp(rng.uniform(*np.log(PACE))) * (0.2 + 0.8 * strength) * side / clip.fps  # px per frame
    depth = _depth(height, width, rng) if rng.random() < 0.5 else None
    last = num_frames - 1
    held = min(round((1 - strength) * last), last - 1)
    still = np.ascontiguousarray(clip.frames[held].transpose(1, 2, 0))
    frames = clip.frames.copy()
    for t in range(held + 1, num_frames):
        place = glide.origin(speed * (t - held), depth)
        frames[t] = sample_sharp(still, place).transpose(2, 0, 1)
    return Clip(frames=frames, fps=clip.fps)


class _Glide:
    """A similarity that goes on at a constant rate: a shift, a zoom and a turn. Points are complex numbers, x + iy."""

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.grid = pixel_grid(height, width)
        points = self.grid[..., 0] + 1j * self.grid[..., 1]
        self.centre = complex(*(rng.uniform(0.35, 0.65, 2) * (width - 1, height - 1)))
        self.offsets = points - self.centre
        kind = str(rng.choice(["zoom", "pan", "turn", "mix"], p=[0.4, 0.2, 0.15, 0.25]))
        inside = rng.random() < INSIDE
        zoom = (1 if inside else -1) * rng.uniform(0.5, 1) * (kind in ("zoom", "mix"))
        turn = rng.choice([-1, 1]) * rng.uniform(0.3, 1) * (kind in ("turn", "mix"))
        pan = np.exp(2j * np.pi * rng.random())
        self.shift = complex(pan) if kind in ("pan", "mix") else 0j
        size = np.sqrt((np.abs(self.offsets) ** 2).mean())
        self.growth = complex(zoom, turn) / size
        if inside:
            self.growth += max(0.0, self._entering() - self.growth.real)
        rms = np.sqrt((np.abs(self.growth * self.offsets + self.shift) ** 2).mean())
        self.growth, self.shift = self.growth / rms, self.shift / rms

    def origin(self, distance: float, depth: Floats | None) -> Floats:
        """Where the pixels come from, [H,W,2], after a glide by `distance` px rms, which `depth` [H,W] scales."""
        moved = self._back(distance)
        if depth is None:
            return np.asarray(self.grid + moved, np.float32)
        place = np.asarray(self.grid + depth[..., None] * moved, np.float32)
        near = sample_linear(depth, place)
        return np.asarray(self.grid + near[..., None] * moved, np.float32)

    def _entering(self) -> float:
        """The least zoom with which nothing enters the view at its border, for this shift and turn."""
        corners = self.offsets[[0, 0, -1, -1], [0, -1, 0, -1]]
        drift = self.shift + 1j * self.growth.imag * corners
        return float(np.maximum(-drift.real / corners.real, -drift.imag / corners.imag).max())

    def _back(self, distance: float) -> Floats:
        """The displacement [H,W,2] from each pixel to its origin without parallax."""
        scale = np.exp(-distance * self.growth)
        slide = -distance * self.shift if self.growth == 0 else self.shift * (scale - 1) / self.growth
        moved = (scale - 1) * self.offsets + slide
        return np.stack([moved.real, moved.imag], -1).astype(np.float32)


def _depth(height: int, width: int, rng: np.random.Generator) -> Floats:
    """How much faster than the mean each pixel moves, [H,W], from smooth noise and a ground that is nearer below."""
    noise = cv2.resize(rng.normal(size=(4, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    ground: NDArray[np.float64] = np.linspace(-1, 1, height)[:, None] * rng.uniform(0.3, 1.5)
    relief = noise + ground
    return np.asarray(1 + rng.uniform(*RELIEF) * np.tanh((relief - relief.mean()) / relief.std()), np.float32)
