"""Which files of a folder are clips: those that are named so, and those whose bytes are a video's."""

from __future__ import annotations

from pathlib import Path

from protos.reader.errors import ReaderError
from protos.reader.payload import open_payload
from protos.reader.sniff import SUFFIXES, sniff


def clip_files(folder: Path) -> list[Path]:
    """At any depth, sorted. A file with a clip's suffix is one, whatever is in it: its reader says what is wrong.

    Of the others the first bytes decide: `.ts` is a transport stream or TypeScript.
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
