"""Makes small files that claim or cost far more than their bytes: each returns the bytes of one file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

UNIT = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)  # a display matrix
IDLE = 40  # picture data of a bomb's frame: its width and height in pixels


def box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def full(name: bytes, *parts: bytes, flags: int = 0) -> bytes:
    return box(name, struct.pack(">I", flags), *parts)


def track(
    samples: int,
    *,
    edits: int = 0,
    handler: bytes = b"vide",
    codec: bytes = b"mp4v",
    ticks: int = 1,
    tables: dict[bytes, bytes] | None = None,
) -> bytes:
    """A track of one-byte samples, each `ticks` long; `edits` of them show it whole. `tables` replaces bodies."""
    size = struct.pack(">HHIIIH", 64, 64, 0x480000, 0x480000, 0, 1)
    entry = box(codec, bytes(6), struct.pack(">H", 1), bytes(16), size, bytes(32), struct.pack(">Hh", 24, -1))
    bodies = {
        b"stts": struct.pack(">III", 1, samples, ticks),
        b"stsc": struct.pack(">IIII", 1, 1, samples, 1),
        b"stsz": struct.pack(">II", 1, samples),
        b"stco": struct.pack(">II", 1, 8),
        **(tables or {}),
    }
    table = box(
        b"stbl",
        full(b"stsd", struct.pack(">I", 1), entry),
        *(full(name, body) for name, body in bodies.items()),
    )
    data = box(b"dinf", full(b"dref", struct.pack(">I", 1), full(b"url ", flags=1)))
    shown = full(b"elst", struct.pack(">I", edits), struct.pack(">IiI", samples, 0, 0x10000) * edits)
    return box(
        b"trak",
        full(b"tkhd", struct.pack(">IIIII", 0, 0, 1, 0, 1000), bytes(16), UNIT, struct.pack(">II", 1 << 22, 1 << 22)),
        box(b"edts", shown) if edits else b"",
        box(
            b"mdia",
            full(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1000, samples, 0, 0)),
            full(b"hdlr", struct.pack(">I4s", 0, handler), bytes(14)),
            box(b"minf", full(b"vmhd", bytes(8), flags=1), data, table),
        ),
    )


def mp4(tracks: Sequence[bytes]) -> bytes:
    rates = struct.pack(">IHHII", 0x10000, 0x100, 0, 0, 0)
    header = full(b"mvhd", struct.pack(">IIII", 0, 0, 1000, 1000), rates, UNIT, bytes(24), struct.pack(">I", 99))
    return box(b"ftyp", b"isom\0\0\2\0isomiso2") + box(b"moov", header, *tracks) + box(b"mdat", bytes(64))


def nested(levels: int) -> bytes:
    """An mp4 of boxes within boxes."""
    inner = b""
    for _ in range(levels):
        inner = box(b"moov", inner)
    return box(b"ftyp", b"isom\0\0\2\0") + inner


def element(name: bytes, body: bytes) -> bytes:
    return name + (len(body) | 1 << 56).to_bytes(8, "big") + body


def with_list(matroska: bytes, name: bytes, entry: bytes, num: int) -> bytes:
    """The file with an element of `num` empty entries before its own."""
    at = matroska.index(b"\x18\x53\x80\x67")
    body = matroska[at + 4 + 9 - matroska[at + 4].bit_length() :]
    return matroska[:at] + element(b"\x18\x53\x80\x67", element(name, (entry + b"\x80") * num) + body)


def gif(num_frames: int, height: int, width: int) -> bytes:
    """A gif whose frames change a few pixels of a large canvas."""
    whole = _animation("GIF")
    last = whole.rindex(b"\x21\xf9")
    frame = whole[last:-1]
    return whole[:6] + struct.pack("<HH", width, height) + whole[10:last] + frame * (num_frames - 1) + b";"


def webp(num_frames: int, height: int, width: int) -> bytes:
    whole = _animation("WEBP", lossless=True)
    parts, at = [], 12
    while at < len(whole):
        size = struct.unpack_from("<I", whole, at + 4)[0]
        parts.append(whole[at : at + 8 + size + size % 2])
        at += len(parts[-1])
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    head = [part[:12] + canvas if part[:4] == b"VP8X" else part for part in parts if part[:4] != b"ANMF"]
    frames = [part for part in parts if part[:4] == b"ANMF"]
    body = b"WEBP" + b"".join([*head, frames[0], *[frames[1]] * (num_frames - 1)])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def apng(num_frames: int, height: int, width: int) -> bytes:
    def chunk(name: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    def control(at: int, height: int, width: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", at, width, height, 0, 0, 80, 1000, 0, 0))

    small = zlib.compress((b"\0" + bytes(3 * IDLE)) * IDLE)
    frames = b"".join(
        control(2 * at + 1, IDLE, IDLE) + chunk(b"fdAT", struct.pack(">I", 2 * at + 2), small)
        for at in range(num_frames - 1)
    )
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    head += chunk(b"acTL", struct.pack(">II", num_frames, 0))
    first = chunk(b"IDAT", zlib.compress((b"\0" + bytes(3 * width)) * height))
    return b"\x89PNG\r\n\x1a\n" + head + control(0, height, width) + first + frames + chunk(b"IEND")


def claiming_apng(num_bytes: int) -> bytes:
    """An apng whose last chunk claims so many bytes, of which none are there."""
    whole = apng(3, 48, 64)
    return whole[: whole.rindex(b"IEND") - 4] + struct.pack(">I", num_bytes) + b"tEXt"


def _animation(form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (IDLE, IDLE), (shade, 0, 0)) for shade in (0, 255))
    first.save(buffer, form, save_all=True, append_images=[second], duration=80, **options)
    return buffer.getvalue()
