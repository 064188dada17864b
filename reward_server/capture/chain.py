"""The capture chain: one draw of everything that happens to a clip between the scene and the viewer, but motion.

A real clip and its faulty twins each get a draw of their own. An equal draw would let a discriminator learn "same
noise", and no draw would let it learn "exact copy".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from protos.types import Clip
from reward_server.capture.codec import Codec
from reward_server.capture.display import barred, requantised, resized_and_back, soft_flicker, softened, tiny_warps
from reward_server.capture.sensor import Flicker, Frames, Noise

REVISION = 3  # changes with what a draw may hold, so that stored features of another chain are not taken for this one's
USED = 0.5  # how often each stage is used; many clips are nearly clean, as many files are


@dataclass(frozen=True, kw_only=True)
class Capture:
    """One draw of the chain. A stage that is None, 0 or 1 (`scale`) does nothing."""

    flicker: Flicker | None = None
    soft_px: float = 0.0
    noise: Noise | None = None
    warp_px: float = 0.0
    scale: float = 1.0
    pulse: tuple[float, float] | None = None  # rms in gray levels and wavelength in px of soft flicker
    blocks: float = 0.0  # mean step in gray levels to which the coefficients of 8x8 blocks are rounded
    bars: tuple[float, bool] | None = None  # share of the frame at each end, and whether they stand upright
    codec: Codec | None = None
    seed: int = field(default=0, repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a chain."""

        def used(chance: float = USED) -> bool:
            return bool(rng.random() < chance)

        return cls(
            flicker=Flicker.draw(rng) if used() else None,
            soft_px=float(rng.uniform(0.3, 1.0)) if used() else 0.0,
            noise=Noise.draw(rng) if used(0.6) else None,
            warp_px=float(rng.uniform(0.02, 0.1)) if used() else 0.0,
            scale=float(rng.uniform(0.6, 1.0)) if used() else 1.0,
            pulse=(float(rng.uniform(0.2, 2.0)), float(rng.uniform(6, 24))) if used() else None,
            blocks=float(np.exp(rng.uniform(np.log(2), np.log(24)))) if used(0.3) else 0.0,
            bars=(float(rng.uniform(0.03, 0.14)), used(0.3)) if used(0.1) else None,
            codec=Codec.draw(rng) if used(0.7) else None,
            seed=int(rng.integers(2**63)),
        )

    def apply(self, clip: Clip) -> Clip:
        """Film the clip again. Sides must be even. The same draw gives the same clip, up to the FFmpeg build."""
        rng = np.random.default_rng(self.seed)
        frames = np.ascontiguousarray(clip.frames.transpose(0, 2, 3, 1)).astype(np.float32)
        shown = np.rint(self._processed(self._filmed(frames, rng), rng)).clip(0, 255).astype(np.uint8)
        shown = shown if self.codec is None else self.codec.apply(shown, clip.fps)
        return Clip(frames=np.ascontiguousarray(shown.transpose(0, 3, 1, 2)), fps=clip.fps)

    def _filmed(self, frames: Frames, rng: np.random.Generator) -> Frames:
        frames = frames if self.flicker is None else self.flicker.apply(frames, rng)
        frames = softened(frames, self.soft_px) if self.soft_px else frames
        return frames if self.noise is None else self.noise.apply(frames, rng)

    def _processed(self, frames: Frames, rng: np.random.Generator) -> Frames:
        frames = tiny_warps(frames, self.warp_px, rng) if self.warp_px else frames
        frames = resized_and_back(frames, self.scale) if self.scale < 1 else frames
        frames = frames if self.pulse is None else soft_flicker(frames, *self.pulse, rng)
        frames = requantised(frames, self.blocks, rng) if self.blocks else frames
        return frames if self.bars is None else barred(frames, *self.bars)
