"""Draws what was seen onto a frame of the clip: the residual as a haze, tracks as dots with tails, a box of numbers.

Everything has a dark edge under a bright colour, so that it can be told from light and from dark pictures. Sizes follow
the frame, so that a mark looks alike at any resolution.

Legend: H, W size of the drawn frame in pixels, h, w size of a residual map in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from reward_server.explain.timeline import Mark, Moment

Frame = NDArray[np.uint8]  # [H,W,3] RGB
Colour = tuple[int, int, int]

RAISES: Colour = (64, 196, 255)  # a track whose share is above 0
LOWERS: Colour = (255, 176, 32)
EDGE: Colour = (16, 16, 20)
HAZE: Colour = (255, 32, 112)
MOST_HAZE = 0.6  # opacity of the highest residual
WHITE: Colour = (245, 245, 247)
GREY: Colour = (168, 170, 178)
SUBPIXEL_BITS = 4


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From a clip's displayed pixels to those of the drawn frame, and the drawn frame's size."""

    height: int
    width: int
    x: float
    y: float

    @property
    def unit(self) -> float:
        """The radius of a mark in pixels, from which all sizes follow."""
        return max(2.5, min(self.height, self.width) / 150)


def text_px(height: int, width: int) -> int:
    """The size of text in a frame of this size, in pixels."""
    return max(15, round(min(height, width) / 28))


@lru_cache(maxsize=16)
def font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def drawn(frame: Frame, moment: Moment | None, scale: Scale, residual_range: tuple[float, float]) -> Frame:
    """The frame [H,W,3] with the moment on it. Without a moment it is the frame itself."""
    if moment is None:
        return frame
    image = hazed(frame, moment.residual, residual_range)
    marks = sorted(moment.marks, key=lambda mark: abs(mark.share))  # the largest share is on top
    for mark in marks:
        if mark.visible:  # the way of a lost point is a guess from the flow around it
            _draw_tail(image, mark, scale)
    for mark in marks:
        _draw_dot(image, mark, scale)
    return image


def hazed(frame: Frame, residual: NDArray[np.float32], residual_range: tuple[float, float]) -> Frame:
    """A copy of the frame with a haze where the residual is above the range's low end, densest at its high end."""
    if not residual.size:
        return frame.copy()
    low, high = residual_range
    height, width = frame.shape[:2]
    level = ((residual - low) / (high - low)).clip(0, 1).astype(np.float32)
    weight = MOST_HAZE * cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR)
    colour = np.full_like(frame, HAZE)
    return np.asarray(cv2.blendLinear(frame, colour, 1 - weight, weight), np.uint8)


def _draw_tail(image: Frame, mark: Mark, scale: Scale) -> None:
    points = np.array([_at(x, y, scale) for x, y in mark.tail], np.int32)
    for colour, wide in ((EDGE, 2.2), (_colour(mark), 1.0)):
        thickness = max(1, round(wide * scale.unit / 3))
        cv2.polylines(image, [points], False, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_dot(image: Frame, mark: Mark, scale: Scale) -> None:
    """A solid dot for a visible track, a ring for one that is out of sight."""
    centre, unit = _at(mark.x_px, mark.y_px, scale), scale.unit
    if mark.visible:
        _circle(image, centre, unit * 1.35, EDGE, -1)
        _circle(image, centre, unit, _colour(mark), -1)
    else:
        thin = max(1, round(unit * 0.4))
        _circle(image, centre, unit * 1.9, EDGE, thin + 2 * max(1, round(unit * 0.2)))
        _circle(image, centre, unit * 1.9, _colour(mark), thin)


def _circle(image: Frame, centre: tuple[int, int], radius: float, colour: Colour, thickness: int) -> None:
    cv2.circle(image, centre, round(radius * 2**SUBPIXEL_BITS), colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)


def _at(x_px: float, y_px: float, scale: Scale) -> tuple[int, int]:
    """A place in the drawn frame, in units of 1/16 px. Far outside it is brought near, for OpenCV's integers."""
    x, y = (x_px + 0.5) * scale.x - 0.5, (y_px + 0.5) * scale.y - 0.5
    near_x = min(max(x, -scale.width), 2.0 * scale.width)
    near_y = min(max(y, -scale.height), 2.0 * scale.height)
    return round(near_x * 2**SUBPIXEL_BITS), round(near_y * 2**SUBPIXEL_BITS)


def _colour(mark: Mark) -> Colour:
    return RAISES if mark.share >= 0 else LOWERS


def with_time(image: Frame, time_s: float, size_px: int) -> None:
    """Draw the time into the bottom left corner, on a dark box."""
    _with_lines(image, [("", f"{time_s:.2f} s")], size_px, at_bottom=True)


def with_box(image: Frame, lines: Sequence[tuple[str, str]], size_px: int) -> None:
    """Draw names and numbers into the top left corner, on a dark box that lets a little of the picture through."""
    _with_lines(image, lines, size_px, at_bottom=False)


def _with_lines(image: Frame, lines: Sequence[tuple[str, str]], size_px: int, *, at_bottom: bool) -> None:
    letters = font(size_px)
    names, numbers = (max(letters.getlength(line[side]) for line in lines) for side in (0, 1))
    pad, step = size_px * 0.6, size_px * 1.35
    width = min(image.shape[1], round(names + numbers + 2 * pad + (size_px if names else 0)))
    height = min(image.shape[0], round(step * len(lines) + 1.4 * pad))
    corner = image[-height:, :width] if at_bottom else image[:height, :width]
    under = Image.fromarray((corner * 0.22 + np.array(EDGE) * 0.6).astype(np.uint8))
    draw = ImageDraw.Draw(under)
    for row, (name, number) in enumerate(lines):
        y = pad * 0.7 + row * step
        draw.text((pad, y), name, font=letters, fill=GREY)
        draw.text((width - pad, y), number, font=letters, fill=WHITE, anchor="ra")
    corner[:] = np.asarray(under)
