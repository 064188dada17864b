"""Frozen motion features on disk, so that training the heads never runs the estimators again.

One safetensors file per sample, rows of `tracks`, `state`, `correlation` being tracks and of `maps` frame
pairs; a step reads only what it asks for. The index is JSON lines. What is kept, and how exactly:

    of a Motion          tracks int16, 1/64 px; visibility, confidence uint8, 1/255; correlation int8, 1/127;
                         residual r int8, sqrt(|r|)/8 grey levels, up to 252; flow confidence int8, 1/255.
                         0.8 MiB for 256 tracks x 16 frames and 8 pairs of 144x256.
    of a NetworkMotion   tracks float32, exact, and with them the displacement features; logits of visibility
                         and confidence float16, 1/2048 of themselves; the correlation embedding int8 with a
                         scale per channel, 1/254 of the channel's largest value in the clip; residual r
                         uint8, sqrt(|r|)/4 + 1/64 grey levels, up to 1008; flow confidence uint8, 1/510.
                         N x T x 1036 + P x 2 x H x W bytes: 12.1 + 4.2 MiB for 512 tracks x 24 frames and 12
                         pairs of 320x576.

Displacements, sines and the time embedding are made anew from these when tokens are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reward_server.discriminators.symmetry import PLAIN, Symmetry
from reward_server.motion import Motion, NetworkMotion
from reward_server.profiles import Profile

TRACK_SCALE = 64.0
CHANNEL_SCALE = "correlation_scale"  # [C] float32, beside the embedding of a NetworkMotion
RESIDUAL_SCALE = {torch.int8: 8.0, torch.uint8: 4.0}  # by how maps are stored: fine, or of wide range


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One cached clip. `view` joins a real clip and its degraded twins; `source` joins views of one clip."""

    key: str
    source: str
    view: str
    real: bool
    fault: str  # "" for real clips, a degradation's name, or "generated"
    strength: float
    shape: tuple[int, int, int]  # frames, height, width


class FeatureCache:
    """A folder of samples, added in parts (one a source clip) that are whole or absent, by any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, sample: Sample, motion: Motion, *, num_pairs: int) -> None:
        """Store a sample's motion; of its frame pairs, `num_pairs` evenly spaced ones."""
        path = self._path(sample.key)
        path.parent.mkdir(exist_ok=True)
        save_file(pack(motion, num_pairs=num_pairs), path)

    def has_part(self, part: str) -> bool:
        return self._index(part).is_file()

    def close_part(self, part: str, samples: Sequence[Sample]) -> None:
        """Record a finished part; only samples of finished parts are ever read."""
        partial = self._index(part).with_suffix(".partial")
        partial.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
        partial.replace(self._index(part))

    def samples(self, parts: Set[str]) -> list[Sample]:
        """The samples of those of the parts that are finished, in a fixed order."""
        return sorted(self._read_index(parts), key=lambda sample: sample.key)

    def tokens(self, sample: Sample, profile: Profile, start: int, num: int, symmetry: Symmetry = PLAIN) -> Tensor:
        """Track tokens [num,T,D] of `num` tracks from `start` on; their order is already random."""
        with safe_open(self._path(sample.key), framework="pt") as file:
            names = set(file.keys()) - {"maps"}
            if CHANNEL_SCALE not in names:  # such tracks need all others
                packed = symmetry.packed({name: file.get_tensor(name) for name in names})
                return unpack_tokens(packed, profile, start, num)
            if symmetry != PLAIN:
                raise ValueError(f"a network's features cannot be mirrored: {symmetry} of {sample.key}")
            rows = {name: file.get_slice(name)[start : start + num] for name in names - {CHANNEL_SCALE}}
            return unpack_tokens(rows | {CHANNEL_SCALE: file.get_tensor(CHANNEL_SCALE)}, profile, 0, num)

    def maps(self, sample: Sample, start: int, num: int) -> Tensor:
        """Residual and confidence maps [num,2,H,W] of `num` consecutive cached pairs."""
        with safe_open(self._path(sample.key), framework="pt") as file:
            return unpack_maps(file.get_slice("maps")[start : start + num])

    def num_pairs(self, sample: Sample) -> int:
        return self._rows(sample, "maps")

    def num_tracks(self, sample: Sample) -> int:
        return self._rows(sample, "tracks")

    def _rows(self, sample: Sample, name: str) -> int:
        with safe_open(self._path(sample.key), framework="pt") as file:
            return int(file.get_slice(name).get_shape()[0])

    def _index(self, part: str) -> Path:
        return self.folder / f"index-{part}.jsonl"

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read_index(self, parts: Set[str]) -> Iterator[Sample]:
        for part in filter(self.has_part, parts):
            for line in self._index(part).read_text().splitlines():
                record = json.loads(line)
                yield Sample(**{**record, "shape": tuple(record["shape"])})


