"""The manifest of a data folder: one JSON line per clip, shared by every command of the recipe.

It stands beside its clips as `manifest.jsonl` and holds paths relative to itself. A source (one
video file, one photograph, one scene seed) is in one split only, so held-out means never seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from reward_server.errors import BadRequest

Split = Literal["train", "held_out"]
Kind = Literal["camera", "scene", "still"]
NAME = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cut-free clip: frames `first`..`last` (the latter excluded) of the video at `path`."""

    source: str
    path: Path
    first: int
    last: int
    split: Split
    kind: Kind
    licence: str

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise BadRequest(f"{self.source}: frames {self.first}..{self.last} are not a clip; mend its manifest entry")


def write_manifest(manifest: Path, entries: Iterable[Entry]) -> None:
    """Replace the manifest at once; entries' paths must lie below its folder."""
    lines = [{**asdict(entry), "path": entry.path.relative_to(manifest.parent).as_posix()} for entry in entries]
    partial = manifest.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    partial.replace(manifest)


def clips_of(manifest: Path) -> list[Entry]:
    """The entries of a manifest, or of the manifest of a folder, in order, with usable paths."""
    manifest = manifest / NAME if manifest.is_dir() else manifest
    entries = [_entry(line) for line in manifest.read_text().splitlines()]
    return [replace(entry, path=manifest.parent / entry.path) for entry in entries]


def _entry(line: str) -> Entry:
    record = json.loads(line)
    return Entry(**{**record, "path": Path(record["path"])})
