"""Makes a run's clips for tests of refreshes: packed motion of two kinds that a discriminator soon separates.

Real clips move smoothly and have a small residual. Rollouts jump and have a large one.
"""

from __future__ import annotations

import torch

from protos.types import Origin
from reward_server.motion import Motion
from reward_server.profiles.run_clips import pack_clip
from reward_server.queue.run_store import RunStore

FRAMES, TRACKS, SIDE_PX = 8, 16, 32


def motion(origin: Origin, seed: int, frames: int = FRAMES) -> Motion:
    rng = torch.Generator().manual_seed(1000 * seed + (origin is Origin.REAL))
    jumps = 0.0 if origin is Origin.REAL else 3.0
    start = torch.rand(1, TRACKS, 2, generator=rng) * SIDE_PX
    steps = 0.5 + jumps * torch.randn(frames - 1, TRACKS, 2, generator=rng)
    flat = (frames - 1, SIDE_PX, SIDE_PX)
    return Motion(
        tracks=torch.cat([start, start + steps.cumsum(0)]),
        visibility=torch.ones(frames, TRACKS),
        confidence=torch.ones(frames, TRACKS),
        correlation=torch.rand(frames, TRACKS, 3, 5, 5, generator=rng),
        flow=torch.zeros(frames - 1, 2, SIDE_PX, SIDE_PX),
        residual=(1 + 10 * jumps) * torch.randn(flat, generator=rng),
        flow_confidence=torch.ones(flat),
        fps=12.0,
    )


def packed(origin: Origin, seed: int, frames: int = FRAMES, group_id: str = "") -> tuple[bytes, ...]:
    return pack_clip(motion(origin, seed, frames), num_pairs=4, group_id=group_id)


async def fill(store: RunStore, run_id: str, num: int = 4) -> None:
    """`num` clips of each origin, as a worker stores them after scoring."""
    for origin in Origin:
        for seed in range(num):
            group_id = f"group-{seed}"
            parts = packed(origin, seed, group_id=group_id)
            await store.motion.keep_clip(run_id, origin, f"{origin}-{seed}", parts, group_id=group_id)
