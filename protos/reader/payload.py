"""Gives access to a clip's bytes, from memory or from a file, also as the file object that ffmpeg reads.

A file is read in pieces, so that memory use does not grow with its size.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from protos.reader.guard import Guard


class Payload:
    """A clip's bytes: `len(payload)` is their number, `payload[a:b]` reads some of them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        self._file.seek(start)
        return self._file.read(max(0, stop - start))

    def whole(self) -> bytes:
        return self._file.getvalue() if isinstance(self._file, io.BytesIO) else self[:]

    def reader(self, guard: Guard) -> _Reader:
        """A file object with its own position. Use only one reader of a payload at a time."""
        return _Reader(self._file, guard)


class _Reader(io.RawIOBase):
    """The file object that ffmpeg reads.

    It reports the end of the file when the time limit is over. A demuxer that searches megabytes of junk for the
    next frame does not check the clock itself.
    """

    def __init__(self, file: BinaryIO, guard: Guard) -> None:
        super().__init__()
        self._file, self._guard, self._at = file, guard, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._guard.late:
            return b""
        self._file.seek(self._at)
        data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence)
        self._at = (self._file.seek(0, os.SEEK_END) if base is None else base) + offset
        return self._at

    def tell(self) -> int:
        return self._at


@contextmanager
def open_payload(data: bytes | Path | BinaryIO) -> Iterator[Payload]:
    """Open a file or bytes. A file that is open already stays open. Raises OSError if the file cannot be opened."""
    if not isinstance(data, bytes | Path):
        yield Payload(data)
        return
    with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
        yield Payload(file)
