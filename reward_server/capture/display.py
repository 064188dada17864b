"""What processing adds to frames: softness, resizing, soft flicker, blocks rounded anew, tiny warps and black bars.

Frames are float32 [T,H,W,3] in gray levels, 0..255.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

from reward_server.capture.sensor import Frames

BLOCK_PX = 8
SLOPE_PX = 24  # about the wavelength of the tiny warps
Image = NDArray[np.float32]


def softened(frames: Frames, sigma_px: float) -> Frames:
    """Blur every frame with a Gaussian."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma_px) for frame in frames]).astype(np.float32)


def resized_and_back(frames: Frames, scale: float) -> Frames:
    """Shrink every frame by `scale` (0..1) and enlarge it again."""
    height, width = frames.shape[1:3]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.stack([_resized(_resized(frame, small, cv2.INTER_AREA), (width, height)) for frame in frames])


def soft_flicker(frames: Frames, levels: float, wavelength_px: float, rng: np.random.Generator) -> Frames:
    """Add smooth noise of `levels` rms, drawn anew for every frame, as decoders leave between key frames."""
    num, height, width, _ = frames.shape
    shape = (num, max(2, round(height / wavelength_px)), max(2, round(width / wavelength_px)))
    coarse = rng.standard_normal(shape, dtype=np.float32)
    fields = np.stack([_resized(field, (width, height)) for field in coarse])
    return frames + np.float32(levels) * (fields / max(float(fields.std()), 1e-6))[..., None]


def requantised(frames: Frames, step: float, rng: np.random.Generator) -> Frames:
    """Round the DCT coefficients of every 8x8 block to multiples of a step, as compression frame by frame does.

    The step is drawn anew for every frame, within a factor of 2 of `step` gray levels, so even a held picture changes
    from frame to frame.
    """
    height, width = frames.shape[1:3]
    steps = step * 2 ** rng.uniform(-1, 1, (len(frames), 1, 1, 1, 1, 1))
    padded = np.pad(frames, ((0, 0), (0, -height % BLOCK_PX), (0, -width % BLOCK_PX), (0, 0)), mode="edge")
    blocks = padded.reshape(len(frames), -1, BLOCK_PX, padded.shape[2] // BLOCK_PX, BLOCK_PX, 3)
    coefficients = fft.dctn(blocks, axes=(2, 4), norm="ortho")
    rounded = fft.idctn(np.rint(coefficients / steps) * steps, axes=(2, 4), norm="ortho")
    return np.asarray(rounded.reshape(padded.shape)[:, :height, :width], np.float32)


def tiny_warps(frames: Frames, reach_px: float, rng: np.random.Generator) -> Frames:
    """Bend every frame smoothly, each in its own way, by at most `reach_px`: no more than a tenth of a pixel.

    To the first order, because OpenCV's resampling rounds such displacements to 1/32 px.
    """
    height, width = frames.shape[1:3]
    coarse = (max(2, round(height / SLOPE_PX)), max(2, round(width / SLOPE_PX)), 2)
    bent = []
    for frame in frames:
        field = _resized(rng.standard_normal(coarse, dtype=np.float32), (width, height))
        along_x, along_y = np.moveaxis(reach_px / np.linalg.norm(field, axis=-1).max() * field, -1, 0)[..., None]
        slope_y, slope_x = np.gradient(frame, axis=(0, 1))
        bent.append(frame + along_x * slope_x + along_y * slope_y)
    return np.stack(bent).astype(np.float32)


def barred(frames: Frames, share: float, upright: bool) -> Frames:
    """Blacken `share` (0..0.5) of the frame at both ends: left and right if `upright`, else top and bottom."""
    axis = 2 if upright else 1
    bar = round(share * frames.shape[axis])
    if not bar:
        return frames
    barred_frames = np.moveaxis(frames.copy(), axis, 0)
    barred_frames[:bar] = barred_frames[-bar:] = 0
    return np.moveaxis(barred_frames, 0, axis)


def _resized(image: Image, size: tuple[int, int], interpolation: int = cv2.INTER_CUBIC) -> Image:
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.float32)
