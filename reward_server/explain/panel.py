"""Draws the panel under an annotated clip: the curves over time, the windows, their logits, and what the marks mean.

The panel is drawn once for a clip. `at` adds the cursor and the time of one frame, or a cursor for each of several.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from protos.explanation import Explanation, WindowExplanation
from protos.types import Reward
from reward_server.explain.drawing import EDGE, GREY, HAZE, LOWERS, RAISES, WHITE, Colour, Frame, font

GROUND: Colour = (24, 25, 30)
BAND: Colour = (38, 40, 48)
SURE: Colour = (150, 220, 150)  # the flow's confidence
FINER = 3  # the curves are drawn this many times finer and then reduced, which smooths their edges


class Panel:
    """The panel of one clip, for frames of one width: uint8 [height,width,3]."""

    def __init__(self, reward: Reward, explanation: Explanation, *, width: int, size_px: int) -> None:
        self._size_px, self._duration_s = size_px, max(reward.provenance.source.duration_s, 1e-3)
        self.height = _even(size_px * 8.2)
        self._left, self._right = size_px * 0.9, width - size_px * 0.9
        self._top, self._bottom = size_px * 2.0, self.height - size_px * 2.1
        self._still = self._drawn(reward, explanation, width)

    def at(self, *times_s: float) -> Frame:
        """The panel with a cursor at each time, and with the time if there is only one."""
        image = Image.fromarray(self._still)
        draw = ImageDraw.Draw(image)
        for x in map(self._x, times_s):
            draw.line([(x, self._top), (x, self._bottom)], fill=WHITE, width=max(1, round(self._size_px / 9)))
        end = f"{self._duration_s:.2f} s"
        told = f"{times_s[0]:.2f} / {end}" if len(times_s) == 1 else end
        where = (self._right, self._size_px * 0.45)
        draw.text(where, told, font=font(self._size_px), fill=WHITE, anchor="ra")
        return np.asarray(image)

    def _drawn(self, reward: Reward, explanation: Explanation, width: int) -> Frame:
        image = self._curves(explanation.windows, width)
        draw, letters = ImageDraw.Draw(image), font(self._size_px)
        top = self._top_residual(explanation.windows)
        long = [("line", HAZE, f"residual, 0 to {top:.3g} gray levels"), ("line", SURE, "flow confidence, 0 to 1")]
        short = [("line", HAZE, "residual"), ("line", SURE, "flow confidence")]
        self._legend(draw, self._size_px * 0.45, [long, short], self._right - letters.getlength("00.00 / 00.00 s  "))
        long = [
            ("dot", RAISES, "raises long-term"),
            ("dot", LOWERS, "lowers it"),
            ("ring", GREY, "out of sight or lost"),
        ]
        short = [("dot", RAISES, "raises"), ("dot", LOWERS, "lowers"), ("ring", GREY, "lost")]
        self._legend(draw, self.height - self._size_px * 1.55, [long, short], self._right)
        for number in range(len(explanation.windows)):
            self._name_window(draw, explanation.windows, reward, number)
        return np.asarray(image)

    def _curves(self, windows: Sequence[WindowExplanation], width: int) -> Image.Image:
        fine = Image.new("RGB", (width * FINER, self.height * FINER), GROUND)
        draw = ImageDraw.Draw(fine)
        inset = self._size_px / 8  # so that windows without a gap between them are told apart
        for window in windows:
            left, right = self._x(window.times_s[0]) + inset, self._x(window.times_s[-1]) - inset
            box = (left, self._top, max(left + 1, right), self._bottom)
            draw.rounded_rectangle([FINER * value for value in box], radius=self._size_px, fill=BAND)
        top = self._top_residual(windows)
        for window in windows:
            self._line(draw, window, window.flow_confidence_curve, 1.0, SURE)
            self._line(draw, window, window.residual_curve, top, HAZE)
        return fine.resize((width, self.height), Image.Resampling.BOX)

    def _top_residual(self, windows: Sequence[WindowExplanation]) -> float:
        return max((value for window in windows for value in window.residual_curve), default=0.0) or 1.0

    def _line(
        self, draw: ImageDraw.ImageDraw, window: WindowExplanation, curve: Sequence[float], top: float, colour: Colour
    ) -> None:
        """One number per pair of frames, in the middle between their times."""
        middles = [(a + b) / 2 for a, b in zip(window.times_s, window.times_s[1:], strict=False)]
        margin = self._size_px * 0.35
        low, high = self._bottom - margin, self._top + margin
        points = [
            (FINER * self._x(time_s), FINER * (low - (low - high) * value / top))
            for time_s, value in zip(middles, curve, strict=True)
        ]
        draw.line(points, fill=colour, width=round(FINER * max(1.5, self._size_px / 7)), joint="curve")

    def _name_window(
        self, draw: ImageDraw.ImageDraw, windows: Sequence[WindowExplanation], reward: Reward, number: int
    ) -> None:
        """The window's two logits, as long as there is room for. Windows may overlap, and their names must not."""
        logits, letters = reward.windows[number].logits, font(round(self._size_px * 0.85))
        instantaneous, long_term = f"{logits.instantaneous:+.2f}", f"{logits.long_term:+.2f}"
        left, right = self._x(windows[number].times_s[0]), self._x(windows[number].times_s[-1])
        middles = [(self._x(window.times_s[0]) + self._x(window.times_s[-1])) / 2 for window in windows]
        others = [abs(middle - middles[number]) for at, middle in enumerate(middles) if at != number]
        for told in (
            f"instantaneous {instantaneous}, long-term {long_term}",
            f"inst. {instantaneous}, long {long_term}",
            f"{instantaneous} {long_term}",
        ):
            if letters.getlength(told) <= min([right - left, *others]) - self._size_px:
                where = (middles[number], self._bottom - self._size_px * 0.3)
                draw.text(where, told, font=letters, fill=GREY, anchor="ms", stroke_width=2, stroke_fill=BAND)
                return

    def _legend(
        self, draw: ImageDraw.ImageDraw, y: float, choices: Sequence[Sequence[tuple[str, Colour, str]]], end: float
    ) -> None:
        """Signs with their names in one line: the first choice that ends before `end`, or else the last one."""
        letters, size, x = font(self._size_px), self._size_px, self._left
        widths = [sum(letters.getlength(name) + 2.3 * size for _, _, name in entries) for entries in choices]
        fitting = (entries for entries, width in zip(choices, widths, strict=True) if x + width - 1.2 * size <= end)
        for sign, colour, name in next(fitting, choices[-1]):
            middle, radius = y + size * 0.6, size * 0.28
            box = (x + size * 0.4 - radius, middle - radius, x + size * 0.4 + radius, middle + radius)
            if sign == "line":
                draw.line([(x, middle), (x + size * 0.8, middle)], fill=colour, width=max(2, round(size / 6)))
            elif sign == "dot":
                draw.ellipse(box, fill=colour, outline=EDGE)
            else:
                draw.ellipse(box, outline=colour, width=max(1, round(size / 9)))
            draw.text((x + size * 1.1, y), name, font=letters, fill=WHITE)
            x += letters.getlength(name) + 2.3 * size

    def _x(self, time_s: float) -> float:
        part = min(max(time_s / self._duration_s, 0.0), 1.0)
        return self._left + (self._right - self._left) * part


def _even(value: float) -> int:
    return 2 * round(value / 2)
