"""Walks the boxes of an mp4 (ISO 14496-12), of which only names and sizes are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from protos.reader.errors import ClipTooLarge, UnreadableClip
from protos.reader.payload import Payload

NESTED = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf")
MAX_BOXES = 200_000
MAX_DEPTH = 8  # of NESTED boxes; a sample table lies at depth 5


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box's name, the position of its body, the bytes of it that are there, and the bytes that it declares."""

    name: bytes
    at: int
    held: int
    declared: int


def has_fragments(payload: Payload) -> bool:
    """Whether the frames are indexed piece by piece, so that the index at the start declares no duration."""
    return any(box.name == b"moof" for box in boxes(payload))


def boxes(payload: Payload) -> Iterator[Box]:
    """Every box of the file in order, a nested one after the box that holds it.

    Raises ClipTooLarge for too many boxes, UnreadableClip for boxes that are nested too deeply.
    """
    yield from _boxes(payload, 0, len(payload), [0], 0)


def _boxes(payload: Payload, at: int, end: int, seen: list[int], depth: int) -> Iterator[Box]:
    if depth > MAX_DEPTH:
        raise UnreadableClip(f"the file's boxes are nested over {MAX_DEPTH} deep: it is damaged; re-encode the clip")
    while at + 8 <= end:
        seen[0] += 1
        if seen[0] > MAX_BOXES:
            raise ClipTooLarge(f"the file has over {MAX_BOXES} boxes; re-encode the clip")
        size, name = struct.unpack(">I4s", payload[at : at + 8])
        head = 8
        if size == 1:
            size, head = int.from_bytes(payload[at + 8 : at + 16], "big"), 16
        size = end - at if size == 0 else size
        if size < head:
            return
        stop = min(at + size, end)
        yield Box(name=name, at=at + head, held=stop - at - head, declared=size - head)
        if name in NESTED:
            yield from _boxes(payload, at + head, stop, seen, depth + 1)
        at = stop
