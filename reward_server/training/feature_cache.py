"""Caches motion features on disk, so that training the discriminators never runs the frozen estimators again.

There is one safetensors file per sample, packed by `profiles/packed.py`. Of a network's features, a training step reads
only the rows it uses. The index is JSON lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from reward_server.motion import Motion
from reward_server.profiles import Profile
from reward_server.profiles.packed import CHANNEL_SCALE, pack, unpack_maps, unpack_tokens
from reward_server.replacing import replacing
from reward_server.training.symmetry import PLAIN, Symmetry

GENERATED = "generated"  # in the place of a fault's name


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One cached clip. A real clip and its faulty twins have the same `view`; views of one clip the same `source`."""

    key: str
    source: str
    view: str
    real: bool
    fault: str  # "" for real clips, GENERATED for generated clips, else the fault's name
    strength: float
    shape: tuple[int, int, int]  # frames, height, width
    amount: float = 0.0  # motion of the view before any fault, in frame heights per second (`negatives.fastest_motion`)
    change: float = 0.0  # mean absolute difference of its successive frames, in gray levels
    sharpness: float = 0.0  # mean absolute Laplacian of its frames, in gray levels
    fps: float = 0.0  # its rate


class FeatureCache:
    """A folder of samples. They are added in parts, one per source clip, by any number of processes.

    A part is complete or absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, sample: Sample, motion: Motion, *, num_pairs: int) -> None:
        """Store a sample's motion, with `num_pairs` evenly spaced frame pairs."""
        path = self._path(sample.key)
        path.parent.mkdir(exist_ok=True)
        save_file(pack(motion, num_pairs=num_pairs), path)

    def has_part(self, part: str) -> bool:
        return self._index(part).is_file()

    def close_part(self, part: str, samples: Sequence[Sample]) -> None:
        """Record a part as complete. Samples of incomplete parts are never read."""
        with replacing(self._index(part)) as partial:
            partial.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))

    def samples(self, parts: Set[str]) -> list[Sample]:
        """The samples of all complete parts among `parts`, in a fixed order."""
        return sorted(self._read_index(parts), key=lambda sample: sample.key)

    def tokens(self, sample: Sample, profile: Profile, start: int, num: int, symmetry: Symmetry = PLAIN) -> Tensor:
        """Track tokens [num,T,D] of `num` tracks from `start` on, under `symmetry`.

        Tracks are stored in random order. Raises ValueError for a symmetry of a network's features.
        """
        with safe_open(self._path(sample.key), framework="pt") as file:
            names = set(file.keys()) - {"maps"}
            if CHANNEL_SCALE not in names:  # no network's features: the tokens of a track need all other tracks
                packed = symmetry.packed({name: file.get_tensor(name) for name in names})
                return unpack_tokens(packed, profile, start, num)
            if symmetry != PLAIN:
                raise ValueError(
                    f"a network's features cannot be mirrored, got {symmetry} for sample {sample.key}; "
                    "train this profile without symmetries"
                )
            rows = {name: file.get_slice(name)[start : start + num] for name in names - {CHANNEL_SCALE}}
            return unpack_tokens(rows | {CHANNEL_SCALE: file.get_tensor(CHANNEL_SCALE)}, profile, 0, num)

    def maps(self, sample: Sample, start: int, num: int, symmetry: Symmetry = PLAIN) -> Tensor:
        """`Motion.maps` [num,M,H,W] of `num` consecutive cached pairs from `start` on, under `symmetry`."""
        with safe_open(self._path(sample.key), framework="pt") as file:
            return symmetry.seen(unpack_maps(file.get_slice("maps")[start : start + num]))

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
