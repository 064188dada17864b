"""Finds out whether a file ends before the end that it declares, and says how much of it is missing.

What is there is read and used. The packet at the cut is left out, because decoders fill the missing part of its
picture with grey or with old pixels. Used by source.py and containers.py.
"""

from __future__ import annotations

import struct

import numpy as np

from protos.reader.boxes import has_fragments
from protos.reader.canvas import png_chunks
from protos.reader.ebml import segment
from protos.reader.payload import Payload
from protos.reader.sniff import MOV_BOXES, TS_PACKETS
from protos.reader.timeline import Timeline
from protos.types import ClipWarning

M2TS_PACKET, M2TS_LEAD = 192, 4  # bytes: a packet, and the timestamp before its sync byte
PES_BYTES = 65_536  # the longest packet of a program stream
TOLERATED = 50  # one part in this many of the declared bytes may be missing: writers are often off by a few
RELAXED_S = 0.5  # a track may end this much before its declared end, or a TOLERATED part of it
REORDERED = 17  # frames at a cut among which some can be missing
HOLE = 1.5  # intervals between two frames, above which a frame between them is missing
UNTIMED = 3  # last frames that are left out of a cut file without display times: frames between them can be missing


def bytes_are_missing(data: Payload, form: str) -> bool:
    """Whether the file is shorter than its outermost structure declares.

    Formats that declare no size (live webm, streams cut between two of their packets) count as complete.
    """
    if form == "gif":
        return data[max(0, len(data) - 4096) :].rstrip(b"\0\r\n")[-1:] != b";"
    if form == "apng":
        return all(name != b"IEND" for name, _ in png_chunks(data))
    if form == "mpegts":
        return _ends_within_packet(data)
    if form == "mpeg":
        return _ends_within_pes(data)
    declared = _declared_bytes(data, form)
    if form == "mov" and (len(data) - declared) * TOLERATED > len(data):
        return has_fragments(data)  # after the last piece that can be read comes something else
    return (declared - len(data)) * TOLERATED > declared


def ends_early(end_s: float, declared_s: float | None) -> bool:
    """Whether a track that ends at `end_s` is clearly shorter than declared."""
    return declared_s is not None and declared_s - end_s > max(RELAXED_S, declared_s / TOLERATED)


def until_hole(line: Timeline) -> Timeline:
    """The line up to the first missing frame near a cut.

    Frames are stored in decoding order. At a cut, the last ones shown can be there without those before them.
    """
    gaps = np.diff(line.ticks)
    if not gaps.size or not (np.diff(line.packet_ticks) < 0).any():
        return line
    holes = np.flatnonzero(gaps > HOLE * np.median(gaps))
    near = holes[holes >= line.ticks.size - REORDERED]
    return line.first_frames(int(near[0]) + 1) if near.size else line


def without_last(line: Timeline, num: int = UNTIMED) -> Timeline:
    """The line without its last frames, at least one frame long."""
    return line.first_frames(max(1, line.ticks.size - num))


def truncated(end_s: float, declared_s: float | None) -> ClipWarning:
    """The warning for a file that ends after `end_s` seconds of video."""
    if declared_s is None or declared_s <= end_s:
        message = f"the file is cut or damaged after {end_s:.1f} s; only the part before is used; upload the whole file"
        return ClipWarning(code="truncated", message=message)
    message = f"the file ends after {end_s:.1f} s of {declared_s:.1f} s; only that part is used; upload the whole file"
    return ClipWarning(code="truncated", message=message, share=1 - end_s / declared_s)


def avi_duration_s(data: Payload) -> float | None:
    """The duration by an avi's main header, which ffmpeg replaces by a guess if the file is cut."""
    at = data[:4096].find(b"avih")
    if at < 0 or at + 28 > len(data):
        return None
    interval_us, total = struct.unpack("<I12xI", data[at + 8 : at + 28])
    return total * interval_us / 1e6 or None


def _ends_within_packet(data: Payload) -> bool:
    """Whether a transport stream ends within one of its packets, counted from its last sync bytes."""
    tail = data[max(0, len(data) - 8 * max(TS_PACKETS)) :]
    for size in TS_PACKETS:
        lead = M2TS_LEAD if size == M2TS_PACKET else 0
        for sync in range(size):
            found = tail[sync::size]
            if len(found) > 4 and set(found) == {0x47}:
                return (len(tail) - sync + lead) % size != 0
    return False


def _ends_within_pes(data: Payload) -> bool:
    """Whether a program stream ends within its last packet of video, which declares its length."""
    tail = data[max(0, len(data) - 2 * PES_BYTES) :]
    at = max(tail.rfind(b"\0\0\1" + bytes([code])) for code in range(0xE0, 0xF0))
    if at < 0 or at + 6 > len(tail):
        return at >= 0
    return at + 6 + int.from_bytes(tail[at + 4 : at + 6], "big") > len(tail)


def _declared_bytes(data: Payload, form: str) -> int:
    """The file's size by its outermost structure, or the length of `data` if the file does not declare one."""
    if form == "mov":
        return _end_of_boxes(data)
    if form == "matroska":
        whole = segment(data)
        return whole.end if whole else len(data)
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
