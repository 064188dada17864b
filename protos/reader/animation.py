"""Opens an animated webp as a Reel. The file's chunks give the times and the places of its frames.

Pillow decodes, since ffmpeg cannot. It gets one frame at a time, as a still picture: given a whole animation, it copies
the file. Frames are put together here, over black.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protos.reader.errors import ClipTooLarge, UnreadableClip
from protos.reader.guard import Guard
from protos.reader.payload import Payload
from protos.reader.pixels import over_black
from protos.reader.plausible import check_plausible
from protos.reader.quick import QUICKEST_MS, SLOW_MS, quick_frames
from protos.reader.reel import Frame, Picture, Reel
from protos.reader.riff import chunks
from protos.reader.truncation import bytes_are_missing, truncated

PILLOW_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError)
FRAME_HEAD = 16  # bytes of a frame's chunk before its picture: place, size, duration, flags
CLEARED, REPLACING, HAS_ALPHA = 0x01, 0x02, 0x10  # flags of a frame and of a file


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A frame: the bytes `at`..`end` of its picture, its place on the canvas, and how it is put there.

    `blended`: what is under it shines through. `cleared`: its place becomes transparent when the next frame is shown.
    """

    at: int
    end: int
    left: int
    top: int
    width_px: int
    height_px: int
    shown_ms: int
    blended: bool
    cleared: bool

    def of(self, canvas: Frame) -> Frame:
        """The frame's place on the canvas, a view."""
        return canvas[self.top : self.top + self.height_px, self.left : self.left + self.width_px]


