"""Packs a scored clip for later refreshes of its training run: the motion of one window, and the clip's group.

The pipeline packs each clip whose context names a run and an origin. The worker keeps the bytes in Redis
(queue/run_store.py). A refresh reads them back, so it never runs the frozen estimators again.
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
    """One clip's packed motion. The first axis of `maps` is frame pairs, that of the other tensors is tracks."""

    group_id: str
    packed: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the packed tracks and maps. Clips of one shape can share a training step."""
        return *self.packed["tracks"].shape[:2], *self.packed["maps"].shape

    def tokens(self, profile: Profile, start: int, num: int) -> Tensor:
        """Track tokens [num,T,D] of `num` tracks from `start` on. Tracks are stored in random order."""
        return unpack_tokens(self.packed, profile, start, num)

    def maps(self, start: int, num: int) -> Tensor:
        """Residual and confidence maps [num,2,H,W] of `num` consecutive kept pairs from `start` on."""
        return unpack_maps(self.packed["maps"][start : start + num])

    @property
    def num_tracks(self) -> int:
        return len(self.packed["tracks"])

    @property
    def num_pairs(self) -> int:
        return len(self.packed["maps"])


def pack_clip(motion: Motion, *, num_pairs: int, num_tracks: int | None = None, group_id: str) -> bytes:
    """Pack a clip's motion into bytes for `read_clip`. `num_pairs` and `num_tracks` are those of `packed.pack`."""
    group = torch.tensor(list(group_id.encode()), dtype=torch.uint8)  # a tensor, because `load` drops metadata
    return save(pack(motion, num_pairs=num_pairs, num_tracks=num_tracks) | {GROUP: group})


def read_clip(data: bytes) -> RunClip:
    """Unpack the bytes that `pack_clip` made."""
    packed = load(data)
    return RunClip(group_id=bytes(packed.pop(GROUP).tolist()).decode(), packed=packed)
