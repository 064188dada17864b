"""Reads a labelled set: clips that are known to be real or generated, with people's ratings and judged pairs.

    index.csv   path, label (real or generated), generator (of generated clips), source_repo; optional: split, kind
    human.csv   path, temporal_quality_1_to_5: optional ratings by people
    pairs.csv   better, worse: optional pairs of clips; better_moves (more, less or alike) is optional

Paths are relative to the folder of index.csv. Other columns are ignored. A source is where a clip comes from (a
repository, a data set, one film): clips of one source are no independent evidence, so intervals resample sources.
"""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward_server.errors import BadRequest

INDEX, HUMAN, PAIRS = "index.csv", "human.csv", "pairs.csv"
RATING = "temporal_quality_1_to_5"
LABELS = ("real", "generated")
MOVES = ("more", "less", "alike")
MOST_NAMED = 5  # wrong paths that a message names

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LabelledClip:
    """One clip of the index. `generator` is empty for a real clip.

    `kind` is what its owner calls the kind of real footage, such as "faces"; empty if not stated.
    """

    path: str
    file: Path
    label: str
    generator: str
    source: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class JudgedPair:
    """Two clips of which `better` was judged better. `moves` says how its motion compares; empty if not stated."""

    better: str
    worse: str
    moves: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """The clips of an index, with the ratings and pairs among them."""

    clips: tuple[LabelledClip, ...]
    ratings: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[JudgedPair, ...] = ()


def read_labelled(folder: Path, split: str | None = None) -> LabelledSet:
    """Read a labelled set, or the part of it whose `split` is this one.

    Raises BadRequest that names the file, the line and the value: for a missing file or column, an unknown label, a
    path or a source that is not stated, a path that is listed or rated twice, ratings and pairs of clips that the index
    does not list, a pair of one clip, and a set without real or without generated clips.
    """
    rows = _rows(folder / INDEX, ("path", "label", "generator", "source_repo"))
    every = [_clip(folder, line, row) for line, row in enumerate(rows, 2)]
    known = {clip.path for clip in every}
    _check_once(folder / INDEX, [clip.path for clip in every])
    ratings, pairs = _ratings(folder / HUMAN, known), _pairs(folder / PAIRS, known)
    chosen = [clip for clip, row in zip(every, rows, strict=True) if split is None or row.get("split") == split]
    _check_labels(chosen, folder / INDEX, split)
    _check_files(chosen)
    mine = {clip.path for clip in chosen}
    return LabelledSet(
        clips=tuple(chosen),
        ratings={path: rating for path, rating in ratings.items() if path in mine},
        pairs=tuple(pair for pair in pairs if {pair.better, pair.worse} <= mine),
    )


def _clip(folder: Path, line: int, row: Row) -> LabelledClip:
    where = f"{folder / INDEX}, line {line}"
    if not row["path"]:
        raise BadRequest(f"{where}: path is empty; name the clip's file")
    if row["label"] not in LABELS:
        raise BadRequest(f"{where}: label '{row['label']}' is unknown; write real or generated")
    if not row["source_repo"]:
        raise BadRequest(f"{where}: source_repo is empty; name what the clip comes from")
    if row["label"] == "generated" and not row["generator"]:
        raise BadRequest(f"{where}: generator is empty; name the model that made the clip")
    return LabelledClip(
        path=row["path"],
        file=folder / row["path"],
        label=row["label"],
        generator=row["generator"] if row["label"] == "generated" else "",
        source=row["source_repo"],
        kind=row.get("kind", ""),
    )


def _check_labels(clips: Sequence[LabelledClip], index: Path, split: str | None) -> None:
    for label in LABELS:
        if not any(clip.label == label for clip in clips):
            where = f"split '{split}' of {index}" if split else str(index)
            raise BadRequest(f"{where} has no {label} clip, so there is nothing to compare; add some")


def _check_files(clips: Sequence[LabelledClip]) -> None:
    missing = [str(clip.file) for clip in clips if not clip.file.is_file()]
    if missing:
        raise BadRequest(
            f"{len(missing)} files of the index are missing: {_named(missing)}; copy them or remove their lines"
        )


def _ratings(file: Path, known: set[str]) -> dict[str, float]:
    if not file.exists():
        return {}
    rows = _rows(file, ("path", RATING))
    _check_known(file, [row["path"] for row in rows], known)
    _check_once(file, [row["path"] for row in rows])
    return {row["path"]: _rating(file, line, row[RATING]) for line, row in enumerate(rows, 2)}


def _rating(file: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"{file}, line {line}: rating '{text}' is not a number; correct or remove the line")
    return value


def _pairs(file: Path, known: set[str]) -> list[JudgedPair]:
    if not file.exists():
        return []
    rows = _rows(file, ("better", "worse"))
    _check_known(file, [row[name] for row in rows for name in ("better", "worse")], known)
    for line, row in enumerate(rows, 2):
        if row["better"] == row["worse"]:
            raise BadRequest(f"{file}, line {line}: '{row['better']}' is judged against itself; correct the line")
        if row.get("better_moves", "") not in ("", *MOVES):
            raise BadRequest(f"{file}, line {line}: better_moves '{row['better_moves']}' is unknown; write {MOVES}")
    return [JudgedPair(better=row["better"], worse=row["worse"], moves=row.get("better_moves", "")) for row in rows]


def _check_known(file: Path, paths: Sequence[str], known: set[str]) -> None:
    if strange := [path for path in paths if path not in known]:
        raise BadRequest(f"{file} names {len(strange)} clips that {INDEX} does not list: {_named(strange)}; list them")


def _check_once(file: Path, paths: Sequence[str]) -> None:
    times = Counter(map(os.path.normpath, paths))
    if twice := [path for path in paths if times[os.path.normpath(path)] > 1]:
        raise BadRequest(f"{file} lists {_named(twice)} twice; list it once")


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a CSV file; absent cells are empty."""
    if not file.is_file():
        raise BadRequest(f"{file} is missing; write it with the columns {', '.join(columns)}")
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, restval="")
            names, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRequest(f"{file} is no CSV file in UTF-8: {error}; write it again") from error
    if absent := [name for name in columns if name not in names]:
        raise BadRequest(f"{file} has no column '{absent[0]}'; add it")
    return rows


def _named(paths: Sequence[str]) -> str:
    unique = list(dict.fromkeys(paths))
    return ", ".join(unique[:MOST_NAMED]) + (", ..." if len(unique) > MOST_NAMED else "")
