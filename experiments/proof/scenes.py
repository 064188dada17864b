"""Simulates scenes: a textured body bounces, falls or rolls before a plain wall, at a speed that frame 1 does not show.

`draw_scenes(num, seed=0)` draws scenes. `Scene.clip()` makes the base's data, the fine-tuning set and the held-out
first frames. T frames, H and W pixels; positions in pixels, speeds in pixels per frame, x to the right, y down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip

Floats = NDArray[np.float64]
Kind = Literal["bounce", "fall", "roll"]

NUM_FRAMES, SIDE_PX, FPS = 8, 16, 8.0
GRAVITY = 0.12  # px per frame, per frame
WALL = 40.0  # grey level of the wall
RESTITUTION = 0.8  # share of the speed that a falling body keeps when it hits the floor
SUBSTEPS = 8  # per frame, so that a reflection is accurate to a fraction of a pixel


@dataclass(frozen=True, kw_only=True)
class SceneMix:
    """The distribution that scenes are drawn from."""

    speed_px: tuple[float, float] = (0.1, 1.4)  # uniform range of the initial speed, pixels per frame
    static_share: float = 0.0  # share of scenes whose body rests
    glow_share: float = 0.0  # share of scenes whose wall grows brighter
    glow_levels: tuple[float, float] = (10.0, 60.0)  # uniform range of the wall's rise from first to last frame
    pace: float = 1.0  # how fast time runs: at 0.5 the same bodies take the same paths at half the speed
    room_px: tuple[float, float] = (SIDE_PX, SIDE_PX)  # width and height
    radius_px: tuple[float, float] = (2.3, 3.2)  # uniform range


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A body, its motion, and the wall behind it."""

    kind: Kind
    radius_px: float
    start_px: tuple[float, float]
    velocity_px: tuple[float, float]
    angle: float  # of the texture in the first frame, radians
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]  # RGB of the body's two halves, 0..255
    glow: float = 0.0  # grey levels by which the wall brightens over the clip
    pace: float = 1.0
    room_px: tuple[float, float] = (SIDE_PX, SIDE_PX)  # width and height that the body stays in

    @property
    def moves(self) -> bool:
        return self.velocity_px != (0.0, 0.0)

    def path(self) -> Floats:
        """Exact centres of the body, [T,2] (x, y)."""
        low, high = self.radius_px, np.array(self.room_px) - self.radius_px
        position, velocity = np.array(self.start_px), np.array(self.velocity_px)
        path = [position.copy()]
        for _ in range((NUM_FRAMES - 1) * SUBSTEPS):
            if self.kind == "fall" and self.moves:
                velocity[1] += GRAVITY * self.pace / SUBSTEPS
            position = position + velocity * self.pace / SUBSTEPS
            for axis in (0, 1):
                beyond = position[axis] > high[axis]
                if (position[axis] < low and velocity[axis] < 0) or (beyond and velocity[axis] > 0):
                    damped = self.kind == "fall" and axis == 1
                    velocity[axis] *= -RESTITUTION if damped else -1.0
            path.append(position.clip(low, high))
        return np.stack(path[::SUBSTEPS])

    def speed_px(self) -> float:
        """Mean length of the path per frame."""
        return float(np.hypot(*np.diff(self.path(), axis=0).T).mean())

    def clip(self) -> Clip:
        """Draw the scene's frames."""
        walls = WALL + self.glow * np.arange(NUM_FRAMES) / (NUM_FRAMES - 1)
        painted = self.paint(np.broadcast_to(walls[:, None, None, None], (NUM_FRAMES, 1, SIDE_PX, SIDE_PX)))
        return Clip(frames=painted.round().clip(0, 255).astype(np.uint8), fps=FPS)

    def paint(self, walls_TCHW: Floats) -> Floats:
        """Paint the body over walls of one or three channels, [T,3,H,W], with edges softened over one pixel."""
        path = self.path()
        angles = self.angle + (path[:, 0] - path[0, 0]) / self.radius_px * (self.kind == "roll")
        frames = zip(walls_TCHW, path, angles, strict=True)
        return np.stack([self._painted(wall, centre, angle) for wall, centre, angle in frames])

    def _painted(self, wall: Floats, centre: Floats, angle: float) -> Floats:
        y, x = np.mgrid[: wall.shape[1], : wall.shape[2]] + 0.5
        right, down = x - centre[0], y - centre[1]
        body = np.clip(self.radius_px - np.hypot(right, down) + 0.5, 0, 1)
        half = np.clip(right * np.cos(angle) + down * np.sin(angle) + 0.5, 0, 1)
        first, second = (np.array(colour)[:, None, None] for colour in self.colours)
        image: Floats = wall * (1 - body) + (first * half + second * (1 - half)) * body
        return image


def draw_scenes(num: int, *, seed: int, mix: SceneMix | None = None) -> list[Scene]:
    """Draw scenes. A seed gives the same scenes again, and scene i does not depend on `num`."""
    return [_draw(np.random.default_rng([seed, i]), mix or SceneMix()) for i in range(num)]


def _draw(rng: np.random.Generator, mix: SceneMix) -> Scene:
    kind: Kind = rng.choice(["bounce", "bounce", "fall", "roll"])
    radius = float(rng.uniform(*mix.radius_px))
    start = rng.uniform(radius, np.array(mix.room_px) - radius)
    speed, heading = rng.uniform(*mix.speed_px), rng.uniform(0, 2 * np.pi)
    if kind == "roll":
        start[1], heading = mix.room_px[1] - radius, np.pi * rng.integers(2)
    still = rng.random() < mix.static_share
    velocity = np.zeros(2) if still else speed * np.array([np.cos(heading), np.sin(heading)])
    if kind == "roll":
        velocity[1] = 0.0
    hue = int(rng.integers(180))
    glows = rng.random() < mix.glow_share
    return Scene(
        kind=kind,
        radius_px=radius,
        start_px=(float(start[0]), float(start[1])),
        velocity_px=(float(velocity[0]), float(velocity[1])),
        angle=float(rng.uniform(0, 2 * np.pi)),
        colours=(_colour(hue, 255), _colour((hue + 20) % 180, 200)),
        glow=float(rng.uniform(*mix.glow_levels)) * glows,
        pace=mix.pace,
        room_px=mix.room_px,
    )


def _colour(hue: int, value: int) -> tuple[float, float, float]:
    """RGB of a hue in 0..179 and a value in 0..255, at a fixed saturation."""
    r, g, b = cv2.cvtColor(np.array([[[hue, 170, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return float(r), float(g), float(b)
