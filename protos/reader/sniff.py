"""Recognises a clip's format from its first bytes.

This is the reader's first check. ffmpeg never guesses the format: only the demuxers in FORMS are used, by name. So
a playlist, a script or a picture that pretends to be a video is refused here. The file's name is not used.
"""

from __future__ import annotations

import itertools
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
# Files with these suffixes always count as clips in a folder, and so do those of OTHER_SUFFIXES. For others the bytes
# decide (files.py).
SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp", ".mpg", ".mpeg", ".avif", ".apng", ".y4m"),
    TENSOR_SUFFIX,
)
OTHER_SUFFIXES = (
    ".ts",
    ".m2ts",
    ".mts",
    ".3gp",
    ".ogv",
    ".flv",
    ".wmv",
    ".vob",
    ".mxf",
)  # videos that are not read, or no videos

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
