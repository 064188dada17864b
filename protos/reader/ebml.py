"""Walks the elements of a Matroska file (RFC 8794), of which only names and sizes are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from protos.reader.payload import Payload

SEGMENT = b"\x18\x53\x80\x67"


@dataclass(frozen=True, kw_only=True)
class Element:
    """An element's name (its id with the length marker), the position of its body, and the end that it declares."""

    name: bytes
    at: int
    end: int


def segment(payload: Payload) -> Element | None:
    """The Segment, which follows the header. An open-ended one, as in live files, ends with the file."""
    header = vint(payload, 4)
    at = sum(header) if header else len(payload)
    if payload[at : at + 5][:4] != SEGMENT or at + 5 > len(payload):
        return None
    size = vint(payload, at + 4)
    body = at + 4 + _width(payload, at + 4)
    return Element(name=SEGMENT, at=body, end=sum(size) if size else len(payload))


def elements(payload: Payload, at: int, end: int) -> Iterator[Element]:
    """The elements between two positions, up to the first one that is open-ended or malformed."""
    end = min(end, len(payload))
    while at < end:
        width = _width(payload, at)
        size = vint(payload, at + width) if width <= 4 else None
        if not size:
            return
        yield Element(name=payload[at : at + width], at=size[0], end=sum(size))
        at = sum(size)


def vint(payload: Payload, at: int) -> tuple[int, int] | None:
    """(end of the field, value) of the size at `at`, or None if it is cut, malformed or "unknown"."""
    width = _width(payload, at)
    field = payload[at : at + width]
    if len(field) < width or width > 8:
        return None
    value = int.from_bytes(field, "big") ^ (1 << 7 * width)
    return None if value == (1 << 7 * width) - 1 else (at + width, value)


def _width(payload: Payload, at: int) -> int:
    """The number of bytes of a field by its first one: 1 to 8, or 9 if that is zero or missing."""
    return 9 - int.from_bytes(payload[at : at + 1], "big").bit_length()
