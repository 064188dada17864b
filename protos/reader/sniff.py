"""Recognises a clip's format from its first bytes, and checks that the whole file arrived.

This is the reader's first check. ffmpeg never guesses the format: only the demuxers in FORMS are used, by name. So
a playlist, a script or a picture that pretends to be a video is refused here. The file's name is not used.
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
)  # the names that users know
TENSOR_SUFFIX = ".safetensors"
# Files with these suffixes always count as clips in a folder. For others, also .ts, the bytes decide (files.py).
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".mpg", ".mpeg", ".avif", ".apng", ".y4m"),
    TENSOR_SUFFIX,
)

MOV_BOXES = {
    *(b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide"),
    *(b"udta", b"meta", b"uuid", b"mfra", b"pnot", b"pdin", b"emsg", b"ssix", b"prft"),
}
OTHERS = {  # formats that are often sent by mistake, to name them in the refusal
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
TS_PACKETS = (188, 192, 204)  # bytes: plain, with a leading timestamp (m2ts), with a trailing checksum
TS_SYNCS = 8  # sync bytes that must be found if the stream does not begin with a packet
HEAD_BYTES = (TS_SYNCS + 1) * max(TS_PACKETS)
RE_ENCODE = f"send one of {', '.join(CONTAINERS)}"


def sniff(data: Payload) -> str:
    """The demuxer's name, one of FORMS. Raises UnreadableClip, which says what the bytes look like."""
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
    """Raises UnreadableClip if over 2 % of the bytes that the file declares are missing.

    Formats that declare no size (transport streams, live webm) pass; if cut, they are shorter clips. A smaller loss
    passes too, because writers are often off by a few bytes. Missing frames are counted later.
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
    """The file's size by its outermost structure, or the length of `data` if the file does not declare one."""
    if form == "mov":
        return _end_of_boxes(data)
    if form == "matroska":
        return _end_of_segment(data)
    if form in ("avi", "webp"):
        size = struct.unpack("<I", data[4:8])[0]
        return 8 + size if 0 < size < 2**32 - 1 else len(data)  # 0 and -1 mean that it was written to a pipe
    return len(data)


def _end_of_boxes(data: Payload) -> int:
    """The end of an mp4's last top-level box. It stops after 100 000 boxes, more than any real clip has."""
    at = 0
    for _ in range(100_000):
        if at + 16 > len(data) or data[at + 4 : at + 8] not in MOV_BOXES:
            break
        size = struct.unpack(">I", data[at : at + 4])[0]
        size = struct.unpack(">Q", data[at + 8 : at + 16])[0] if size == 1 else size
        if size < 8:  # 0 means up to the end of the file
            return len(data)
        at += size
    return at


def _end_of_segment(data: Payload) -> int:
    """The end of a Matroska file's Segment element, which follows the EBML header. Live files leave it open."""
    header = _vint(data, 4)
    at = header[0] + header[1] if header else len(data)
    segment = _vint(data, at + 4) if data[at : at + 4] == b"\x18\x53\x80\x67" else None
    return sum(segment) if segment else len(data)


def _vint(data: Payload, at: int) -> tuple[int, int] | None:
    """(end of the field, value) of the EBML size at `at`, or None if it is cut, malformed or "unknown"."""
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
