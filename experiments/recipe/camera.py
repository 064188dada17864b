"""Draws the path of a simulated camera that stands, pans, orbits or follows a body, with or without hand shake.

World axes: z is up, metres. A pose is the eye [3] and a rotation [3,3]. The rotation's columns are the camera's right,
up and backward axes in the world, as in MuJoCo and OpenGL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """T frames of one camera: eye [T,3], rotation [T,3,3], vertical field of view in degrees."""

    eye: Array
    rotation: Array
    fovy_deg: float


def random_path(rng: np.random.Generator, num: int, fps: float, subject: Array) -> CameraPath:
    """A random path of `num` frames. The camera may follow `subject` [T,3], the path of a body."""
    times_s = np.arange(num) / fps
    target = np.array([*rng.uniform(-0.2, 0.2, 2), rng.uniform(0.4, 0.9)]) + np.zeros((num, 3))
    azimuth = np.full(num, rng.uniform(0, 2 * np.pi))
    elevation = np.full(num, np.deg2rad(rng.uniform(8, 40)))
    distance = np.full(num, rng.uniform(2.4, 4.2))
    move = rng.choice(["stand", "orbit", "dolly", "pan", "follow"], p=[0.3, 0.25, 0.15, 0.15, 0.15])
    progress = _eased(times_s / times_s[-1], rng)
    if move == "orbit":
        azimuth = azimuth + progress * times_s[-1] * rng.uniform(-0.4, 0.4)
        elevation = elevation + progress * rng.uniform(-0.1, 0.1)
    elif move == "dolly":
        distance = distance * (1 + progress * rng.uniform(-0.3, 0.3))
    elif move == "pan":
        target = target + progress[:, None] * rng.uniform(-0.8, 0.8, 3) * [1, 1, 0.4]
    elif move == "follow":
        target = target + 0.7 * (_smoothed(subject, fps) - target)
    horizontal = np.cos(elevation)
    offset = np.stack([horizontal * np.cos(azimuth), horizontal * np.sin(azimuth), np.sin(elevation)], axis=1)
    fixed = target[:1] if move in ("pan", "follow") else target  # in a pan the eye stays and only the target moves
    eye = fixed + distance[:, None] * offset
    shake = rng.choice([0.0, rng.uniform(0.1, 0.5), rng.uniform(0.5, 1.2)], p=[0.45, 0.35, 0.2])
    eye = eye + shake * 0.03 * _hand_noise(rng, times_s, 3)
    angles = shake * 0.015 * _hand_noise(rng, times_s, 3)
    return CameraPath(
        eye=eye, rotation=_looking(eye, target) @ _small_rotations(angles), fovy_deg=float(rng.uniform(34, 56))
    )


def _eased(progress: Array, rng: np.random.Generator) -> Array:
    """Progress 0..1 with a random amount of easing in and out."""
    ease = rng.uniform(0, 1)
    return (1 - ease) * progress + ease * progress**2 * (3 - 2 * progress)


def _smoothed(path: Array, fps: float) -> Array:
    """A path [T,3] smoothed as a camera operator would follow it: a Gaussian of 0.4 s with the ends held."""
    reach = max(1, round(0.8 * fps))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (0.4 * fps)) ** 2)
    padded = np.pad(path, ((reach, reach), (0, 0)), mode="edge")
    return np.stack([np.convolve(axis, weights / weights.sum(), mode="valid") for axis in padded.T], axis=1)


def _hand_noise(rng: np.random.Generator, times_s: Array, num: int) -> Array:
    """Noise [T,num] of about unit size: a sum of sines of 0.3..2.2 Hz, weaker at higher frequencies."""
    frequency = np.geomspace(0.3, 2.2, 5)
    phase = rng.uniform(0, 2 * np.pi, (num, 5))
    waves = np.sin(2 * np.pi * times_s[:, None, None] * frequency + phase) * (0.4 / frequency)
    return np.asarray(waves.sum(axis=-1))


def _looking(eye: Array, target: Array) -> Array:
    """Rotations [T,3,3] that look from eye to target with the horizon level."""
    backward = (eye - target) / np.linalg.norm(eye - target, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(backward, right), backward], axis=-1)


def _small_rotations(angles: Array) -> Array:
    """Rotations [T,3,3] about the camera's own axes by small angles [T,3], exact by Rodrigues' formula."""
    size = np.linalg.norm(angles, axis=1)[:, None, None]
    x, y, z = angles.T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    sine, cosine = np.sinc(size / np.pi), 0.5 * np.sinc(size / 2 / np.pi) ** 2
    return np.asarray(np.eye(3) + sine * cross + cosine * cross @ cross)
