"""Changes how a clip looks, or moves its picture as a camera would, without repairing its motion.

These are the parts of `degenerates.py` and of the search in `search.py`. Each function takes frames, float32 [T,H,W,3]
RGB 0..255, and returns new frames; values may leave 0..255 until `clip_of` rounds and clips them. Noise and other
random changes are drawn for each frame anew. Distances named `_px` are in pixels of these frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from protos.reader import open_source
from protos.types import Clip
from reward_server.decoding.encode import encode_h264

Frames = NDArray[np.float32]


def frames_of(clip: Clip) -> Frames:
    return np.ascontiguousarray(clip.frames.transpose(0, 2, 3, 1), np.float32)


def clip_of(frames: Frames, fps: float) -> Clip:
    rounded = np.clip(np.rint(frames), 0, 255).astype(np.uint8)
    return Clip(frames=np.ascontiguousarray(rounded.transpose(0, 3, 1, 2)), fps=fps)


# --- noise and brightness -----------------------------------------------------------------------


def noisy(frames: Frames, sigma: float, rng: np.random.Generator) -> Frames:
    """Add Gaussian noise of `sigma` gray levels to every pixel and channel."""
    return frames + np.float32(sigma) * rng.standard_normal(frames.shape, np.float32)


def grainy(frames: Frames, sigma: float, size_px: float, rng: np.random.Generator) -> Frames:
    """Add gray grain of `sigma` gray levels that is correlated over about `size_px`."""
    grain = [cv2.GaussianBlur(rng.standard_normal(frame.shape[:2], np.float32), (0, 0), size_px) for frame in frames]
    scale = [np.float32(sigma / max(float(layer.std()), 1e-6)) for layer in grain]
    return np.stack([frame + s * layer[..., None] for frame, s, layer in zip(frames, scale, grain, strict=True)])


def flickered(frames: Frames, share: float, rng: np.random.Generator) -> Frames:
    """Change the brightness of every frame by a random share, of standard deviation `share`."""
    return frames * (1 + np.float32(share) * rng.standard_normal((len(frames), 1, 1, 1), np.float32))


def graded(
    frames: Frames,
    *,
    gamma: float = 1,
    contrast: float = 1,
    saturation: float = 1,
    cast: tuple[float, float, float] = (1, 1, 1),
) -> Frames:
    """Apply a gamma, then contrast about mid gray, saturation, and a factor for each of red, green and blue."""
    curved = 255 * (np.clip(frames, 0, 255) / 255) ** np.float32(gamma)
    wide = 127.5 + np.float32(contrast) * (curved - 127.5)
    gray = wide.mean(-1, keepdims=True)
    return np.asarray((gray + np.float32(saturation) * (wide - gray)) * np.array(cast, np.float32), np.float32)


def vignetted(frames: Frames, depth: float) -> Frames:
    """Darken the corners by the share `depth`."""
    _, height, width, _ = frames.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return frames * (1 - depth * (x**2 + y**2) / 2).astype(np.float32)[..., None]


def letterboxed(frames: Frames, share: float) -> Frames:
    """Blacken the share `share` of the height, half of it above and half below."""
    rows = round(share * frames.shape[1] / 2)
    boxed = frames.copy()
    boxed[:, :rows] = 0
    boxed[:, frames.shape[1] - rows :] = 0
    return boxed


# --- sharpness and coding -----------------------------------------------------------------------


def blurred(frames: Frames, sigmas_px: Sequence[float]) -> Frames:
    """Blur every frame with its own Gaussian. Frames with a sigma below 0.05 px stay as they are."""
    return np.stack(
        [
            cv2.GaussianBlur(frame, (0, 0), sigma) if sigma >= 0.05 else frame
            for frame, sigma in zip(frames, sigmas_px, strict=True)
        ]
    )


def sharpened(frames: Frames, amount: float) -> Frames:
    """Add `amount` times what a blur of 1 px takes away."""
    return frames + np.float32(amount) * (frames - blurred(frames, [1.0] * len(frames)))


def rescaled(frames: Frames, factors: Sequence[float]) -> Frames:
    """Shrink every frame to its own factor (0..1) of its size, and enlarge it again."""
    height, width = frames.shape[1:3]
    small = [
        cv2.resize(frame, (max(1, round(width * f)), max(1, round(height * f))), interpolation=cv2.INTER_AREA)
        for frame, f in zip(frames, factors, strict=True)
    ]
    return np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in small])


def quantised(frames: Frames, step: float, block_px: int = 8) -> Frames:
    """Round the mean of every block to multiples of `step` gray levels, as strong compression does."""
    height, width = frames.shape[1:3]
    size = (max(1, width // block_px), max(1, height // block_px))
    means = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    change = [cv2.resize(np.rint(m / step) * step - m, (width, height), interpolation=cv2.INTER_NEAREST) for m in means]
    return frames + np.stack(change).astype(np.float32)


def coded(frames: Frames, fps: float, crf: int) -> Frames:
    """Encode with x264 at `crf` and decode again. Sides must be even."""
    with open_source(encode_h264(clip_of(frames, fps), crf=crf)) as source:
        shown = [frame for _, frame in source.frames(range(len(source.times_s)))]
    return np.stack(shown).astype(np.float32)


# --- time and place -----------------------------------------------------------------------------


def smoothed(frames: Frames, share: float) -> Frames:
    """Mix every frame with the mean of its two neighbours, which get the weight `share`."""
    padded = np.concatenate([frames[:1], frames, frames[-1:]])
    return np.asarray((1 - share) * frames + share / 2 * (padded[:-2] + padded[2:]), np.float32)


def camera(
    frames: Frames,
    *,
    pan_x: ArrayLike = 0.0,
    pan_y: ArrayLike = 0.0,
    zoom: ArrayLike = 1.0,
    turn_deg: ArrayLike = 0.0,
) -> Frames:
    """Move the picture as a camera would: `pan` in shares of width and height, `zoom` as a factor, `turn` in degrees.

    Each is one number or one per frame. The frames are resampled with a Lanczos kernel and reflected at their borders.
    """
    num_frames, height, width, _ = frames.shape
    moves = np.broadcast_arrays(pan_x, pan_y, zoom, turn_deg, np.zeros(num_frames))[:4]
    centre = ((width - 1) / 2, (height - 1) / 2)
    shown = []
    for frame, x, y, factor, turn in zip(frames, *moves, strict=True):
        matrix = cv2.getRotationMatrix2D(centre, float(turn), float(factor))
        matrix[:, 2] += (x * width, y * height)
        shown.append(
            cv2.warpAffine(frame, matrix, (width, height), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
        )
    return np.stack(shown).astype(np.float32)


def slid(
    frames: Frames, way: Sequence[float] | NDArray[np.float64], relief_HW: NDArray[np.float32], *, zoom: float = 1.0
) -> Frames:
    """Enlarge every frame, and slide it sideways by its share of the width in `way` times the relief at each pixel."""
    height, width = frames.shape[1:3]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    from_y = ((y - middle_y) / zoom + middle_y).astype(np.float32)
    shown = []
    for frame, share in zip(frames, way, strict=True):
        from_x = ((x - share * width * relief_HW - middle_x) / zoom + middle_x).astype(np.float32)
        shown.append(cv2.remap(frame, from_x, from_y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101))
    return np.stack(shown).astype(np.float32)


def relief(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """A made-up depth [H,W]: how much faster than the mean each pixel of a sliding picture moves, 0.5 to 1.5.

    What is bright, and what is low in the picture, counts as near.
    """
    height, width = frame.shape[:2]
    bright = cv2.GaussianBlur(frame.mean(-1), (0, 0), min(height, width) / 12)
    near = bright / 255 + np.linspace(0, 1, height, dtype=np.float32)[:, None]
    return np.asarray(0.5 + (near - near.min()) / max(float(near.max() - near.min()), 1e-6), np.float32)


def wobbled(frames: Frames, reach_px: float, rng: np.random.Generator) -> Frames:
    """Bend every frame smoothly by `reach_px` rms, each in its own way."""
    height, width = frames.shape[1:3]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    shown = []
    for frame in frames:
        bend = cv2.resize(rng.standard_normal((5, 5, 2), np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        place = grid + bend * np.float32(reach_px / np.sqrt(2) / max(float(bend.std()), 1e-6))
        shown.append(
            cv2.remap(frame, place[..., 0], place[..., 1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
        )
    return np.stack(shown).astype(np.float32)
