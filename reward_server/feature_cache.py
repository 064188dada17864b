"""Frozen motion features on disk, so that training the heads never runs the estimators again.

One safetensors file per sample, compact: tracks as int16 in 1/64 px, visibility and confidence as
uint8, correlation as int8, residuals r as int8 companded by a square root (within sqrt(|r|)/8 grey
levels, up to 252), about 0.8 MiB for 256 tracks x 16 frames and 8 frame pairs of 144x256. A
step reads only the frame pairs it asks for. The index is JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reward_server.motion import Motion
from reward_server.profile import Profile

TRACK_SCALE = 64.0
RESIDUAL_SCALE = 8.0


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
        pairs = np.unique(np.linspace(0, len(motion.residual) - 1, num_pairs).round().astype(int))
        path = self._path(sample.key)
        path.parent.mkdir(exist_ok=True)
        save_file(_pack(motion, torch.from_numpy(pairs)), path)

    def has_part(self, part: str) -> bool:
        return self._index(part).is_file()

    def close_part(self, part: str, samples: Sequence[Sample]) -> None:
        """Record a finished part; only samples of finished parts are ever read."""
        partial = self._index(part).with_suffix(".partial")
        partial.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
        partial.replace(self._index(part))

    def samples(self) -> list[Sample]:
        """All samples of finished parts, in a fixed order."""
        return sorted(self._read_index(), key=lambda sample: sample.key)

    def tokens(self, sample: Sample, profile: Profile, start: int, num: int) -> Tensor:
        """Track tokens [num,T,D] of `num` tracks from `start` on; their order is already random."""
        with safe_open(self._path(sample.key), framework="pt") as file:
            tracks, state, correlation = (
                file.get_tensor(name).transpose(0, 1).float() for name in ("tracks", "state", "correlation")
            )
        visibility, confidence = (state / 255).unbind(-1)
        chosen = slice(start, start + num)
        return profile.track_tokens(tracks / TRACK_SCALE, visibility, confidence, correlation / 127, chosen=chosen)

    def maps(self, sample: Sample, start: int, num: int) -> Tensor:
        """Residual and confidence maps [num,2,H,W] of `num` consecutive cached pairs."""
        with safe_open(self._path(sample.key), framework="pt") as file:
            packed = file.get_slice("maps")[start : start + num].float()
        residual = packed[:, 0].sign() * (packed[:, 0] / RESIDUAL_SCALE).square()
        return torch.stack([residual, (packed[:, 1] + 128) / 255], dim=1)

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

    def _read_index(self) -> Iterator[Sample]:
        for index in sorted(self.folder.glob("index-*.jsonl")):
            for line in index.read_text().splitlines():
                record = json.loads(line)
                yield Sample(**{**record, "shape": tuple(record["shape"])})


def _pack(motion: Motion, pairs: Tensor) -> dict[str, Tensor]:
    residual = motion.residual[pairs]
    companded = residual.sign() * residual.abs().sqrt() * RESIDUAL_SCALE
    confidence = motion.flow_confidence[pairs] * 255 - 128
    state = torch.stack([motion.visibility, motion.confidence], dim=-1)
    return {
        "tracks": _rounded(motion.tracks.transpose(0, 1) * TRACK_SCALE, torch.int16),
        "state": _rounded(state.transpose(0, 1) * 255, torch.uint8),
        "correlation": _rounded(motion.correlation.transpose(0, 1) * 127, torch.int8),
        "maps": _rounded(torch.stack([companded, confidence], dim=1), torch.int8),
    }


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return values.round().clamp(limits.min, limits.max).to(dtype).contiguous()
