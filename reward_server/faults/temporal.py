"""Implements the temporal faults, which show frames at the wrong time: freezes, stutter, shuffles, ghosts, slow-downs.

Each fault takes (clip, strength in (0,1], rng) and returns a clip with the same number of frames. `ghosted` mixes
frames, and `damped` and `speed_change` interpolate between them. The other faults show source frames unchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.faults.frames import reordered
from reward_server.faults.interpolation import time_remap

Indices = NDArray[np.int64]

SLOWEST = 0.35  # speed of the slow part at strength 1 of speed_change
DAMPING = 4.0  # e-folds by which the speed falls over the clip at strength 1 of damped
MAX_BLEND = 0.75  # weight of other frames at strength 1 of ghosted
MAX_RELABEL = 4.0  # factor on the frame rate at strength 1 of fps_relabelled


def static(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Stop all motion: the last share `strength` of the clip repeats one frame; at 1 every frame is the first frame."""
    last = len(clip.frames) - 1
    return reordered(clip, np.minimum(np.arange(last + 1), min(round((1 - strength) * last), last - 1)))


def frozen(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Freeze one stretch, or one or two in a clip of 16 frames or more. The clip then jumps to its current frame."""
    num_frames = len(clip.frames)
    num_stretches = 1 if num_frames < 16 else int(rng.integers(1, 3))
    shown = np.arange(num_frames)
    for slot in np.array_split(np.arange(1, num_frames - 1), num_stretches):
        longest = max(1, round(0.8 * len(slot)) - 1)  # most repeats of the held frame; some motion must remain
        start = slot[0] + int(rng.integers(0, len(slot) - longest))
        repeats = 1 + round(strength * (longest - 1))
        shown[start : start + repeats + 1] = start
    return reordered(clip, shown)


def stutter(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Lower the frame rate to 1 - 2/3 `strength` of it and hold frames.

    One frame in six repeats its predecessor at strength 0.25, two in three at strength 1.
    """
    ticks = np.arange(len(clip.frames))
    new = np.floor(ticks * (1 - strength * 2 / 3) + rng.random()).astype(np.int64)
    fresh = np.diff(new, prepend=-1) > 0
    if fresh.all():
        fresh[-1] = False
    return reordered(clip, np.maximum.accumulate(np.where(fresh, ticks, 0)))


def shuffled(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Reorder the frames after the first: a few neighbours swap, then more frames and farther; at 1 at random."""
    ticks = np.arange(len(clip.frames) - 1)
    noise = _disorder(len(ticks), rng)
    # Frames i < j swap order if 3 s (noise_i - noise_j) > (1 - s) (j - i), so more pairs swap as the strength s grows.
    steepest = -np.diff(noise).min()
    strength = max(strength, 1.001 / (1 + 3 * steepest))  # swap at least one pair
    order = np.argsort((1 - strength) * ticks + 3 * strength * noise, kind="stable")
    return reordered(clip, np.concatenate([[0], 1 + order]))


def ghosted(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Mix frames after the first with a fading trail of earlier frames, or with neighbours on both sides."""
    num_frames = len(clip.frames)
    share = MAX_BLEND * strength
    lag = np.subtract.outer(np.arange(num_frames), np.arange(num_frames))  # output frame minus source frame
    if rng.random() < 0.5:
        weights = np.where(lag >= 0, share ** np.maximum(lag, 0), 0.0)
    else:
        near = (np.abs(lag) <= 2) & (lag != 0)
        weights = (1 - share) * np.eye(num_frames) + share * near / near.sum(1, keepdims=True)
    weights[0] = lag[0] == 0
    weights /= weights.sum(1, keepdims=True)
    mixed = weights.astype(np.float32) @ clip.frames.reshape(num_frames, -1).astype(np.float32)
    return Clip(frames=np.rint(mixed).astype(np.uint8).reshape(clip.frames.shape), fps=clip.fps)


def damped(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Slow playback down all along the clip, so that its dynamics fade out.

    At 1, playback ends at 2 % of its speed, a quarter of the way through the source clip.
    """
    elapsed = np.linspace(0, 1, len(clip.frames))
    rate = DAMPING * strength
    return time_remap(clip, (len(clip.frames) - 1) * -np.expm1(-rate * elapsed) / rate)


def speed_change(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Change the playback speed abruptly mid-clip, between full speed and SLOWEST ** strength, in either direction."""
    num_frames = len(clip.frames)
    change = round(rng.uniform(0.35, 0.65) * (num_frames - 1))
    speeds = np.full(num_frames - 1, SLOWEST**strength)
    if rng.random() < 0.5:
        speeds[:change] = 1.0
    else:
        speeds[change:] = 1.0
    return time_remap(clip, np.concatenate([[0.0], np.cumsum(speeds)]))


def fps_relabelled(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Keep the frames, but declare a frame rate that is higher or lower by the factor MAX_RELABEL ** strength."""
    direction = 1 if rng.random() < 0.5 else -1
    return Clip(frames=clip.frames, fps=clip.fps * MAX_RELABEL ** (direction * strength))


def _disorder(num: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random numbers in -1..1 whose order is far from both ascending and descending.

    Almost every long draw is; a short one is drawn again until it is.
    """
    pairs = np.triu_indices(num, 1)
    while True:
        noise = rng.uniform(-1, 1, num)
        inverted = np.mean(noise[pairs[0]] > noise[pairs[1]])
        if 0.25 < inverted < 0.75:
            return noise
