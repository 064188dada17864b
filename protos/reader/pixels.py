"""Converts a decoded frame to upright RGB: colours, transparency, pixel shape, rotation and mirroring.

decoding.py and animation.py use it for the frames they decode. Resizing comes later, in source.py.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from protos.reader.errors import UnreadableClip
from protos.reader.reel import Picture
from protos.reader.tones import HLG, PQ, mapped, without_combs

# Without ACCURATE_RND and FULL_CHR_H_INT, swscale's approximations darken a picture by up to two levels.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
PACKED = {"bgra": cv2.COLOR_BGRA2RGB, "rgba": cv2.COLOR_RGBA2RGB}  # gif, png: their channels need no conversion

Matrix = tuple[float, float, float, float]  # a, b, c, d of x' = ax + cy, y' = bx + dy, with y down


def picture(frame: av.VideoFrame, pixel_aspect: float, matrix: Matrix) -> Picture:
    """Wrap a decoded frame as a Picture, which is converted only when its rgb() is called.

    `pixel_aspect` is a pixel's displayed width divided by its height. rgb() raises UnreadableClip if the frame's
    colours cannot be converted.
    """
    a, b, c, d = matrix
    size = (frame.height, round(frame.width * pixel_aspect))
    height, width = size[::-1] if abs(b) > abs(a) else size
    return Picture(
        height_px=height,
        width_px=max(1, width),
        rgb=partial(_rgb, frame, matrix),
        luma=partial(_luma, frame),
        rotation_deg=round(math.degrees(math.atan2(-c, d)) / 90) * 90 % 360,
        interlaced=bool(frame.interlaced_frame),
        hdr=int(frame.color_trc) in (PQ, HLG),
    )


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """The matrix that maps a stored pixel to its place on the screen.

    Call it for few frames: reading a frame's side data keeps it in memory until the garbage collector runs.
    """
    try:
        a, b, _, c, d = np.frombuffer(bytes(cast(Any, frame.side_data)["DISPLAYMATRIX"]), np.int32)[:5].tolist()
    except (KeyError, ValueError):  # no matrix, or PyAV does not know some other side data of the frame
        turn = math.radians(-frame.rotation)
        a, b, c, d = math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)
    return a, b, c, d


def _rgb(frame: av.VideoFrame, matrix: Matrix) -> NDArray[np.uint8]:
    curve = int(frame.color_trc)
    if curve in (PQ, HLG):
        pixels = mapped(_channels(_converted(frame, "rgb48le"), 6).view("<u2"), curve)
    elif frame.format.name in PACKED:
        pixels = over_black(_channels(frame, 4), PACKED[frame.format.name])
    elif any(component.is_alpha for component in frame.format.components):
        pixels = over_black(_channels(_converted(frame, "rgba"), 4))
    else:
        pixels = _channels(_converted(frame, "rgb24"), 3)
    return _upright(without_combs(pixels) if frame.interlaced_frame else pixels, matrix)


def _channels(frame: av.VideoFrame, pixel_bytes: int) -> NDArray[np.uint8]:
    """The only plane of a packed format, a view [H,W,pixel_bytes]. A copy would take up to 50 MB at 4K."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, abs(plane.line_size))
    if plane.line_size < 0:  # the last row comes first, as in bitmaps of Windows
        rows = rows[::-1]
    return rows[:, : pixel_bytes * plane.width].reshape(plane.height, plane.width, pixel_bytes)


def _converted(frame: av.VideoFrame, form: str) -> av.VideoFrame:
    try:
        return frame.reformat(format=form, interpolation=EXACT, threads=1)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableClip(
            f"{frame.format.name} frames of colour matrix {frame.colorspace} cannot be converted to RGB, first at "
            f"{frame.time or 0:.2f} s ({error}); re-encode the clip as yuv420p, BT.709"
        ) from error


def _luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The first plane, uint8 [h,w]: brightness, or the interleaved channels of packed formats.

    Of formats with more than 8 bits it gives the upper 8.
    """
    plane, form = frame.planes[0], frame.format
    bits = max(component.bits for component in form.components)
    columns = plane.width if len(frame.planes) > 1 else plane.width * max(1, form.padded_bits_per_pixel // max(8, bits))
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
    if bits <= 8:
        return rows[:, :columns]
    deep = rows.view(np.uint16)[:, :columns] >> (bits - 8)
    return np.asarray(deep, dtype=np.uint8)


def _upright(pixels: NDArray[np.uint8], matrix: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Turn and mirror [H,W,3] by a display matrix, rounded to the nearest of its eight right-angled forms."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels, along_x, along_y = pixels.swapaxes(0, 1), c, b
    else:
        along_x, along_y = a, d
    return pixels[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1]


def over_black(rgba: NDArray[np.uint8], to_rgb: int = cv2.COLOR_RGBA2RGB) -> NDArray[np.uint8]:
    """Blend uint8 [H,W,4] with straight alpha over black -> uint8 [H,W,3]. `to_rgb` is OpenCV's conversion."""
    rgb, alpha = cv2.cvtColor(rgba, to_rgb), cv2.extractChannel(rgba, 3)
    if alpha.min() < 255:
        cv2.multiply(rgb, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), rgb, 1 / 255)
    return np.asarray(rgb, dtype=np.uint8)
