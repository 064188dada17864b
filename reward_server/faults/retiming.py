"""Implements the faults that play a clip back wrongly: loops, turns, surges, slow-downs and dissolved key frames.

Each fault takes (clip, strength in (0,1], rng) and returns a clip with the same number of frames. `slowed` and
`surging` interpolate between frames, and `morphing` cross-dissolves them. The others show source frames unchanged.
"""

from __future__ import annotations

import numpy as np

from protos.types import Clip
from reward_server.faults.frames import reordered
from reward_server.faults.interpolation import time_remap

SLOWEST = 0.04  # playback speed at strength 1 of slowed
SURGE = 6.0  # fast speed over slow speed at strength 1 of surging
TURNED = 0.45  # share of the frames that is played backward at strength 1 of reversed
WEAK = 0.25  # strength up to which morphing keeps every second frame


def slowed(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Play the whole clip more slowly: from 3/4 of its speed (at 0.25) to near stillness, SLOWEST of it (at 1)."""
    return time_remap(clip, (1 - strength * (1 - SLOWEST)) * np.arange(len(clip.frames)))


def surging(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Change the speed abruptly two to four times, between slow and fast. On average, and at the end, time is right."""
    steps = len(clip.frames) - 1
    changes = min(int(rng.integers(2, 5)), steps - 1)
    cuts = np.rint((np.arange(1, changes + 1) + rng.uniform(-0.3, 0.3, changes)) * steps / (changes + 1))
    part = np.searchsorted(cuts, np.arange(steps), side="right") + int(rng.integers(2))
    speeds = SURGE ** (strength * (part % 2))
    times = np.concatenate([[0.0], np.cumsum(speeds)])
    return time_remap(clip, np.minimum(times * steps / times[-1], steps))


def looped(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Play a stretch again and again: at its end the clip jumps back to its start.

    A weak fault repeats part of a long stretch once, late in the clip. A strong one repeats a short stretch many times.
    """
    num_frames = len(clip.frames)
    length = max(2, round((0.55 - 0.38 * strength) * num_frames * rng.uniform(0.85, 1.15)))
    late, early = rng.uniform(0.6, 0.85) * num_frames, length + rng.uniform(0, 0.15) * num_frames
    end = int(np.clip(round((1 - strength) * late + strength * early), length, num_frames - 2))
    ticks = np.arange(num_frames)
    return reordered(clip, np.where(ticks <= end, ticks, end - length + 1 + (ticks - end - 1) % length))


def reversed_(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Play forward, back, and forward again: one turn, or one or two in a clip of 16 frames or more.

    A stronger fault goes back farther.
    """
    num_steps = len(clip.frames) - 1
    num_turns = 1 if num_steps < 15 else int(rng.integers(1, 3))
    steps = np.ones(num_steps, np.int64)
    for slot in np.array_split(np.arange(num_steps), num_turns):
        longest = max(1, int(TURNED * len(slot)))
        turn = int(rng.integers(max(longest, (len(slot) + 1) // 2), len(slot) - longest + 1))
        back = max(1, round(strength * longest))
        steps[slot[turn : turn + back]] = -1
    return reordered(clip, np.concatenate([[0], np.cumsum(steps)]))


def morphing(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Cross-dissolve motion: keep every k-th frame and the last, and blend each frame between from its two neighbours.

    k grows from 2 (to 0.25) to the length of the clip (at 1).
    """
    last = len(clip.frames) - 1
    k = max(2, round(2 * (last / 2) ** ((strength - WEAK) / (1 - WEAK))))
    ticks = np.arange(last + 1)
    before = np.minimum(ticks // k * k, last)
    after = np.minimum(before + k, last)
    share = ((ticks - before) / np.maximum(after - before, 1)).astype(np.float32)[:, None, None, None]
    old, new = clip.frames[before].astype(np.float32), clip.frames[after]
    return Clip(frames=np.rint(old + share * (new - old)).astype(np.uint8), fps=clip.fps)
