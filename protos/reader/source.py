"""Opens a clip file and gives its frame times, its size and its frames. The whole project reads clips through it.

`open_source` reads the times and the size. Frames are decoded on request, in one pass, and only as far as needed.
Frames are requested by their positions in `times_s`; `times.nearest_frames` finds the positions for given times.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import cv2
import numpy as np

from protos.reader import memory
from protos.reader.animation import open_webp
from protos.reader.containers import open_container
from protos.reader.errors import UnreadableClip
from protos.reader.guard import FILE_LIMITS, MAX_READ_S, Guard, decoder_threads
from protos.reader.payload import Payload, open_payload
from protos.reader.reel import Frame, Picture, Recount, Reel, Times, Track
from protos.reader.sequences import is_sequence, open_sequence
from protos.reader.sniff import sniff
from protos.reader.tensors import is_tensor, open_tensor
from protos.reader.times import frame_interval, nearest
from protos.types import ClipWarning, Limits, Media

R = TypeVar("R")
Pictures = Iterator[tuple[float, Picture]]
Watch = Callable[[float, Picture, bool], None]  # time in seconds, picture, whether the frame before was decoded too


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Frames `first`..`last` (exclusive) without a jump of time, all displayed at one size."""

    first: int
    last: int
    height_px: int
    width_px: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """An open clip file.

    `times_s` [T] are the frame times in seconds, rising. Height and width are the first frame's displayed size.
    """

    codec: str
    times_s: Times = field(repr=False)
    height_px: int
    width_px: int
    rotation_deg: int
    stretches: tuple[Stretch, ...]
    tracks: tuple[Track, ...] = ()
    warnings: tuple[ClipWarning, ...] = ()
    _reel: Reel = field(repr=False)
    _begun: list[Pictures] = field(repr=False, default_factory=list)  # the pass that gave the first picture, or nothing
    _guard: Guard = field(repr=False)

    @property
    def fps(self) -> float:
        """The file's own frame rate, from the typical interval between frames; 0 for fewer than two frames."""
        interval_s = frame_interval(self.times_s)
        return 1 / interval_s if interval_s else 0.0

    def frames(
        self,
        wanted: Sequence[int],
        fit: Callable[[Picture], Frame] | None = None,
        *,
        watch: Watch | None = None,
        to_the_end: bool = True,
    ) -> Iterator[tuple[int, Frame]]:
        """Yield (position, uint8 [H,W,3]) for every wanted position, in rising order, one frame at a time.

        `fit` turns a picture into a frame, for instance a small one; by default the frame is as displayed. A damaged
        file can lack a few frames: then the nearest frame is given, as the same object. `watch` is called with every
        picture that is decoded. `to_the_end` also decodes the frames after the last wanted one in its group, to find
        damage there. Raises UnreadableClip, ClipTooLarge, DecodeTooSlow, and Recount for `with_true_times`.
        """
        fit = fit or as_displayed
        found = nearest(self._watched(self._pictures(wanted), watch), [float(self.times_s[index]) for index in wanted])
        last: list[Picture] | None = None
        frame: Frame | None = None
        for held, index in zip(found, wanted, strict=False):  # `found` comes first: zip exhausts it
            self._guard.clock()
            if held is not last or frame is None:
                frame, last = fit(held.pop()), held
            yield index, frame
            if index == wanted[-1] < self.times_s.size - 1 and self._reel.stoppable and not to_the_end:
                return  # but not at the file's last frame: what is checked after it costs nothing
        if frame is None and len(wanted):
            raise UnreadableClip(
                f"none of the {len(wanted)} frames from {self.times_s[wanted[0]]:.2f} s on can be decoded: the file is "
                "damaged; upload the whole file or re-encode it"
            )

    def _pictures(self, wanted: Sequence[int]) -> Pictures:
        """The pass that gave the first picture goes on, if it decodes what is wanted and nothing else."""
        begun = self._begun.pop() if self._begun else None
        return begun if begun is not None and self._reel.reads_all(wanted) else self._reel.pictures(wanted)

    def _watched(self, pictures: Pictures, watch: Watch | None) -> Iterator[tuple[float, list[Picture]]]:
        """Each picture in a list, out of which `frames` takes it once it is fitted.

        So it is not held while the next one is decoded: at 4K, a decoded picture takes up to 66 MB.
        """
        before, times_s = -1, self.times_s.tolist()
        for time_s, picture in pictures:
            position = _nearest_to(times_s, time_s)
            if watch:
                watch(time_s, picture, position == before + 1)
            before = position
            stretch = self.stretch_at(time_s)
            if (picture.height_px, picture.width_px) != (stretch.height_px, stretch.width_px) and self._reel.counted:
                raise Recount
            held = [picture]
            del picture
            yield time_s, held

    def require_counted_times(self) -> None:
        """Raise Recount, for `with_true_times`, if times are not counted. Call it before a refusal for times."""
        if self._reel.counted is not None:
            raise Recount

    def within(self, first: int = 0, last: int | None = None) -> list[Stretch]:
        """The stretches, cut to the frames `first`..`last` (exclusive)."""
        end = self.times_s.size if last is None else min(last, self.times_s.size)
        cut = [replace(one, first=max(first, one.first), last=min(end, one.last)) for one in self.stretches]
        return [one for one in cut if one.first < one.last]

    def stretch_at(self, time_s: float) -> Stretch:
        """The stretch that contains a time; the first stretch for an earlier time."""
        if len(self.stretches) == 1:
            return self.stretches[0]
        before = [stretch for stretch in self.stretches if self.times_s[stretch.first] <= time_s]
        return before[-1] if before else self.stretches[0]