def pack(motion: Motion, *, num_pairs: int, num_tracks: int | None = None) -> dict[str, Tensor]:
    """The tensors of one sample on the CPU: `num_pairs` evenly spaced frame pairs, and all tracks, or the first
    `num_tracks` of a NetworkMotion, whose tokens need no others."""
    pairs = torch.from_numpy(np.unique(np.linspace(0, len(motion.residual) - 1, num_pairs).round().astype(int)))
    if isinstance(motion, NetworkMotion):
        return _packed_network(motion, slice(num_tracks)) | {"maps": _packed_maps(motion, pairs, torch.uint8)}
    return {
        "tracks": _rounded(motion.tracks.transpose(0, 1) * TRACK_SCALE, torch.int16),
        "state": _rounded(motion.state.transpose(0, 1) * 255, torch.uint8),
        "correlation": _rounded(motion.correlation.transpose(0, 1) * 127, torch.int8),
        "maps": _packed_maps(motion, pairs, torch.int8),
    }


def unpack_tokens(packed: Mapping[str, Tensor], profile: Profile, start: int, num: int) -> Tensor:
    """Track tokens [num,T,D] of `num` packed tracks from `start` on."""
    chosen, alone = slice(start, start + num), CHANNEL_SCALE in packed
    needed = chosen if alone else slice(None)
    tracks, state, correlation = (
        packed[name][needed].transpose(0, 1).float() for name in ("tracks", "state", "correlation")
    )
    if alone:
        visibility, confidence = state.unbind(-1)
        return profile.track_tokens(tracks, visibility, confidence, correlation * packed[CHANNEL_SCALE])
    visibility, confidence = (state / 255).unbind(-1)
    return profile.track_tokens(tracks / TRACK_SCALE, visibility, confidence, correlation / 127, chosen=chosen)


def unpack_maps(packed: Tensor) -> Tensor:
    """Residual and confidence maps [P,2,H,W] of packed ones."""
    codes = packed.float() - _zero(packed.dtype)
    residual = codes[:, 0].sign() * (codes[:, 0] / RESIDUAL_SCALE[packed.dtype]).square()
    return torch.stack([residual, (codes[:, 1] + 128) / 255], dim=1)


def _packed_network(motion: NetworkMotion, kept: slice) -> dict[str, Tensor]:
    correlation_NTC = motion.correlation.transpose(0, 1)[kept]
    scale = correlation_NTC.abs().amax(dim=(0, 1)).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return {
        "tracks": motion.tracks.transpose(0, 1)[kept].contiguous().cpu(),
        "state": motion.logits.transpose(0, 1)[kept].half().contiguous().cpu(),
        "correlation": _rounded(correlation_NTC / scale, torch.int8),
        CHANNEL_SCALE: scale.cpu(),
    }


def _packed_maps(motion: Motion, pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """[P,2,H,W] codes: the signed square root of the residual, and the confidence over the whole range."""
    residual, confidence = motion.residual[pairs], motion.flow_confidence[pairs] * 255 - 128
    companded = residual.sign() * residual.abs().sqrt() * RESIDUAL_SCALE[dtype]
    return _rounded(torch.stack([companded, confidence], dim=1) + _zero(dtype), dtype)


def _zero(dtype: torch.dtype) -> int:
    """The code of nothing: 0 where codes are signed, else the middle."""
    return 0 if dtype.is_signed else 128


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return values.round().clamp(limits.min, limits.max).to(dtype).contiguous().cpu()
