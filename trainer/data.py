"""Which real clips there are and in what order they come: folders and manifests -> slot number -> clip.

A run takes slots 0, 1, 2, ...; every epoch is a new permutation that depends on the seed and the epoch alone, so
the order needs no state: the slot number is the position to resume from. A file that cannot be used is reported
once and counted, and its slot goes to another file, drawn from the seed and the slot.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protos.reader.files import clip_files
from protos.reader.sniff import SUFFIXES
from protos.types import Clip
from trainer.errors import ConfigError, DataError
from trainer.video import SPEED_TOLERANCE, ClipForm, read_clip

log = logging.getLogger(__name__)

MANIFESTS = (".json", ".jsonl", ".csv")
FOLDER_MANIFEST = "manifest.jsonl"
MAX_TRIES = 100
Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the real clips are."""

    train: tuple[str, ...] = ()  # folders, manifests (.json, .jsonl, .csv: path, caption, first, last, split), files
    held_out: tuple[str, ...] = ()  # the same, for `evaluate`
    start: Literal["random", "first"] = "random"  # where in a long file a clip begins
    caption: str = ""  # prompt of clips without one of their own
    speed_tolerance: float = SPEED_TOLERANCE  # the share by which a speed may change so that every n-th frame is taken

    def __post_init__(self) -> None:
        if not 0 <= self.speed_tolerance < 1:
            raise ConfigError(
                f"data.speed_tolerance={self.speed_tolerance} must be from 0 (multiples of the policy's frame rate are "
                "thinned evenly, no others) to below 1; 0.17 is usual"
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clip file, or frames `first`..`last` (the latter excluded) of it."""

    path: Path
    caption: str = ""
    first: int = 0
    last: int | None = None


@dataclass(frozen=True, kw_only=True)
class RealClip:
    """A clip in the policy's form, and where it came from."""

    clip: Clip
    caption: str
    path: Path


def find_sources(paths: Sequence[str], split: Split, caption: str = "") -> list[Source]:
    """All clips that the paths name, in order. A folder with a manifest.jsonl is that manifest.

    Of manifest entries with a `split` only those of `split` are taken. Raises DataError where a path names nothing.
    """
    found: list[Source] = []
    for name in paths:
        sources = list(_sources(Path(name), split, caption))
        if not sources:
            raise DataError(f"'{name}' holds no clip ({', '.join(SUFFIXES)}) of the split {split}; check data.{split}")
        found += sources
    if not found:
        raise DataError(f"no clips: give folders, manifests or files as data.{split}")
    return found


def _sources(path: Path, split: Split, caption: str) -> Iterator[Source]:
    if not path.exists():
        raise DataError(f"'{path}' does not exist; check data.{split}")
    if path.is_dir() and (path / FOLDER_MANIFEST).is_file():
        path = path / FOLDER_MANIFEST
    if path.is_dir():
        yield from (Source(path=file, caption=caption) for file in clip_files(path))
    elif path.suffix.lower() in MANIFESTS:
        for number, record in enumerate(_records(path), 1):
            if record.get("split") in (None, "", split):
                yield _entry(path, number, record, caption)
    else:
        yield Source(path=path, caption=caption)


def _records(manifest: Path) -> list[Mapping[str, Any]]:
    text = manifest.read_text()
    try:
        if manifest.suffix.lower() == ".csv":
            return list(csv.DictReader(text.splitlines()))
        if manifest.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{manifest} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise DataError(f"{manifest} must hold a list of entries with a path, got {type(records).__name__}")
    return records


def _entry(manifest: Path, number: int, record: Mapping[str, Any], caption: str) -> Source:
    try:
        return Source(
            path=manifest.parent / record["path"],
            caption=record.get("caption") or caption,
            first=int(record.get("first") or 0),
            last=int(record["last"]) if record.get("last") not in (None, "") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{manifest}, entry {number}: needs a path, and numbers as first and last: {error!r}"
        ) from error


class Clips:
    """The real clips of a run by slot."""

    def __init__(self, sources: Sequence[Source], form: ClipForm, *, seed: int, data: DataConfig | None = None) -> None:
        self._sources, self._form, self._seed, self._data = sources, form, seed, data or DataConfig()
        self._order: tuple[int, list[int]] = (-1, [])
        self._last: tuple[int, RealClip] | None = None
        self.bad: dict[Source, str] = {}  # what could not be used at least once, and why

    def __len__(self) -> int:
        return len(self._sources)

    def at(self, slot: int) -> RealClip:
        """The clip of a slot, always the same. Raises DataError when nothing that was tried can be used."""
        if self._last is None or self._last[0] != slot:
            self._last = slot, self._find(slot)
        return self._last[1]

    def _find(self, slot: int) -> RealClip:
        for attempt in range(MAX_TRIES):
            source = self._sources[self._index(slot, attempt)]
            try:  # also what failed before: a file may be good elsewhere, and who resumes knows of no failures
                return self._read(source, slot)
            except DataError as error:
                if source not in self.bad:
                    log.warning("skipped clip %d of %d: %s", len(self.bad) + 1, len(self), error)
                self.bad[source] = str(error)
        reason = next(reversed(self.bad.values()), "")
        raise DataError(
            f"{len(self.bad)} of {len(self)} clips cannot be used, none was found for slot {slot}: {reason}"
        )

    def _read(self, source: Source, slot: int) -> RealClip:
        start = float(np.random.default_rng([self._seed, 1, slot]).random()) if self._data.start == "random" else 0.0
        clip = read_clip(
            source.path,
            self._form,
            start=start,
            first=source.first,
            last=source.last,
            speed_tolerance=self._data.speed_tolerance,
        )
        return RealClip(clip=clip, caption=source.caption, path=source.path)

    def _index(self, slot: int, attempt: int) -> int:
        if attempt:
            return int(np.random.default_rng([self._seed, 2, slot, attempt]).integers(len(self)))
        epoch, position = divmod(slot, len(self))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, 0, epoch]).permutation(len(self)).tolist()
        return self._order[1][position]
