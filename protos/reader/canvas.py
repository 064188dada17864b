"""Checks what an animated gif, webp or png costs before it is opened: every frame costs its whole canvas.

A frame can change a few pixels and take a few bytes, but players compose, convert and compare whole pictures. So a
file of 8 kB can take minutes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from protos.reader.errors import UnreadableClip
from protos.reader.guard import Guard
from protos.reader.payload import Payload
from protos.reader.riff import chunks

Shown = Iterator[tuple[int, int]]  # frames that begin here, 0 or 1, and bytes of picture data
RAW_BYTES = 8  # a png's pixel before compression: four channels of 16 bits
SPARE_BYTES = 1024**2  # what compression can add at most, and the other chunks of a png
DATA = (b"IDAT", b"fdAT")  # its chunks of pixels


def check_gif(payload: Payload, guard: Guard) -> None:
    head = payload[:13]
    if len(head) == 13:
        width, height = struct.unpack("<HH", head[6:10])
        _check(guard, height, width, _gif_frames(payload, 13 + _palette_bytes(head[10])))


def _gif_frames(payload: Payload, at: int) -> Shown:
    """(1, bytes of its data) of each image, up to the first byte that begins no block."""
    while True:
        kind = payload[at : at + 1]
        if kind == b"!":  # an extension
            at, _ = _blocks_end(payload, at + 2)
        elif kind == b"," and len(head := payload[at : at + 10]) == 10:
            data = at + 10 + _palette_bytes(head[9]) + 1
            at, size = _blocks_end(payload, data)
            yield 1, size
        else:
            return


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _blocks_end(payload: Payload, at: int) -> tuple[int, int]:
    """The end of a chain of blocks, each with its length before it, and the bytes in them."""
    num_bytes = 0
    while size := int.from_bytes(payload[at : at + 1], "big"):
        at, num_bytes = at + 1 + size, num_bytes + size
    return at + 1, num_bytes


def check_webp(payload: Payload, guard: Guard) -> None:
    found = list(chunks(payload, 12, len(payload)))
    for name, at, size in found:
        if name == b"VP8X" and size >= 10:
            canvas = payload[at + 4 : at + 10]
            width, height = (1 + int.from_bytes(canvas[part : part + 3], "little") for part in (0, 3))
            shown = ((1, one) for frame, _, one in found if frame == b"ANMF")
            _check(guard, height, width, shown)
            return


def check_apng(payload: Payload, guard: Guard) -> None:
    head = payload[16:24]
    if len(head) == 8:
        width, height = struct.unpack(">II", head)
        guard.size(height, width)
        _check_chunks(payload, guard, RAW_BYTES * height * width + SPARE_BYTES)
        _check(
            guard, height, width, ((int(name == b"fcTL"), size * (name in DATA)) for name, size in png_chunks(payload))
        )


def png_chunks(payload: Payload) -> Iterator[tuple[bytes, int]]:
    """Name and claimed size of each chunk of a png, up to its end."""
    at = 8
    while at + 8 <= len(payload):
        size, name = struct.unpack(">I4s", payload[at : at + 8])
        yield name, size
        if name == b"IEND":  # what follows is no png
            return
        at += 12 + size


def _check_chunks(payload: Payload, guard: Guard, most_bytes: int) -> None:
    """Raise UnreadableClip for a chunk that goes beyond the file and is larger than any frame.

    ffmpeg takes memory for a whole chunk before it reads it. The last chunk of a cut file is no larger than a frame.
    """
    left = len(payload) - 8
    for _, size in png_chunks(payload):
        guard.clock()
        left -= 8
        if size > max(most_bytes, left):
            raise UnreadableClip(
                f"a chunk of the png claims {size} bytes, but only {left} are left: the file is damaged; upload it "
                "again or re-encode it"
            )
        left -= 4 + size


def _check(guard: Guard, height_px: int, width_px: int, shown: Shown) -> None:
    """Add up the frames, until there are enough bytes for as many as the limits allow."""
    guard.size(height_px, width_px)
    num_frames, num_bytes = 0, 0
    most_px = guard.limits.max_frames * height_px * width_px
    for frames, size in shown:
        if guard.may_compose(most_px, num_bytes):
            return
        guard.clock()
        num_frames, num_bytes = num_frames + frames, num_bytes + size
        guard.frames(num_frames)
    guard.composed(num_frames, height_px, width_px, num_bytes)
