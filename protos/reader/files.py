"""Finds the clip files in a folder, by their suffix or by their first bytes, and tells which files are no clips."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from protos.reader.errors import ReaderError
from protos.reader.payload import open_payload
from protos.reader.sniff import OTHER_SUFFIXES, SUFFIXES, sniff

log = logging.getLogger(__name__)

NAMED = 3  # files that the warning names, of those that are left out
# What belongs to a folder of clips and is expected to be no video. It is left out without a word.
BESIDES = {
    *(".txt", ".md", ".rst", ".pdf", ".html", ".htm", ".log", ".srt", ".vtt", ".ass"),
    *(".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".xml", ".ini", ".cfg", ".parquet"),
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".exr", ".svg", ".ico"),
    *(".wav", ".mp3", ".flac", ".aac", ".opus", ".m4a"),
    *(".py", ".pyc", ".ipynb", ".sh", ".bat", ".js", ".css", ".db", ".npy", ".npz", ".sha256", ".md5"),
}
BESIDES_NAMES = {"license", "licence", "readme", "notice", "copying", "authors", "makefile", "sha256sums", "md5sums"}


def clip_files(folder: Path) -> list[Path]:
    """The clip files below a folder, at any depth, sorted. Hidden files and folders are left out.

    A file with the name of a video (SUFFIXES, OTHER_SUFFIXES) always counts as a clip. If it is none, as a `.ts` file
    of TypeScript, reading it raises the error, so that it is counted and named. For other names the first bytes
    decide. What is no video is left out, and counted in one warning unless it is expected beside clips (BESIDES).
    """
    clips: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        if path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) or _is_video(path):
            clips.append(path)
        elif path.suffix.lower() not in BESIDES and path.name.lower() not in BESIDES_NAMES:
            others.append(inside)
    if others:
        _tell(folder, others)
    return clips


def _tell(folder: Path, others: Sequence[Path]) -> None:
    names = ", ".join(map(str, others[:NAMED])) + f" and {len(others) - NAMED} more" * (len(others) > NAMED)
    log.warning("%s: %d file(s) are left out, since their bytes are those of no video: %s", folder, len(others), names)


def _is_video(path: Path) -> bool:
    try:
        with open_payload(path) as payload:
            sniff(payload)
    except (ReaderError, OSError):
        return False
    return True
