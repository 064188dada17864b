"""Makes the copies of a run's real clips that its gate attacks the discriminators with: a held frame, and a glide.

A policy that freezes, or that moves the camera over a still picture, must not earn more than the real clip
(worker/gate.py). This is `motion-reward attack` in small, at every refresh.
"""

from __future__ import annotations

import hashlib

import numpy as np

from protos.types import Clip, Context, Origin
from reward_server.faults import MIN_FRAMES, MIN_SIDE_PX, with_fault
from reward_server.faults.still_clips import is_still

KINDS = ("static", "gliding")
ONE_IN = 8  # groups whose real clip has copies: as many as a refresh holds out
NOISE_LEVELS = 2.0  # standard deviation in grey levels, so that held frames are no exact copies


def is_copied(context: Context) -> bool:
    """Whether this clip's copies are measured too: it is a real one, of a group that is drawn."""
    if not (context.run_id and context.origin is Origin.REAL):
        return False
    drawn = hashlib.sha256(f"{context.run_id}\0copies\0{context.group_id or context.idempotency_key}".encode()).digest()
    return drawn[0] % ONE_IN == 0


def copies(clip: Clip, seed: int) -> list[Clip]:
    """The clip's first frame held, and a camera that glides over it, both with noise.

    There are none of a clip in which nothing moves, because it is no better than they are, nor of one that is too
    small for a fault.
    """
    num_frames, _, height, width = clip.frames.shape
    if num_frames < MIN_FRAMES or min(height, width) < MIN_SIDE_PX or is_still(clip):
        return []
    return [_noisy(with_fault(clip, kind, 1.0, seed), seed) for kind in KINDS]


def _noisy(clip: Clip, seed: int) -> Clip:
    noise = np.random.default_rng(seed).normal(0, NOISE_LEVELS, clip.frames.shape)
    return Clip(frames=np.clip(np.rint(clip.frames + noise), 0, 255).astype(np.uint8), fps=clip.fps)
