"""Measures toy clips well enough to reward them: the path and size of the body, and changes of the wall.

`measures(clip)` gives speed, size drift, glow, look error and more; `speed_reward(target)` gives a reward function.
T frames, H and W pixels. Bodies are bright and walls dark (scenes.py), so a threshold separates them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from protos.types import Clip

Floats = NDArray[np.float64]
Reward = Callable[[Clip], float]

BRIGHT = (110.0, 160.0)  # brightest channel of a pixel: between these values its share of the body rises from 0 to 1
LOST_SHARE = 0.3  # share of its first area below which the body counts as gone
MARGIN_PX = 2.0  # distance beyond the body's radius at which a pixel counts as wall


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of one clip."""

    speed_px: float
    """Mean length of the body's path per frame, in pixels. A frame without a body adds nothing."""
    acceleration_px: float
    """Mean length of the path's second difference, in pixels."""
    size_drift: float
    """Mean relative difference of the body's area from its area in the first frame."""
    glow: float
    """Grey levels by which the wall brightens from the first frame to the last."""
    flicker: float
    """Mean deviation of the wall's change between frames from its average change, in grey levels."""
    wall_error: float
    """Mean absolute difference of the wall from the wall of the first frame, 0..1."""

    @property
    def look_error(self) -> float:
        return self.wall_error + self.size_drift


NAMES = (*(field.name for field in fields(Measures)), "look_error")


def track(clip: Clip) -> tuple[Floats, Floats]:
    """Centres [T,2] (x, y) and areas [T] of the body in pixels. A frame without the body keeps the last centre."""
    low, high = BRIGHT
    frames = clip.frames.astype(np.float64)
    weights = ((frames.max(axis=1) - low) / (high - low)).clip(0, 1)
    y, x = np.mgrid[: frames.shape[2], : frames.shape[3]] + 0.5
    areas: Floats = weights.sum(axis=(1, 2))
    centres = (
        np.stack([(weights * axis).sum(axis=(1, 2)) for axis in (x, y)], axis=1) / np.maximum(areas, 1e-9)[:, None]
    )
    for t in np.flatnonzero(areas < LOST_SHARE * areas[0]):
        centres[t] = centres[t - 1] if t else (frames.shape[3] / 2, frames.shape[2] / 2)
    return centres, areas


def measures(clip: Clip) -> Measures:
    """Measure a toy clip."""
    centres, areas = track(clip)
    steps = np.diff(centres, axis=0)
    gray = clip.frames.astype(np.float64).mean(axis=1)
    rows = _wall_rows(gray[0], centres[0], _radius(areas[0]))
    off_wall = [_off_wall(image, rows, centre, _radius(areas[0])) for image, centre in zip(gray, centres, strict=True)]
    levels = np.array([float(values.mean()) for values in off_wall])
    changes = np.diff(levels)
    return Measures(
        speed_px=float(np.hypot(*steps.T).mean()),
        acceleration_px=float(np.hypot(*np.diff(steps, axis=0).T).mean()),
        size_drift=float(np.abs(areas[1:] / max(areas[0], 1e-9) - 1).mean()),
        glow=float(levels[-1] - levels[0]),
        flicker=float(np.abs(changes - changes.mean()).mean()),
        wall_error=float(np.mean([np.abs(values).mean() for values in off_wall[1:]]) / 255),
    )


def speed_reward(target_px: float) -> Reward:
    """A reward: minus the distance of the tracked speed from `target_px`. At most 0, and 0 at the target only."""
    return lambda clip: -abs(measures(clip).speed_px - target_px)


def _radius(area: float) -> float:
    return float(np.sqrt(area / np.pi))


def _wall_rows(gray: Floats, centre: Floats, radius: float) -> Floats:
    """Grey level of the wall in each row of the first frame, [H]. Walls are uniform along a row."""
    return np.array(
        [
            np.median(row[kept] if kept.any() else row)
            for row, kept in zip(gray, _seen(gray, centre, radius), strict=True)
        ]
    )


def _off_wall(gray: Floats, rows: Floats, centre: Floats, radius: float) -> Floats:
    """Differences from the first frame's wall, at the pixels without a body, [pixels]."""
    off: Floats = (gray - rows[:, None])[_seen(gray, centre, radius)]
    return off


def _seen(gray: Floats, centre: Floats, radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[: gray.shape[0], : gray.shape[1]] + 0.5
    seen: NDArray[np.bool_] = np.hypot(x - centre[0], y - centre[1]) > radius + MARGIN_PX
    return seen
