"""Draws the scenes of the toy base: one or two bodies of the proof's scenes before a cloudy wall.

`draw_clips(num, seed=0)` draws clips in the size of the preset `tiny`. H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from experiments.proof.scenes import FPS, NUM_FRAMES, SceneMix, draw_scenes
from protos.types import Clip

Floats = NDArray[np.float64]

HEIGHT_PX, WIDTH_PX = 32, 48
MIX = SceneMix(speed_px=(0.5, 2.0), room_px=(WIDTH_PX, HEIGHT_PX), radius_px=(5.5, 7.5))
COLOURS = ((255.0, 150.0, 40.0), (60.0, 130.0, 255.0))  # RGB of the two halves of every body
TWO_BODIES_SHARE = 0.25
WALL, CLOUDS = 60.0, 8.0  # grey levels: mean of the wall, standard deviation of its clouds
ROUGHNESS = 2.5  # the wall's spectrum falls with frequency to this power


def draw_clips(num: int, *, seed: int, pace: float = 1.0) -> Iterator[Clip]:
    """Draw clips. At a `pace` of 2 everything moves twice as fast. Clip i does not depend on `num`."""
    bodies = draw_scenes(2 * num, seed=seed, mix=replace(MIX, pace=pace))
    for i in range(num):
        rng = np.random.default_rng([seed, i, 1])
        both = rng.random() < TWO_BODIES_SHARE
        frames = np.broadcast_to(_wall(rng), (NUM_FRAMES, 3, HEIGHT_PX, WIDTH_PX))
        for body in bodies[2 * i : 2 * i + 1 + both]:
            frames = replace(body, colours=COLOURS).paint(frames)
        yield Clip(frames=frames.round().clip(0, 255).astype(np.uint8), fps=FPS)


def _wall(rng: np.random.Generator) -> Floats:
    """Random smooth clouds, [1,H,W] in 0..255: noise whose spectrum falls with frequency."""
    x, y = np.meshgrid(np.fft.rfftfreq(2 * WIDTH_PX), np.fft.fftfreq(2 * HEIGHT_PX))
    frequency = np.hypot(x, y)
    frequency[0, 0] = np.inf  # no mean
    noise = rng.normal(size=x.shape) + 1j * rng.normal(size=x.shape)
    clouds = np.fft.irfft2(noise * frequency**-ROUGHNESS)[:HEIGHT_PX, :WIDTH_PX]  # half of a period: edges differ
    wall: Floats = WALL + CLOUDS * (clouds - clouds.mean()) / clouds.std()
    return wall[None]