@contextmanager
def open_source(
    data: bytes | Path | BinaryIO,
    limits: Limits = FILE_LIMITS,
    *,
    max_decode_s: float = MAX_READ_S,
    media: Media | None = None,
    track: int | None = None,
    fps: float | None = None,
    threads: int | None = None,
) -> Iterator[Source]:
    """Open a file or its bytes and decode the first frame. The bytes show the format, unless `media` is given.

    `track` chooses a video track by its position. A path can also be an image sequence, a folder of pictures or a
    pattern, with its frame rate `fps`; files have their own rate. `threads` is the number of threads of the
    decoder; None takes it from the environment, as guard.py says.
    Raises subclasses of ReaderError, and OSError for a path that cannot be read.
    """
    num_threads = decoder_threads() if threads is None else threads
    guard = Guard(limits=limits, max_decode_s=max_decode_s, threads=num_threads)
    if isinstance(data, Path) and is_sequence(data):
        yield _source(open_sequence(data, guard, fps), guard)
        return
    with open_payload(data) as payload:
        guard.payload(len(payload))
        source = _source(_reel(payload, guard, media, track), guard)
        try:
            yield source
        finally:
            source._begun.clear()


def with_true_times(source: Source, use: Callable[[Source], R]) -> R:
    """Call use(source), and call it again with counted times if decoding gives other times than the file does.

    Packets and frames can differ: two packets can be the fields of one frame, and some frames are never shown.
    """
    try:
        return use(source)
    except Recount:
        return use(_counted(source._reel, source._guard))


def _nearest_to(times_s: Sequence[float], time_s: float) -> int:
    """As times.nearest_frames, for one time; it is called for every decoded frame."""
    right = min(max(bisect.bisect_left(times_s, time_s), 1), len(times_s) - 1)
    return right - (len(times_s) > 1 and time_s - times_s[right - 1] <= times_s[right] - time_s)


def as_displayed(picture: Picture) -> Frame:
    """The frame with square pixels."""
    return resized(picture.rgb(), picture.height_px, picture.width_px)


def resized(frame: Frame, height_px: int, width_px: int) -> Frame:
    """Resize uint8 [H,W,3]: area average to shrink, linear to enlarge. An equal size returns the frame itself."""
    if frame.shape[:2] == (height_px, width_px):
        return frame
    shrinks = frame.shape[0] * frame.shape[1] > height_px * width_px
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(frame), (width_px, height_px), interpolation=how), dtype=np.uint8)


def shrunk(picture: Picture, max_side_px: int) -> Frame:
    """The frame as displayed, no side longer than `max_side_px`."""
    return resized(as_displayed(picture), *shrunk_size(picture.height_px, picture.width_px, max_side_px))


def shrunk_size(height_px: int, width_px: int, max_side_px: int) -> tuple[int, int]:
    factor = min(1.0, max_side_px / max(height_px, width_px))
    return max(1, round(height_px * factor)), max(1, round(width_px * factor))


def _reel(payload: Payload, guard: Guard, media: Media | None, track: int | None) -> Reel:
    tensor = media is Media.TENSOR or (media is None and is_tensor(payload))
    form = "" if tensor else sniff(payload)
    if track and (tensor or form == "webp"):
        raise UnreadableClip(
            f"track={track} does not exist: the file has 1 video track(s), counted from 0; leave it out"
        )
    if tensor:
        return open_tensor(payload, guard)
    return open_webp(payload, guard) if form == "webp" else open_container(payload, form, guard, track)


def _source(reel: Reel, guard: Guard) -> Source:
    try:
        first, begun = _first_picture(reel)
    except Recount:
        return _counted(reel, guard)
    memory.prepare_for(first.height_px, first.width_px)
    edges = [0, *reel.breaks, reel.times_s.size]
    size = {"height_px": first.height_px, "width_px": first.width_px}
    return Source(
        codec=reel.codec,
        times_s=reel.times_s,
        rotation_deg=first.rotation_deg,
        stretches=tuple(Stretch(first=a, last=b, **size) for a, b in itertools.pairwise(edges)),
        tracks=reel.tracks,
        warnings=reel.warnings,
        _reel=reel,
        _begun=[begun],
        _guard=guard,
        **size,
    )


def _first_picture(reel: Reel) -> tuple[Picture, Pictures]:
    """The first picture, and the pass that gave it, from the beginning."""
    if not reel.times_s.size:
        track = next((one.index for one in reel.tracks if one.chosen), 0)
        raise UnreadableClip(
            f"video track {track} has no frame to show: its edit list hides all, or it has no key frame; re-encode the "
            "clip"
        )
    pictures = reel.pictures(None)
    try:
        time_s, first = next(pictures)
        return first, _resumed([(time_s, first)], pictures)
    except StopIteration:
        raise UnreadableClip(
            f"none of the file's {reel.times_s.size} {reel.codec} frames can be decoded; upload the whole file or "
            "re-encode it"
        ) from None


def _resumed(first: list[tuple[float, Picture]], pictures: Pictures) -> Pictures:
    yield first.pop()  # it is not held here
    yield from pictures


def _counted(reel: Reel, guard: Guard) -> Source:
    """The source with its true times and sizes, found by decoding all of it."""
    assert reel.counted is not None, "only a reel that can be counted raises Recount"
    counted, sizes = reel.counted()
    changes = {at for at in range(1, len(sizes)) if sizes[at] != sizes[at - 1]}
    edges = sorted({0, len(sizes), *counted.breaks, *changes})
    stretches = tuple(
        Stretch(first=a, last=b, height_px=sizes[a][0], width_px=sizes[a][1]) for a, b in itertools.pairwise(edges)
    )
    return replace(_source(counted, guard), stretches=stretches)
