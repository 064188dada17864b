"""Compares what a file claims to hold with the limits and with what its bytes can hold, before a decoder opens it.

ffmpeg and Pillow build tables and pictures from such claims, so that a file of a few kilobytes can take gigabytes, or
minutes. Only names, sizes and counts are read here. What a file cannot be asked about without decoding is left to the
limits on time and memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from protos.reader.boxes import Box, boxes
from protos.reader.canvas import check_apng, check_gif, check_webp
from protos.reader.ebml import Element, elements, segment
from protos.reader.errors import ClipTooLarge, UnreadableClip
from protos.reader.guard import Guard, named
from protos.reader.payload import Payload
from protos.reader.riff import chunks

MAX_TRACKS = 128
MAX_EDITS = 100  # entries in one track's edit list; each entry can repeat the whole track
MAX_OTHER_SAMPLES = 1_000_000  # samples of sound, other tracks and fragments together
MAX_INDEXED = 4_000_000  # samples of all tracks, each as often as its edit list can repeat it
MAX_ELEMENTS = 100_000  # in a Matroska file's index, tags and chapters, besides those of key frames
PER_FRAME = 8  # elements that an index has for a key frame

HEAD_BYTES = 32  # of a box: as far as counts reach
ENTRY_BYTES = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"stps": 4}
MATROSKA_TRACKS, MATROSKA_TRACK = b"\x16\x54\xae\x6b", b"\xae"
MATROSKA_LISTS = {  # SeekHead, Cues, Tags, Chapters
    *(b"\x11\x4d\x9b\x74", b"\x1c\x53\xbb\x6b", b"\x12\x54\xc3\x67", b"\x10\x43\xa7\x70"),
}
MATROSKA_NESTED = {  # Seek; CuePoint, CueTrackPositions; Tag, Targets, SimpleTag; EditionEntry, ChapterAtom, display
    *(b"\x4d\xbb", b"\xbb", b"\xb7", b"\x73\x73", b"\x63\xc0", b"\x67\xc8", b"\x45\xb9", b"\xb6", b"\x80"),
}
MAX_NESTED = 16  # levels of a Matroska list: tags and chapters hold others of their kind


def check_plausible(payload: Payload, form: str, guard: Guard) -> None:
    """Check the claims of a file; `form` is a demuxer's name from sniff.py.

    Raises ClipTooLarge for a claim over a limit, and UnreadableClip for one that contradicts the file itself.
    """
    check = CHECKS.get(form)
    if check:
        check(payload, guard)


# --- mp4 and mov --------------------------------------------------------------------------------


def _check_mov(payload: Payload, guard: Guard) -> None:
    index = _Index(guard)
    for box in boxes(payload):
        guard.clock()
        index.add(box, payload[box.at : box.at + min(box.held, HEAD_BYTES)])
    index.finish()


class _Index:
    """Adds up what an mp4's index claims: tracks, samples and edits."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._num_tracks, self._others, self._indexed = 0, 0, 0
        self._video: list[int] = []  # samples of each video track
        self._begin_track()

    def _begin_track(self) -> None:
        self._handler, self._by_chunk = b"", False
        self._samples, self._edits = 0, 0  # of this track

    def add(self, box: Box, head: bytes) -> None:
        """Count one box, whose body begins with `head`."""
        if box.name == b"trak":
            self._num_tracks += 1
            _check_tracks(self._num_tracks)
            self._indexed += self._repeated
            self._begin_track()
        elif box.name == b"hdlr":
            self._handler = head[8:12]
        elif box.name == b"cmov":
            raise UnreadableClip("the file's index is compressed (cmov), which is not supported; re-encode the clip")
        elif len(head) >= 8:
            self._add_table(box, head)

    def finish(self) -> None:
        """Check what only the whole index can tell: the samples of a single video track."""
        if len(self._video) == 1:
            self._guard.packets(self._video[0])

    def _add_table(self, box: Box, head: bytes) -> None:
        count, num_bytes = _table(box.name, head)
        if box.name == b"stts":  # ffmpeg indexes sound by chunk if every sample lasts one tick
            self._by_chunk = len(head) >= 16 and struct.unpack(">II", head[4:8] + head[12:16]) == (1, 1)
        elif box.name in (b"stsz", b"stz2"):
            self._add_samples(count)
        elif box.name == b"trun":
            self._others += count
        elif box.name == b"elst":
            self._add_edits(count)
        if num_bytes > box.declared:
            raise UnreadableClip(
                f"the index's {box.name.decode()} box claims {count} entries, which need {num_bytes} bytes, but has "
                f"{box.declared}: the file is damaged; upload it again or re-encode it"
            )
        self._check()

    def _add_samples(self, count: int) -> None:
        if self._handler == b"vide":
            self._video.append(count)
            self._guard.packets(sum(self._video), several_tracks=True)
        elif self._handler == b"soun" and self._by_chunk:
            return
        else:
            self._others += count
        self._samples += count

    def _add_edits(self, count: int) -> None:
        self._edits += count
        if self._edits > MAX_EDITS:
            raise ClipTooLarge(
                f"the file's edit list has {self._edits} entries, over the limit of {MAX_EDITS}; re-encode the clip"
            )

    @property
    def _repeated(self) -> int:
        return self._samples * max(1, self._edits)

    def _check(self) -> None:
        most = max(MAX_OTHER_SAMPLES, self._guard.limits.max_frames)
        if self._others > most:
            raise ClipTooLarge(
                f"the file's index claims {self._others} samples beside its video, over the limit of {most}; re-encode "
                "the clip"
            )
        if self._indexed + self._repeated > max(MAX_INDEXED, most):
            raise ClipTooLarge(
                f"the file's edit lists can repeat its samples {self._indexed + self._repeated} times, over the limit "
                f"of {max(MAX_INDEXED, most)}; re-encode the clip"
            )


