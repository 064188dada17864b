"""What a payload is, told by its first bytes, and whether all of it arrived, told by its own structure.

The reader's first gate. Only the demuxers named here are ever opened, by name: ffmpeg never guesses, so
a playlist, a script or a picture in a video's clothes is refused here. A file's name is never asked.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

from protos.reader.errors import UnreadableClip
from protos.reader.payload import Payload

CONTAINERS = (
    "mp4",
    "mov",
    "webm",
    "mkv",
    "avi",
    "gif",
    "webp",
    "mpg",
    "ts",
    "avif",
    "apng",
    "y4m",
)  # as users call them
TENSOR_SUFFIX = ".safetensors"
# What is taken for a clip in a folder whatever it holds; of other names, .ts too, the bytes decide (files.py).
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".mpg", ".mpeg", ".avif", ".apng", ".y4m"),
    TENSOR_SUFFIX,
)

MOV_BOXES = {
    *(b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide"),
    *(b"udta", b"meta", b"uuid", b"mfra", b"pnot", b"pdin", b"emsg", b"ssix", b"prft"),
}
OTHERS = {  # what is often sent by mistake, to be named in the refusal
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"BM": "a BMP picture",
    b"OggS": "an Ogg file",
    b"fLaC": "FLAC audio",
    b"ID3": "MP3 audio",
    b"\xff\xfb": "MP3 audio",
    b"FLV": "a Flash video",
    b"\x30\x26\xb2\x75": "a Windows Media file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array (send it as a safetensors tensor)",
    b"\x00\x00\x01\xb3": "a bare MPEG video stream (put it into a container)",
    b"\x00\x00\x00\x01": "a bare H.264 or HEVC stream (put it into a container)",
}
TS_PACKETS = (188, 192, 204)  # bytes: plain, with a time before each (m2ts), with a checksum behind
TS_SYNCS = 8  # packets that must begin as one where the stream does not begin at a packet
HEAD_BYTES = (TS_SYNCS + 1) * max(TS_PACKETS)
RE_ENCODE = f"send one of {', '.join(CONTAINERS)}"


def sniff(data: Payload) -> str:
    """A demuxer's name, one of FORMS. Raises UnreadableClip naming what the bytes are instead."""
    head = data[:HEAD_BYTES]
    for form, fits in FORMS.items():
        if fits(head):
            return form
    raise UnreadableClip(f"the payload's {len(data)} bytes are {_looks_like(data)}, not a known video; {RE_ENCODE}")


def _is_transport_stream(head: bytes) -> bool:
    if len(head) >= TS_PACKETS[0] and set(head[: 3 * TS_PACKETS[0] : TS_PACKETS[0]]) == {0x47}:
        return True
    starts = (
        head[offset : offset + TS_SYNCS * size : size] for size in TS_PACKETS for offset in range(min(size, len(head)))
    )
    return any(len(start) == TS_SYNCS and set(start) == {0x47} and set(head) != {0x47} for start in starts)


FORMS: dict[str, Callable[[bytes], bool]] = {
    "mov": lambda head: head[4:8] in MOV_BOXES,
    "matroska": lambda head: head[:4] == b"\x1a\x45\xdf\xa3",
    "avi": lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ",
    "webp": lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP",
    "gif": lambda head: head[:6] in (b"GIF87a", b"GIF89a"),
    "mpegts": _is_transport_stream,
    "mpeg": lambda head: head[:4] == b"\x00\x00\x01\xba",
    "apng": lambda head: head[:4] == b"\x89PNG" and b"acTL" in head[8:256],
    "yuv4mpegpipe": lambda head: head[:10] == b"YUV4MPEG2 ",
}


def check_complete(data: Payload, form: str) -> None:
    """Raises UnreadableClip if over 2 % of the bytes that the file itself declares did not arrive.

    Formats that declare nothing (transport streams, live webm) pass: a cut one is a shorter clip. A
    smaller loss passes too, since writers are often off by a few bytes; lost frames are counted later.
    """
    if form == "gif" and data[max(0, len(data) - 4096) :].rstrip(b"\0\r\n")[-1:] != b";":
        raise UnreadableClip(f"the gif's {len(data)} bytes end without its trailer byte; upload the whole file")
    declared = _declared_bytes(data, form)
    if (declared - len(data)) * 50 > declared:
        raise UnreadableClip(
            f"the {form} file declares {declared} bytes but only {len(data)} arrived, and at most 2 % may be missing; "
            "upload the whole file"
        )


def _declared_bytes(data: Payload, form: str) -> int:
    """Where the file's outermost structure ends; the length of `data` where it does not say."""
    if form == "mov":
        return _end_of_boxes(data)
    if form == "matroska":
        return _end_of_segment(data)
    if form in ("avi", "webp"):
        size = struct.unpack("<I", data[4:8])[0]
        return 8 + size if 0 < size < 2**32 - 1 else len(data)  # 0 and -1: written to a pipe
    return len(data)


def _end_of_boxes(data: Payload) -> int:
    """End of the last top-level box of an mp4; 100 000 boxes are more than any true clip has."""
    at = 0
    for _ in range(100_000):
        if at + 16 > len(data) or data[at + 4 : at + 8] not in MOV_BOXES:
            break
        size = struct.unpack(">I", data[at : at + 4])[0]
        size = struct.unpack(">Q", data[at + 8 : at + 16])[0] if size == 1 else size
        if size < 8:  # 0: to the end of the file
            return len(data)
        at += size
    return at


def _end_of_segment(data: Payload) -> int:
    """End of a Matroska file's Segment element, which follows the EBML header; live files leave it open."""
    header = _vint(data, 4)
    at = header[0] + header[1] if header else len(data)
    segment = _vint(data, at + 4) if data[at : at + 4] == b"\x18\x53\x80\x67" else None
    return sum(segment) if segment else len(data)


def _vint(data: Payload, at: int) -> tuple[int, int] | None:
    """(end of the field, value) of an EBML size at `at`; None when it is cut, malformed or says "unknown"."""
    first = data[at : at + 1][0] if at < len(data) else 0
    width = 9 - first.bit_length()
    if width > 8 or at + width > len(data):
        return None
    value = int.from_bytes(data[at : at + width], "big") ^ (1 << 7 * width)
    return None if value == (1 << 7 * width) - 1 else (at + width, value)


def _looks_like(data: Payload) -> str:
    known = next((name for magic, name in OTHERS.items() if data[: len(magic)] == magic), None)
    if known:
        return known
    if data[8:9] == b"{":
        return "probably a safetensors file (send it as media 'tensor')"
    try:
        text = data[:64].decode("utf-8", errors="strict" if len(data) <= 64 else "ignore")
    except UnicodeDecodeError:
        return f"of an unknown kind (they begin {data[:8].hex(' ')})"
    printable = "".join(itertools.takewhile(lambda c: c.isprintable() or c in "\r\n\t", text))
    return f"text ({printable[:24]!r}...)" if len(printable) == len(text) else f"unknown ({data[:8].hex(' ')})"
