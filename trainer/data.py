"""Finds the real clips in folders and manifests, and gives each slot number of a run its clip.

A run uses slots 0, 1, 2 and so on. Every epoch is a new permutation that depends only on the seed and the epoch. So
the order needs no state, and a run resumes from its slot number. A file that cannot be used is reported once and
counted. Its slot gets another file, drawn from the seed and the slot.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protos.reader.files import clip_files
from protos.reader.sequences import is_pattern, sequence_folders
from protos.reader.sniff import SUFFIXES
from protos.reader.told import log_warnings
from protos.types import Clip, ClipWarning
from trainer.errors import ConfigError, DataError
from trainer.video import SPEED_TOLERANCE, ClipForm, read_clip

log = logging.getLogger(__name__)

MANIFESTS = (".json", ".jsonl", ".csv")
FOLDER_MANIFEST = "manifest.jsonl"
MAX_TRIES = 100
Split = Literal["train", "held_out"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the real clips are, and how they are read."""

    train: tuple[str, ...] = ()  # folders, manifests (.json, .jsonl, .csv: path, caption, first, last, split), files
    held_out: tuple[str, ...] = ()  # the same, for `evaluate`
    start: Literal["random", "first"] = "random"  # where in a long file a clip begins
    caption: str = ""  # prompt for clips without a caption
    fps: float | None = None  # frame rate of image sequences: folders of pictures, or patterns such as f/%04d.png
    speed_tolerance: float = SPEED_TOLERANCE  # largest change of speed, as a share, for taking every n-th frame

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"data.fps={self.fps} must be positive; give the frame rate of the image sequences")
        if not 0 <= self.speed_tolerance < 1:
            raise ConfigError(
                f"data.speed_tolerance={self.speed_tolerance} must be from 0 (only files at multiples of the policy's "
                "frame rate are thinned evenly) to below 1; use 0.17 unless you know better"
            )


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clip file, or its frames `first`..`last` (exclusive). `fps` is the frame rate if it is an image sequence."""

    path: Path
    caption: str = ""
    first: int = 0
    last: int | None = None
    fps: float | None = None


@dataclass(frozen=True, kw_only=True)
class RealClip:
    """A clip in the policy's form, its caption and its file."""

    clip: Clip
    caption: str
    path: Path


def find_sources(paths: Sequence[str], split: Split, caption: str = "", fps: float | None = None) -> list[Source]:
    """All clips that the paths name, in order. If a folder has a manifest.jsonl, its entries are used.

    With `fps`, folders and patterns of pictures are image sequences of this rate. Manifest entries of another split
    are skipped; entries without a split are used. Raises DataError for a path without clips.
    """
    found: list[Source] = []
    for name in paths:
        sources = list(_sources(Path(name), split, caption, fps))
        if not sources:
            raise DataError(f"'{name}' has no clip ({', '.join(SUFFIXES)}) of the split {split}; check data.{split}")
        found += sources
    if not found:
        raise DataError(f"no clips: give folders, manifests or files as data.{split}")
    return found


def _sources(path: Path, split: Split, caption: str, fps: float | None) -> Iterator[Source]:
    if not path.exists() and not is_pattern(path):
        raise DataError(f"'{path}' does not exist; check data.{split}")
    if path.is_dir() and (path / FOLDER_MANIFEST).is_file():
        path = path / FOLDER_MANIFEST
    if path.is_dir():
        folders = sequence_folders(path) if fps else []
        yield from (Source(path=file, caption=caption, fps=fps) for file in [*clip_files(path), *folders])
    elif path.suffix.lower() in MANIFESTS:
        for number, record in enumerate(_records(path), 1):
            if record.get("split") in (None, "", split):
                yield _entry(path, number, record, caption, fps)
    else:
        yield Source(path=path, caption=caption, fps=fps)


def _records(manifest: Path) -> list[Mapping[str, Any]]:
    text = manifest.read_text()
    try:
        if manifest.suffix.lower() == ".csv":
            return list(csv.DictReader(text.splitlines()))
        if manifest.suffix.lower() == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{manifest} is not valid JSON: {error}; correct it") from error
    if not isinstance(records, list):
        raise DataError(f"{manifest} must be a list of entries with a path, got {type(records).__name__}; correct it")
    return records


def _entry(manifest: Path, number: int, record: Mapping[str, Any], caption: str, fps: float | None) -> Source:
    try:
        return Source(
            path=manifest.parent / record["path"],
            caption=record.get("caption") or caption,
            first=int(record.get("first") or 0),
            last=int(record["last"]) if record.get("last") not in (None, "") else None,
            fps=float(record.get("fps") or 0) or fps,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{manifest}, entry {number}: needs a path, whole numbers for first and last, and a number for fps, "
            f"got {error!r}; correct it"
        ) from error


class Clips:
    """The real clips of a run, by slot number."""

    def __init__(self, sources: Sequence[Source], form: ClipForm, *, seed: int, data: DataConfig | None = None) -> None:
        self._sources, self._form, self._seed, self._data = sources, form, seed, data or DataConfig()
        self._order: tuple[int, list[int]] = (-1, [])
        self._last: tuple[int, RealClip] | None = None
        self._told: set[Path] = set()  # files whose warnings are logged
        self.bad: dict[Source, str] = {}  # sources that could not be used at least once, and why

    def __len__(self) -> int:
        return len(self._sources)

    def at(self, slot: int) -> RealClip:
        """The clip of a slot; the same slot always gives the same clip.

        Raises DataError if no usable file is found in MAX_TRIES tries.
        """
        if self._last is None or self._last[0] != slot:
            self._last = slot, self._find(slot)
        return self._last[1]

    def _find(self, slot: int) -> RealClip:
        for attempt in range(MAX_TRIES):
            source = self._sources[self._index(slot, attempt)]
            try:  # also sources that failed before: other parts may be good, and a resumed run knows no failures
                return self._read(source, slot)
            except DataError as error:
                if source not in self.bad:
                    log.warning("skipped clip %d of %d: %s", len(self.bad) + 1, len(self), error)
                self.bad[source] = str(error)
        reason = next(reversed(self.bad.values()), "")
        raise DataError(
            f"{len(self.bad)} of {len(self)} clips cannot be used, so slot {slot} has no clip; last reason: {reason}"
        )

    def _read(self, source: Source, slot: int) -> RealClip:
        start = float(np.random.default_rng([self._seed, 1, slot]).random()) if self._data.start == "random" else 0.0
        clip = read_clip(
            source.path,
            self._form,
            start=start,
            first=source.first,
            last=source.last,
            fps=source.fps,
            speed_tolerance=self._data.speed_tolerance,
            warn=None if source.path in self._told else partial(self._tell, source.path),
        )
        return RealClip(clip=clip, caption=source.caption, path=source.path)

    def _tell(self, path: Path, warnings: Sequence[ClipWarning]) -> None:
        """Log the reader's warnings about a file, once: other parts of it would repeat them."""
        if warnings:
            self._told.add(path)
            log_warnings(log, path, warnings)

    def _index(self, slot: int, attempt: int) -> int:
        if attempt:
            return int(np.random.default_rng([self._seed, 2, slot, attempt]).integers(len(self)))
        epoch, position = divmod(slot, len(self))
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, 0, epoch]).permutation(len(self)).tolist()
        return self._order[1][position]