def _table(name: bytes, head: bytes) -> tuple[int, int]:
    """(entries, bytes that they need) of a table whose body begins with `head`; (0, 0) if the box is no table."""
    if name in ENTRY_BYTES:
        count = int.from_bytes(head[4:8], "big")
        return count, 8 + count * ENTRY_BYTES[name]
    if name == b"elst":
        count = int.from_bytes(head[4:8], "big")
        return count, 8 + count * (20 if head[0] == 1 else 12)
    if name in (b"stsz", b"stz2") and len(head) >= 12:
        one_size, count = struct.unpack(">II", head[4:12])
        bits = 32 * (not one_size) if name == b"stsz" else head[7]
        return count, 12 + (count * bits + 7) // 8
    if name == b"trun":
        flags, count = struct.unpack(">II", head[:8])
        return count, 8 + 4 * (flags & 0x5).bit_count() + 4 * count * (flags & 0xF00).bit_count()
    return 0, 0


# --- matroska, avi ------------------------------------------------------------------------------


def _check_matroska(payload: Payload, guard: Guard) -> None:
    whole = segment(payload)
    num_tracks, num_elements = 0, 0
    for top in elements(payload, whole.at, whole.end) if whole else ():
        guard.clock()
        if top.name == MATROSKA_TRACKS:
            num_tracks += sum(one.name == MATROSKA_TRACK for one in elements(payload, top.at, top.end))
            _check_tracks(num_tracks)
        if top.name not in MATROSKA_LISTS:
            continue
        most = MAX_ELEMENTS + PER_FRAME * guard.limits.max_frames
        for _ in _listed(payload, top, MAX_NESTED):
            num_elements += 1
            if num_elements > most:
                raise ClipTooLarge(
                    f"the file's index, tags and chapters have over {most} elements, the limit for a file of "
                    f"{guard.limits.max_frames} frames; copy its video into a new file (ffmpeg -i IN -map 0:v:0 "
                    f"-map_metadata -1 -c copy OUT.mkv) or raise {named('max_frames')}"
                )


def _listed(payload: Payload, within: Element, levels: int) -> Iterator[Element]:
    for one in elements(payload, within.at, within.end):
        yield one
        if levels and one.name in MATROSKA_NESTED:
            yield from _listed(payload, one, levels - 1)


def _check_avi(payload: Payload, guard: Guard) -> None:
    num_tracks = 0
    for name, at, size in chunks(payload, 12, len(payload)):
        guard.clock()
        if name == b"LIST" and payload[at : at + 4] == b"hdrl":
            num_tracks += sum(
                inner == b"LIST" and payload[start : start + 4] == b"strl"
                for inner, start, _ in chunks(payload, at + 4, min(at + size, len(payload)))
            )
            _check_tracks(num_tracks)
            return


def _check_tracks(num_tracks: int) -> None:
    if num_tracks > MAX_TRACKS:
        raise ClipTooLarge(
            f"the file has over {MAX_TRACKS} tracks, the limit; keep one of video (ffmpeg -i IN -map 0:v:0 -c copy OUT)"
        )


CHECKS: dict[str, Callable[[Payload, Guard], None]] = {
    "mov": _check_mov,
    "matroska": _check_matroska,
    "avi": _check_avi,
    "gif": check_gif,
    "webp": check_webp,
    "apng": check_apng,
}
