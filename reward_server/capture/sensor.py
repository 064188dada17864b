"""What a camera adds to frames: noise that depends on the signal, and flicker of exposure and white balance.

Frames are float32 [T,H,W,3] in gray levels, 0..255. The functions do not clip; `chain.py` does so once at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.float32]

MID_GRAY = 128.0
COLOUR_TO_LUMA = 0.6  # strength of the noise that each channel has for itself, beside the noise that all share


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise drawn anew for every frame.

    `sigma` is its standard deviation at mid gray, in gray levels. `shot` (0..1) is the share of its variance that grows
    with brightness. `grain_px` is the sigma of a blur that makes it coarser.
    """

    sigma: float
    shot: float
    grain_px: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        return cls(
            sigma=float(np.exp(rng.uniform(np.log(0.3), np.log(5.0)))),
            shot=float(rng.uniform(0, 1)),
            grain_px=float(rng.choice([0.0, rng.uniform(0.4, 1.0)])),
        )

    def apply(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Add the noise to the frames."""
        variance = 1 - self.shot + self.shot * frames / MID_GRAY
        num, height, width, _ = frames.shape
        shared = self._field((num, height, width, 1), rng)
        own = self._field(frames.shape, rng)
        pattern = (shared + COLOUR_TO_LUMA * own) / np.float32(np.hypot(1, COLOUR_TO_LUMA))
        noise: Frames = np.float32(self.sigma) * np.sqrt(np.maximum(variance, 0)).astype(np.float32) * pattern
        return frames + noise

    def _field(self, shape: tuple[int, ...], rng: np.random.Generator) -> Frames:
        field = rng.standard_normal(shape, dtype=np.float32)
        if self.grain_px:
            field = np.stack([cv2.GaussianBlur(one, (0, 0), self.grain_px).reshape(one.shape) for one in field])
            field /= max(float(field.std()), 1e-6)
        return field


@dataclass(frozen=True, kw_only=True)
class Flicker:
    """Exposure and white balance that change from frame to frame, as relative standard deviations.

    `memory` (0..1) is how much of the last frame's deviation stays: 0 flickers, near 1 drifts.
    """

    exposure: float
    balance: float
    memory: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        exposure = float(np.exp(rng.uniform(np.log(0.001), np.log(0.02))))
        return cls(exposure=exposure, balance=exposure * float(rng.uniform(0, 0.5)), memory=float(rng.uniform(0, 0.98)))

    def apply(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Scale every frame, and every channel of it."""
        exposure = self._course((len(frames), 1), self.exposure, rng)
        balance = self._course((len(frames), 3), self.balance, rng)
        gain = (1 + exposure + balance).astype(np.float32)
        return frames * gain[:, None, None, :]

    def _course(self, shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> NDArray[np.float64]:
        steps = rng.normal(0, sigma, shape)
        course = np.zeros(shape)
        course[0] = steps[0]
        for t in range(1, len(course)):
            course[t] = self.memory * course[t - 1] + np.sqrt(1 - self.memory**2) * steps[t]
        return course
