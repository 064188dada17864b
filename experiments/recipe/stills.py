"""Makes clips from photographs by moving a camera over them, so that the true motion is one homography per frame.

The view's four corners drift smoothly. This gives pan, zoom, roll and a little perspective, with even or changing
speed, or with hand shake. Each frame is resampled once from the photograph, with area averaging against aliasing.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.errors import UnreadableClip

Array = NDArray[np.float64]

OVERSAMPLING = 2


def glide(photo: Path, seed: int, *, frames: int, fps: float, height: int, width: int) -> tuple[Clip, Array]:
    """A clip of a smooth camera motion over a photo, and its homographies [T,3,3].

    Homography t maps pixels (x, y, 1) of the first frame to frame t, where integers are pixel centres. The view always
    stays inside the photo. Raises UnreadableClip if the photo cannot be read.
    """
    picture = cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UnreadableClip(f"{photo} cannot be read as a picture; fetch the photographs again")
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    views = _view_path(rng, frames, fps, picture.shape[1] / picture.shape[0], width / height)
    views = _scaled(picture.shape[1], picture.shape[0]) @ views @ np.linalg.inv(_scaled(width, height))
    images = [_look(np.asarray(picture, np.uint8), view, height, width) for view in views]
    homographies = np.linalg.inv(views) @ views[0]
    clip = Clip(frames=np.stack(images).transpose(0, 3, 1, 2).copy(), fps=fps)
    return clip, homographies / homographies[:, 2:, 2:]


def _view_path(rng: np.random.Generator, num: int, fps: float, photo_aspect: float, aspect: float) -> Array:
    """Homographies [T,3,3] from the view to the photo, both spanning -1..1. Redraws until the view stays inside."""
    times_s = np.arange(num) / fps
    for attempt in range(200):
        calm = 0.97**attempt  # each attempt moves closer and more calmly
        zoom = rng.uniform(0.35, 0.8) * calm * np.exp(_drift(rng, times_s, 0.12 * calm))
        angle = rng.uniform(-0.15, 0.15) * calm + _drift(rng, times_s, 0.08 * calm)
        shift = np.stack([_drift(rng, times_s, 0.3 * calm) for _ in range(2)]) + rng.uniform(-0.5, 0.5, (2, 1)) * calm
        tilt = np.stack([_drift(rng, times_s, 0.06 * calm) for _ in range(2)])
        path = _homographies(zoom, angle, shift, tilt, (photo_aspect, aspect))
        if np.abs(_corners(path)).max() < 0.98:
            return path
    raise AssertionError("a calm, close view stays inside any photo")


def _drift(rng: np.random.Generator, times_s: Array, size: float) -> Array:
    """A motion [T] that starts at zero: an even, waving or shaking move of about `size` per second, or none."""
    kind = rng.choice(["none", "even", "wave", "hand"], p=[0.25, 0.35, 0.25, 0.15])
    speed = size * rng.normal()
    if kind == "none":
        return np.zeros_like(times_s)
    if kind == "even":
        return np.asarray(speed * times_s * (1 + rng.uniform(-0.3, 0.3) * times_s / times_s[-1]))
    frequency = rng.uniform(0.1, 0.4) if kind == "wave" else rng.uniform(0.8, 2.0)
    phase = rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * frequency * times_s + phase) - np.sin(phase)
    return np.asarray(speed * wave / (2 * np.pi * frequency))


def _homographies(zoom: Array, angle: Array, shift: Array, tilt: Array, aspects: tuple[float, float]) -> Array:
    """Homographies [T,3,3]. `zoom` is the view's share of the largest view that fits; aspects of the photo and view."""
    photo_aspect, aspect = aspects
    fit = min(1.0, photo_aspect / aspect)  # half height of the largest view, in units of the photo's half height
    path = np.zeros((len(zoom), 3, 3))
    cosine, sine = np.cos(angle) * zoom * fit, np.sin(angle) * zoom * fit
    path[:, 0, 0], path[:, 0, 1] = cosine * aspect / photo_aspect, -sine / photo_aspect
    path[:, 1, 0], path[:, 1, 1] = sine * aspect, cosine
    path[:, :2, 2] = shift.T
    path[:, 2, :2] = tilt.T
    path[:, 2, 2] = 1
    return path


def _corners(path: Array) -> Array:
    """Positions of the view's corners in the photo, [T,4,2]."""
    corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], np.float64)
    ends = corners @ path.transpose(0, 2, 1)
    return np.asarray(ends[..., :2] / ends[..., 2:])


def _scaled(width: int, height: int) -> Array:
    """Matrix [3,3] from -1..1 to pixels, where integers are pixel centres."""
    return np.array([[width / 2, 0, width / 2 - 0.5], [0, height / 2, height / 2 - 0.5], [0, 0, 1]])


def _look(picture: NDArray[np.uint8], view: Array, height: int, width: int) -> NDArray[np.uint8]:
    """The photo through a view: shrunk first if the view shrinks it, then sampled finely and averaged."""
    shrink = max(1.0, float(np.sqrt(abs(np.linalg.det(view[:2, :2])))) / OVERSAMPLING)
    small = (max(1, round(picture.shape[1] / shrink)), max(1, round(picture.shape[0] / shrink)))
    source = cv2.resize(picture, small, interpolation=cv2.INTER_AREA) if shrink > 1 else picture
    to_small = _scaled(*small) @ np.linalg.inv(_scaled(picture.shape[1], picture.shape[0]))
    fine = (width * OVERSAMPLING, height * OVERSAMPLING)
    from_fine = _scaled(width, height) @ np.linalg.inv(_scaled(*fine))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image = cv2.warpPerspective(source, to_small @ view @ from_fine, fine, flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
