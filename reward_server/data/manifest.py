"""Reads and writes the manifest of a data folder: one JSON line per clip. All commands of the recipe share it.

The file is `manifest.jsonl` in the clips' folder, and its paths are relative to that folder. A source (one video
file, one scene seed) is in one split only. So training never sees a held-out source.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from reward_server.errors import BadRequest
from reward_server.replacing import replacing

Split = Literal["train", "held_out"]
Kind = Literal["camera", "scene", "generated"]
NAME = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clip without cuts: frames `first`..`last` (exclusive) of the video at `path`.

    Raises BadRequest if the frames are not a range.
    """

    source: str
    path: Path
    first: int
    last: int
    split: Split
    kind: Kind
    licence: str

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise BadRequest(
                f"{self.source}: frames {self.first}..{self.last} are not a clip, need 0 <= first < last; correct its "
                "manifest entry"
            )


def write_manifest(manifest: Path, entries: Iterable[Entry]) -> None:
    """Replace the manifest atomically. The entries' paths must be below its folder."""
    lines = [{**asdict(entry), "path": entry.path.relative_to(manifest.parent).as_posix()} for entry in entries]
    with replacing(manifest) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))


def clips_of(manifest: Path) -> list[Entry]:
    """The entries of a manifest, or of a folder's manifest, in order. Their paths include the folder."""
    manifest = manifest / NAME if manifest.is_dir() else manifest
    entries = [_entry(line) for line in manifest.read_text().splitlines()]
    return [replace(entry, path=manifest.parent / entry.path) for entry in entries]


def _entry(line: str) -> Entry:
    record = json.loads(line)
    return Entry(**{**record, "path": Path(record["path"])})
