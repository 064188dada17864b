"""Packs a scored clip for later refreshes of its training run: the motion of one window, and the clip's group.

The pipeline packs each clip whose context names a run and an origin, in parts: the first is enough to train on, each
other one doubles the tracks and adds a frame pair. The worker keeps as many of them in Redis as there is room for
(queue/run_motion.py). A refresh reads them back, so it never runs the frozen estimators again. The first part also
holds what the gate needs: how much the clip moves, the terms of its logits, and the motion of its copies, if it has any
(pipeline/copies.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from reward_server.motion import Motion
from reward_server.profiles import Profile
from reward_server.profiles.packed import CHANNEL_SCALE, pack, unpack_maps, unpack_tokens

GROUP, ABOUT, COPY = "group", "about", "copy"  # tensors of the first part; those of copies are copy0.tracks, ...
MOST_PARTS = 8
OF_TRACKS = ("tracks", "state", "correlation")  # tensors whose first axis is tracks


@dataclass(frozen=True, kw_only=True)
class About:
    """What a clip's packed motion no longer tells."""

    amount: float = math.nan  # total motion in frame heights per second; NaN: not known
    terms: tuple[float, float] = (0.0, 0.0)  # `Profile.logit_terms`, in the order of DISCRIMINATORS

    def tensor(self) -> Tensor:
        return torch.tensor([self.amount, *self.terms], dtype=torch.float64)

    @classmethod
    def of(cls, tensor: Tensor) -> About:
        amount, *terms = tensor.tolist()
        return cls(amount=amount, terms=(terms[0], terms[1]))


UNKNOWN = About()


@dataclass(frozen=True, kw_only=True, eq=False)
class RunClip:
    """One clip's packed motion. The first axis of `maps` is frame pairs, that of the other tensors is tracks."""

    group_id: str
    packed: Mapping[str, Tensor]
    about: About = UNKNOWN
    copies: Sequence[RunClip] = ()  # of the clip, which must get a lower logit
    name: str = ""  # in the run's reservoir
    older: bool = False  # it is of an earlier buffer

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of frames and the size of the maps. Clips of one shape can share a training step."""
        return self.packed["tracks"].shape[1], *self.packed["maps"].shape[1:]

    def tokens(self, profile: Profile, start: int, num: int) -> Tensor:
        """Track tokens [num,T,D] of `num` tracks from `start` on. Tracks are stored in random order."""
        return unpack_tokens(self.packed, profile, start, num)

    def maps(self, start: int, num: int) -> Tensor:
        """Residual and confidence maps [num,2,H,W] of `num` kept pairs from `start` on, in the order of storage."""
        return unpack_maps(self.packed["maps"][start : start + num])

    @property
    def num_tracks(self) -> int:
        return len(self.packed["tracks"])

    @property
    def num_pairs(self) -> int:
        return len(self.packed["maps"])


def pack_clip(
    motion: Motion,
    *,
    num_pairs: int,
    num_tracks: int | None = None,
    min_tracks: int | None = None,
    group_id: str,
    seed: int = 0,
    about: About = UNKNOWN,
    copies: Sequence[tuple[Motion, About]] = (),
) -> tuple[bytes, ...]:
    """Pack a clip's motion into parts for `read_clip`. `num_pairs` and `num_tracks` are those of `packed.pack`.

    Only a NetworkMotion's tracks are divided: the first part has `min_tracks` of them, all without it. `seed` says
    which pair is in the first part. Of `copies` as much is kept as of the clip's first part.
    """
    packed = pack(motion, num_pairs=num_pairs, num_tracks=num_tracks)
    group = torch.tensor(list(group_id.encode()), dtype=torch.uint8)  # a tensor, because `load` drops metadata
    packed |= {GROUP: group, ABOUT: about.tensor()}
    for at, (copied, of_copy) in enumerate(copies):
        small = pack(copied, num_pairs=1, num_tracks=min_tracks) | {ABOUT: of_copy.tensor()}
        packed |= {f"{COPY}{at}.{name}": tensor for name, tensor in small.items()}
    return tuple(save(part) for part in split(packed, min_tracks=min_tracks, seed=seed))


def split(packed: Mapping[str, Tensor], *, min_tracks: int | None, seed: int) -> list[dict[str, Tensor]]:
    """Divide a packed clip into parts, the first of which also holds what has no axis of tracks or pairs."""
    num_tracks, num_pairs = len(packed["tracks"]), len(packed["maps"])
    pairs = np.random.default_rng(seed).permutation(num_pairs)
    tracks = [num_tracks] if min_tracks is None or CHANNEL_SCALE not in packed else _doubling(min_tracks, num_tracks)
    num = min(MOST_PARTS, max(len(tracks), num_pairs))
    tracks_to = [0, *(tracks[min(part, len(tracks) - 1)] for part in range(num - 1)), num_tracks]
    pairs_to = [0, *(min(part + 1, num_pairs) for part in range(num - 1)), num_pairs]
    parts = [
        {name: packed[name][tracks_to[part] : tracks_to[part + 1]].contiguous() for name in OF_TRACKS}
        | {"maps": packed["maps"][pairs[pairs_to[part] : pairs_to[part + 1]]].contiguous()}
        for part in range(num)
    ]
    rest = {name: tensor for name, tensor in packed.items() if name not in (*OF_TRACKS, "maps")}
    return [parts[0] | rest, *parts[1:]]


def read_clip(parts: Sequence[bytes], *, name: str = "", older: bool = False) -> RunClip:
    """Join the parts that `pack_clip` made, or the first few of them."""
    first, *more = map(load, parts)
    group_id = bytes(first.pop(GROUP).tolist()).decode()
    copies = _copies_in(first, group_id)
    about = first.pop(ABOUT, UNKNOWN.tensor())  # an older worker did not know it
    packed = {name: torch.cat([first[name], *(part[name] for part in more if name in part)]) for name in first}
    return RunClip(group_id=group_id, packed=packed, about=About.of(about), copies=copies, name=name, older=older)


def _copies_in(first: dict[str, Tensor], group_id: str) -> list[RunClip]:
    """Take the copies out of a clip's first part."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in sorted(name for name in first if name.startswith(COPY)):
        number, _, tensor = name.partition(".")
        found.setdefault(number, {})[tensor] = first.pop(name)
    return [RunClip(group_id=group_id, about=About.of(packed.pop(ABOUT)), packed=packed) for packed in found.values()]


def _doubling(start: int, end: int) -> list[int]:
    """`start`, twice that, and so on to `end`, which may be smaller."""
    numbers = [min(start, end)]
    while numbers[-1] < end:
        numbers.append(min(2 * numbers[-1], end))
    return numbers
