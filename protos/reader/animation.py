"""Opens an animated webp as a Reel. The file's chunks give the times; Pillow decodes, since ffmpeg cannot."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protos.reader.errors import ClipTooLarge, UnreadableClip
from protos.reader.guard import Guard
from protos.reader.payload import Payload
from protos.reader.pixels import over_black
from protos.reader.reel import Picture, Reel
from protos.reader.truncation import bytes_are_missing, truncated

PILLOW_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError)
QUICKEST_MS = 10  # browsers show frames with this duration or less for SLOW_MS, and authors rely on it
SLOW_MS = 100


def open_webp(payload: Payload, guard: Guard) -> Reel:
    """Open a webp file. The limits are checked before anything is decoded. A cut file ends with its last whole frame.

    Raises UnreadableClip, ClipTooLarge, DecodeTooSlow.
    """
    data, cut = _whole_chunks(payload.whole())
    times_s, end_s = _times(data, guard)
    if times_s.size:
        guard.duration(float(times_s[-1]))

    def pictures(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        with _open(data) as image:
            yield from _pictures(image, times_s, guard)

    warnings = (truncated(end_s, None),) if cut or bytes_are_missing(payload, "webp") else ()
    return Reel(codec="webp", times_s=times_s, warnings=warnings, pictures=pictures)


def _whole_chunks(data: bytes) -> tuple[bytes, bool]:
    """The file up to the end of its last whole chunk, and whether it ends within a frame.

    Pillow refuses a file that is shorter than it declares, so the declared size is set to what is there. A file
    without a whole frame of an animation is returned as it is.
    """
    ends = [(name, end) for name, _, end in _chunks(data)]
    last_end = max((end for _, end in ends if end <= len(data)), default=0)
    animated = any(name == b"ANMF" and end <= len(data) for name, end in ends)
    if len(data) - 8 >= struct.unpack_from("<I", data, 4)[0] or not animated:
        return data, False
    within_frame = any(name == b"ANMF" and end > len(data) for name, end in ends)
    return b"RIFF" + struct.pack("<I", last_end - 8) + data[8:last_end], within_frame


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=["WEBP"])
    except Image.DecompressionBombError as error:
        raise ClipTooLarge(f"{error}; scale the clip down") from error
    except PILLOW_ERRORS as error:
        raise UnreadableClip(f"the webp's {len(data)} bytes cannot be opened ({error}); upload it whole") from error


def _times(data: bytes, guard: Guard) -> tuple[NDArray[np.float64], float]:
    """The start time of each frame [T] and the end of the last one, in seconds. A still picture is one frame."""
    durations_ms: list[int] = []
    for name, body, _ in _chunks(data):
        guard.clock()
        if name == b"VP8X" and len(body) >= 10:
            guard.size(1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little"))
        if name == b"ANMF" and len(body) >= 16:
            durations_ms.append(int.from_bytes(body[12:15], "little"))
            guard.frames(len(durations_ms))
    shown_ms = [SLOW_MS if ms <= QUICKEST_MS else ms for ms in durations_ms] or [SLOW_MS]
    ends_s = np.cumsum(shown_ms) / 1000
    return np.concatenate(([0.0], ends_s[:-1])), float(ends_s[-1])


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """(name, first bytes, end) of each chunk at the top level of a RIFF file. The end can lie after a cut file's."""
    at, view = 12, memoryview(data)
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        start, at = at + 8, at + 8 + size + size % 2
        yield name, view[start : start + min(size, 16)], at


def _pictures(image: Image.Image, times_s: NDArray[np.float64], guard: Guard) -> Iterator[tuple[float, Picture]]:
    guard.size(image.height, image.width)
    for index, time_s in enumerate(times_s):
        guard.clock()
        try:
            image.seek(index)
            pixels = np.asarray(image if image.mode in ("RGB", "RGBA") else image.convert("RGBA"))
        except PILLOW_ERRORS as error:
            raise UnreadableClip(
                f"frame {index} of the webp's {times_s.size}, at {time_s:.2f} s, cannot be decoded ({error}): the file "
                "is damaged; upload the whole file or re-encode it"
            ) from error
        yield float(time_s), _picture(pixels)


def _picture(pixels: NDArray[np.uint8]) -> Picture:
    """`pixels` is [H,W,3], or [H,W,4] with transparency."""
    height, width = pixels.shape[:2]
    rgb = partial(over_black, pixels) if pixels.shape[2] == 4 else lambda: pixels
    return Picture(height_px=height, width_px=width, rgb=rgb, luma=lambda: pixels[..., 1])