def open_webp(payload: Payload, guard: Guard) -> Reel:
    """Open a webp file. The limits are checked before anything is decoded. A cut file ends with its last whole frame.

    Raises UnreadableClip, ClipTooLarge, DecodeTooSlow.
    """
    check_plausible(payload, "webp", guard)
    size, parts = _parts(payload, guard)
    whole = [part for part in parts if part.end <= len(payload)]
    if not whole:
        return _still_reel(payload, guard)
    times_s, end_s = _times([part.shown_ms for part in whole])
    guard.duration(float(times_s[-1]))
    cut = len(whole) < len(parts) or bytes_are_missing(payload, "webp")

    def pictures(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        for index, frame in enumerate(_frames(payload, size, whole, times_s, guard)):
            yield float(times_s[index]), _picture(frame)

    num_quick = sum(part.shown_ms <= QUICKEST_MS for part in whole)
    warnings = (*quick_frames(num_quick, len(whole), "webp"), *((truncated(end_s, None),) if cut else ()))
    return Reel(codec="webp", times_s=times_s, warnings=warnings, pictures=pictures, reads_all=lambda wanted: True)


def _still_reel(payload: Payload, guard: Guard) -> Reel:
    """A webp without an animation, or cut within its first frame: one picture, if it can be decoded."""

    def pictures(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        image = _open(payload.whole(), guard)
        guard.size(image.height, image.width)
        try:
            pixels = over_black(np.asarray(image.convert("RGBA")))
        except PILLOW_ERRORS as error:
            raise _damaged(0, np.zeros(1), error) from error
        yield 0.0, _picture(pixels)

    return Reel(codec="webp", times_s=np.zeros(1), pictures=pictures)


def _parts(payload: Payload, guard: Guard) -> tuple[tuple[int, int], list[_Part]]:
    """The canvas's (height, width), and the frames of the animation. The last one can end after a cut file's end."""
    size, parts = (0, 0), list[_Part]()
    for name, at, num_bytes in chunks(payload, 12, len(payload)):
        guard.clock()
        if name == b"VP8X" and num_bytes >= 10:
            canvas = payload[at + 4 : at + 10]
            size = 1 + int.from_bytes(canvas[3:], "little"), 1 + int.from_bytes(canvas[:3], "little")
            guard.size(*size)
        if name == b"ANMF" and num_bytes >= FRAME_HEAD:
            parts.append(_part(payload[at : at + FRAME_HEAD], at, num_bytes))
            guard.frames(len(parts))
    return size, parts


def _part(head: bytes, at: int, num_bytes: int) -> _Part:
    left, top, width, height, shown_ms = (
        int.from_bytes(head[place : place + 3], "little") for place in range(0, 15, 3)
    )
    flags = head[15] if len(head) == FRAME_HEAD else 0
    return _Part(
        at=at + FRAME_HEAD,
        end=at + num_bytes,
        left=2 * left,
        top=2 * top,
        width_px=1 + width,
        height_px=1 + height,
        shown_ms=shown_ms,
        blended=not flags & REPLACING,
        cleared=bool(flags & CLEARED),
    )


def _times(durations_ms: Sequence[int]) -> tuple[NDArray[np.float64], float]:
    """The start time of each frame [T] and the end of the last one, in seconds."""
    shown_ms = [SLOW_MS if ms <= QUICKEST_MS else ms for ms in durations_ms]
    ends_s = np.cumsum(shown_ms) / 1000
    return np.concatenate(([0.0], ends_s[:-1])), float(ends_s[-1])


def _frames(
    payload: Payload, size: tuple[int, int], parts: Sequence[_Part], times_s: NDArray[np.float64], guard: Guard
) -> Iterator[Frame]:
    """Each frame of the animation over black, an array of its own."""
    canvas: Frame = np.zeros((*size, 3), np.uint8)
    before: _Part | None = None
    for index, part in enumerate(parts):
        guard.clock()
        try:
            pixels = _decoded(payload, part, size, guard)
        except (*PILLOW_ERRORS, UnreadableClip) as error:
            raise _damaged(index, times_s, error) from error
        canvas = _composed(canvas, before, part, pixels)
        before = part
        yield canvas


def _composed(canvas: Frame, before: _Part | None, part: _Part, pixels: NDArray[np.uint8]) -> Frame:
    """The canvas with a frame's pixels, [H,W,3] or [H,W,4] with transparency, on it. `canvas` itself stays.

    Over black, a colour times its opacity is all that is needed of what lies under a frame.
    """
    opaque = pixels.shape[2] == 3
    if (opaque or not part.blended) and pixels.shape[:2] == canvas.shape[:2]:
        return pixels if opaque else over_black(pixels)
    canvas = canvas.copy()
    if before is not None and before.cleared:
        before.of(canvas)[:] = 0
    place = part.of(canvas)
    if opaque:
        place[:] = pixels
    elif part.blended:
        through = cv2.cvtColor(255 - pixels[..., 3], cv2.COLOR_GRAY2RGB)
        place[:] = cv2.add(over_black(pixels), cv2.multiply(np.ascontiguousarray(place), through, scale=1 / 255))
    else:
        place[:] = over_black(pixels)
    return canvas


def _decoded(payload: Payload, part: _Part, size: tuple[int, int], guard: Guard) -> NDArray[np.uint8]:
    """A frame's own pixels, [H,W,3] or [H,W,4]. Raises one of PILLOW_ERRORS, UnreadableClip, ClipTooLarge."""
    if part.top + part.height_px > size[0] or part.left + part.width_px > size[1]:
        raise ValueError("it lies outside the canvas")
    with _open(_still(payload, part), guard) as image:
        if image.size != (part.width_px, part.height_px):
            raise ValueError("its size is not the declared one")
        return np.asarray(image if image.mode in ("RGB", "RGBA") else image.convert("RGBA"))


def _still(payload: Payload, part: _Part) -> bytes:
    """The frame as a still webp."""
    picture = payload[part.at : part.end]
    if picture[:4] == b"ALPH":
        size = (part.width_px - 1).to_bytes(3, "little") + (part.height_px - 1).to_bytes(3, "little")
        picture = b"VP8X" + struct.pack("<II", 10, HAS_ALPHA) + size + picture
    return b"RIFF" + struct.pack("<I", 4 + len(picture)) + b"WEBP" + picture


def _open(data: bytes, guard: Guard) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=["WEBP"])
    except Image.DecompressionBombError as error:
        raise ClipTooLarge(f"the webp's frames are too large to open; {guard.smaller(error)}") from error
    except PILLOW_ERRORS as error:
        bytearray(len(data))  # a MemoryError if there is no room for Pillow's copy: Pillow itself does not tell
        raise UnreadableClip(f"the webp's {len(data)} bytes cannot be opened ({error}); upload it whole") from error


def _damaged(index: int, times_s: NDArray[np.float64], error: Exception) -> UnreadableClip:
    return UnreadableClip(
        f"frame {index} of the webp's {times_s.size}, at {times_s[index]:.2f} s, cannot be decoded ({error}): the file "
        "is damaged; upload the whole file or re-encode it"
    )


def _picture(pixels: Frame) -> Picture:
    height, width = pixels.shape[:2]
    return Picture(height_px=height, width_px=width, rgb=lambda: pixels, luma=lambda: pixels[..., 1])
