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

PILLOW_ERRORS = (OSError, EOFError, SyntaxError, ValueError, RuntimeError)
QUICKEST_MS = 10  # browsers show frames with this duration or less for SLOW_MS, and authors rely on it
SLOW_MS = 100


def open_webp(payload: Payload, guard: Guard) -> Reel:
    """Open a webp file. The limits are checked before anything is decoded.

    Raises UnreadableClip, ClipTooLarge, DecodeTooSlow.
    """
    data = payload.whole()
    times_s = _times(data, guard)
    if times_s.size:
        guard.duration(float(times_s[-1]))

    def pictures(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        with _open(data) as image:
            yield from _pictures(image, times_s, guard)

    return Reel(codec="webp", times_s=times_s, pictures=pictures)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=["WEBP"])
    except Image.DecompressionBombError as error:
        raise ClipTooLarge(f"{error}; scale the clip down") from error
    except PILLOW_ERRORS as error:
        raise UnreadableClip(f"the webp's {len(data)} bytes cannot be opened ({error}); upload it whole") from error


def _times(data: bytes, guard: Guard) -> NDArray[np.float64]:
    """The start time of each frame, in seconds [T]. A still picture is one frame."""
    durations_ms: list[int] = []
    for name, body in _chunks(data):
        guard.clock()
        if name == b"VP8X" and len(body) >= 10:
            guard.size(1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little"))
        if name == b"ANMF" and len(body) >= 16:
            durations_ms.append(int.from_bytes(body[12:15], "little"))
            guard.frames(len(durations_ms))
    shown_ms = [SLOW_MS if ms <= QUICKEST_MS else ms for ms in durations_ms] or [SLOW_MS]
    return np.concatenate(([0.0], np.cumsum(shown_ms)[:-1] / 1000))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(name, first bytes) of each chunk at the top level of a RIFF file."""
    at, view = 12, memoryview(data)
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        yield name, view[at + 8 : at + 8 + min(size, 16)]
        at += 8 + size + size % 2


def _pictures(image: Image.Image, times_s: NDArray[np.float64], guard: Guard) -> Iterator[tuple[float, Picture]]:
    guard.size(image.height, image.width)
    for index, time_s in enumerate(times_s):
        guard.clock()
        try:
            image.seek(index)
            rgba = np.asarray(image.convert("RGBA"))
        except PILLOW_ERRORS as error:
            raise UnreadableClip(
                f"frame {index} of the webp's {times_s.size} cannot be decoded ({error}): the file is damaged; "
                "upload the whole file or re-encode it"
            ) from error
        yield float(time_s), _picture(rgba)


def _picture(rgba: NDArray[np.uint8]) -> Picture:
    height, width = rgba.shape[:2]
    return Picture(height_px=height, width_px=width, rgb=partial(over_black, rgba), luma=lambda: rgba[..., 1])
