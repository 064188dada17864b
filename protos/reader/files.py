"""Finds the clip files in a folder, by their suffix or by their first bytes."""

from __future__ import annotations

from pathlib import Path

from protos.reader.errors import ReaderError
from protos.reader.payload import open_payload
from protos.reader.sniff import SUFFIXES, sniff


def clip_files(folder: Path) -> list[Path]:
    """The clip files below a folder, at any depth, sorted. Hidden files are left out.

    A file with one of SUFFIXES always counts as a clip; if it is not one, reading it raises the error. For other
    names the first bytes decide: a `.ts` file can be a transport stream or TypeScript.
    """
    files = (path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES or _is_video(path))


def _is_video(path: Path) -> bool:
    try:
        with open_payload(path) as payload:
            sniff(payload)
    except (ReaderError, OSError):
        return False
    return True
