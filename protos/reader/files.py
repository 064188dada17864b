"""Finds the clip files in a folder, by their suffix or by their first bytes."""

from __future__ import annotations

from pathlib import Path

from protos.reader.errors import ReaderError
from protos.reader.payload import open_payload
from protos.reader.sniff import OTHER_SUFFIXES, SUFFIXES, sniff


def clip_files(folder: Path) -> list[Path]:
    """The clip files below a folder, at any depth, sorted. Hidden files are left out.

    A file with the name of a video (SUFFIXES, OTHER_SUFFIXES) always counts as a clip. If it is none, as a `.ts` file
    of TypeScript, reading it raises the error, so that it is counted and named. For other names the first bytes decide,
    and what is no video is left out without a word.
    """
    files = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in files if path.suffix.lower() in (*SUFFIXES, *OTHER_SUFFIXES) or _is_video(path))


def _is_video(path: Path) -> bool:
    try:
        with open_payload(path) as payload:
            sniff(payload)
    except (ReaderError, OSError):
        return False
    return True
