"""Checks the counts in an mp4's index against the limits, before ffmpeg builds tables from them.

A tiny file can claim millions of frames. Only the sizes of boxes and the counts in them are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from protos.reader.errors import ClipTooLarge, UnreadableClip
from protos.reader.guard import Guard
from protos.reader.payload import Payload

NESTED = (b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"moof", b"traf")
MAX_BOXES = 200_000
MAX_EDITS = 100  # entries in one edit list; each entry can repeat the whole track
MAX_OTHER_SAMPLES = 1_000_000  # samples of sound, other tracks and fragments together


def check_claims(payload: Payload, guard: Guard) -> None:
    """Raises ClipTooLarge if the index claims more than the limits allow, UnreadableClip if it is compressed."""
    handler, sound_by_chunk, others = b"", False, 0
    for name, at, size in _boxes(payload, 0, len(payload), [0]):
        guard.clock()
        body = payload[at : at + min(size, 32)]
        if name == b"hdlr":
            handler = body[8:12]
        elif name == b"stts":  # ffmpeg indexes sound by chunk if every sample lasts one tick
            sound_by_chunk = len(body) >= 16 and struct.unpack(">II", body[4:8] + body[12:16]) == (1, 1)
        elif name in (b"stsz", b"stz2") and len(body) >= 12:
            samples = int.from_bytes(body[8:12], "big")
            if handler == b"vide":
                guard.frames(samples)
            elif not (handler == b"soun" and sound_by_chunk):
                others += samples
        elif name == b"trun" and len(body) >= 8:
            others += int.from_bytes(body[4:8], "big")
        elif name == b"elst" and int.from_bytes(body[4:8], "big") > MAX_EDITS:
            raise ClipTooLarge(
                f"the file's edit list has {int.from_bytes(body[4:8], 'big')} entries, over the limit of {MAX_EDITS}; "
                "re-encode the clip"
            )
        elif name == b"cmov":
            raise UnreadableClip("the file's index is compressed (cmov), which is not supported; re-encode the clip")
        if others > max(MAX_OTHER_SAMPLES, guard.limits.max_frames):
            raise ClipTooLarge(
                f"the file's index claims {others} samples beside its video, over the limit of {MAX_OTHER_SAMPLES}; "
                "re-encode the clip"
            )


def has_fragments(payload: Payload) -> bool:
    """Whether the frames are indexed piece by piece, so that the index at the start declares no duration."""
    return any(name == b"moof" for name, _, _ in _boxes(payload, 0, len(payload), [0]))


def _boxes(payload: Payload, at: int, end: int, seen: list[int]) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, position of the body, size of the body) for every box, including nested ones."""
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
        yield name, at + head, stop - at - head
        if name in NESTED:
            yield from _boxes(payload, at + head, stop, seen)
        at = stop
