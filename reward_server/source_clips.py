"""The clips of a folder that pretraining reads: files, or the shots of a recipe's manifest."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reward_server.decoding.sniff import SUFFIXES
from reward_server.errors import BadRequest
from reward_server.recipe.manifest import clips_of


@dataclass(frozen=True, kw_only=True)
class SourceClip:
    """A cut-free stretch of a file, real or generated."""

    source: str
    path: Path
    first: int = 0
    last: int | None = None
    real: bool = True

    @functools.cached_property
    def part(self) -> str:
        """What its features are kept under. The file's content counts: another clip may come by the same path."""
        try:
            with self.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            content = str(self.path)  # it will be skipped, with the reason
        name = f"{self.source} {content} {self.first} {self.last} {self.real}"
        return hashlib.sha256(name.encode()).hexdigest()[:16]


def find_clips(folder: Path, *, real: bool) -> list[SourceClip]:
    """The clips of a folder: those of its manifest.jsonl that are for training, else every clip file below it."""
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        clips = list(_from_manifest(manifest, real=real))
    else:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        clips = [SourceClip(source=path.stem, path=path, real=real) for path in files]
    if not clips:
        raise BadRequest(f"{folder} holds no clips ({', '.join(SUFFIXES)}); give the folder of clips")
    return clips


def _from_manifest(manifest: Path, *, real: bool) -> Iterator[SourceClip]:
    """The training entries of a recipe's manifest."""
    for entry in clips_of(manifest):
        if entry.split == "train":
            yield SourceClip(source=entry.source, path=entry.path, first=entry.first, last=entry.last, real=real)
