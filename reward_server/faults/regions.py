"""Implements the faults that show soft regions of the frame at another time, abruptly or as a slow fade.

Each fault takes (clip, strength in (0,1], rng) and returns a clip with the same number of frames.

Shapes: T frames, H, W frame size in pixels, S the short side of the frame.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.faults.interpolation import Floats

NUM_POPS = 6  # at strength 1 of popping
NUM_FADES = 3
SHARE = (0.12, 0.3)  # share of the frame in a region
BLUR = 0.05  # sigma, in S, of what a dissolving region blurs into


def popping(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Show soft regions at another time for a few frames, without a transition.

    A stronger fault has more such pops (1 to NUM_POPS), from times that are farther away.
    """
    num_frames = len(clip.frames)
    frames = clip.frames.copy()
    pops = [_Pop(clip, rng) for _ in range(NUM_POPS)]
    for pop in pops[: max(1, int(strength * NUM_POPS))]:
        for t in range(pop.start, min(num_frames, pop.start + pop.num_frames)):
            other = t + max(1, round(strength * pop.reach)) * pop.direction
            if not 0 <= other < num_frames:
                other = int(np.clip(2 * t - other, 0, num_frames - 1))
            frames[t] = _blend(frames[t], clip.frames[other], pop.mask)
    return Clip(frames=frames, fps=clip.fps)


class _Pop:
    def __init__(self, clip: Clip, rng: np.random.Generator) -> None:
        num_frames, _, height, width = clip.frames.shape
        self.start = int(rng.integers(1, num_frames - 1))
        self.num_frames = int(rng.integers(1, max(2, num_frames // 5) + 1))
        self.reach = rng.uniform(0.35, 0.6) * num_frames
        self.direction = int(rng.choice([-1, 1]))
        self.mask = soft_region(height, width, rng, rng.uniform(*SHARE), softness=0.1)


def dissolving(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Fade soft regions into another time of the clip, or into a blur, and back. `strength` is how far they fade."""
    num_frames, _, height, width = clip.frames.shape
    frames = clip.frames.copy()
    for _ in range(NUM_FADES):
        mask = soft_region(height, width, rng, rng.uniform(*SHARE), softness=0.4)
        middle, spread = rng.uniform(0.35, 0.75) * num_frames, rng.uniform(0.25, 0.45) * num_frames
        into_blur = rng.random() < 0.4
        away = rng.uniform(0.4, 0.6) * num_frames
        other = clip.frames[int(np.clip(middle + (away if middle < num_frames / 2 else -away), 0, num_frames - 1))]
        for t in range(1, num_frames):
            share = np.cos(np.clip((t - middle) / spread, -1, 1) * np.pi / 2) ** 2
            if share > 0.01:
                frames[t] = _blend(frames[t], _blurred(frames[t]) if into_blur else other, strength * share * mask)
    return Clip(frames=frames, fps=clip.fps)


def soft_region(
    height: int, width: int, rng: np.random.Generator, share: float, *, softness: float, wanted: Floats | None = None
) -> Floats:
    """A soft mask [H,W], 0..1, that covers about `share` of the frame: a random blob, or where `wanted` [H,W] is high.

    `softness` is the share of the blob's area over which the mask rises to 1. Random noise makes every draw differ.
    """
    noise = cv2.resize(rng.normal(size=(4, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    height_map = noise if wanted is None else wanted + 0.15 * noise * wanted.std()
    edge, full = np.quantile(height_map[::2, ::2], [1 - share * (1 + softness / 2), 1 - share * (1 - softness / 2)])
    return np.asarray(np.clip((height_map - edge) / max(full - edge, 1e-6), 0, 1), np.float32)


def _blend(frame: NDArray[np.uint8], other: NDArray[np.uint8], mask: Floats) -> NDArray[np.uint8]:
    old = frame.astype(np.float32)
    return np.asarray(np.rint(old + np.asarray(mask, np.float32) * (other - old)), np.uint8)


def _blurred(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    sigma = BLUR * min(frame.shape[1:])
    return np.stack([np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.uint8) for plane in frame])
