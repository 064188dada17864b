"""Walks the chunks of a RIFF file: avi and webp. Only names and sizes are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from protos.reader.payload import Payload


def chunks(payload: Payload, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, position of the body, its size) of the chunks between two positions. The last can end after a cut file."""
    while at + 8 <= min(end, len(payload)):
        name, size = struct.unpack("<4sI", payload[at : at + 8])
        yield name, at + 8, size
        at += 8 + size + size % 2
