"""A run's clips as a refresh sees them: packed motion of one window, and the group it was scored in.

The pipeline packs a clip that says its run and origin, the worker keeps the bytes in Redis
(queue/run_store.py), a refresh reads them back and never runs the frozen estimators again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save
from torch import Tensor

from reward_server.motion import Motion
from reward_server.profiles import Profile
from reward_server.profiles.packed import pack, unpack_maps, unpack_tokens

GROUP = "group"


@dataclass(frozen=True, kw_only=True, eq=False)
class RunClip:
    """One clip's packed motion; rows of `maps` are frame pairs, of the other tensors tracks."""

    group_id: str
    packed: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Clips of one shape can share a step: frames, height, width, and the kept pairs and tracks."""
        return *self.packed["tracks"].shape[:2], *self.packed["maps"].shape

    def tokens(self, profile: Profile, start: int, num: int) -> Tensor:
        """[num,T,D] of `num` tracks from `start` on; their order is already random."""
        return unpack_tokens(self.packed, profile, start, num)

    def maps(self, start: int, num: int) -> Tensor:
        """[num,2,H,W] of `num` consecutive kept pairs."""
        return unpack_maps(self.packed["maps"][start : start + num])

    @property
    def num_tracks(self) -> int:
        return len(self.packed["tracks"])

    @property
    def num_pairs(self) -> int:
        return len(self.packed["maps"])


def pack_clip(motion: Motion, *, num_pairs: int, num_tracks: int | None = None, group_id: str) -> bytes:
    """The bytes that `read_clip` reads; `num_pairs` evenly spaced frame pairs are kept, and tracks as `pack` says."""
    group = torch.tensor(list(group_id.encode()), dtype=torch.uint8)  # a tensor too: `load` drops metadata
    return save(pack(motion, num_pairs=num_pairs, num_tracks=num_tracks) | {GROUP: group})


def read_clip(data: bytes) -> RunClip:
    packed = load(data)
    return RunClip(group_id=bytes(packed.pop(GROUP).tolist()).decode(), packed=packed)
