"""Says what an explanation shows at one moment of a clip: the window, the tracks' places, and the residual map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.explanation import Explanation, TrackExplanation, WindowExplanation

TAIL_FRAMES = 3  # frames of a window that a track's tail reaches back
VISIBLE = 0.5  # a track is drawn as visible from this visibility on


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A track at one moment: its place in pixels of the clip as displayed, and its way there, oldest place first."""

    x_px: float
    y_px: float
    tail: tuple[tuple[float, float], ...]
    visible: bool
    share: float


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What is shown at one moment: the number of the window, the marks, and the residual [h,w] in gray levels."""

    window: int
    marks: tuple[Mark, ...]
    residual: NDArray[np.float32]


class Timeline:
    """Finds moments of an explanation. Maps are decoded once."""

    def __init__(self, explanation: Explanation) -> None:
        self.windows = explanation.windows
        self._residuals = [window.residual.values() for window in explanation.windows]

    def at(self, time_s: float) -> Moment | None:
        """The moment at `time_s` seconds from the clip's first frame, or None if no window covers it.

        Where windows overlap, the one whose middle is nearer is shown. Between two frames of a window, places are
        interpolated.
        """
        number = _window_at(self.windows, time_s)
        if number is None:
            return None
        window, residuals = self.windows[number], self._residuals[number]
        last = len(window.times_s) - 1
        place = min(max((time_s - window.times_s[0]) / _step_s(window), 0.0), float(last))
        pair = min(int(place), last - 1)
        return Moment(
            window=number,
            marks=tuple(_mark(track, place) for track in window.tracks),
            residual=residuals[pair] if len(residuals) else np.zeros((0, 0), np.float32),
        )

    def residual_range(self) -> tuple[float, float]:
        """From a residual that a quarter of the clip's cells exceed, to one that hardly any exceeds, in gray levels."""
        cells = [values.ravel() for values in self._residuals]
        if not sum(values.size for values in cells):
            return 0.0, 1.0
        low, high = np.percentile(np.concatenate(cells), [75, 99.5])
        return float(low), float(max(high, low + 1))  # one gray level: less is the noise of coding


def _window_at(windows: Sequence[WindowExplanation], time_s: float) -> int | None:
    found = [
        (abs(time_s - (window.times_s[0] + window.times_s[-1]) / 2), number)
        for number, window in enumerate(windows)
        if -0.5 <= (time_s - window.times_s[0]) / _step_s(window) <= len(window.times_s) - 0.5
    ]
    return min(found)[1] if found else None


def _step_s(window: WindowExplanation) -> float:
    return (window.times_s[-1] - window.times_s[0]) / (len(window.times_s) - 1)


def _mark(track: TrackExplanation, place: float) -> Mark:
    before, after = math.floor(place), math.ceil(place)
    part = place - before
    x, y = ((1 - part) * values[before] + part * values[after] for values in (track.x_px, track.y_px))
    first = max(0, before - TAIL_FRAMES + 1)
    way = zip(track.x_px[first : before + 1], track.y_px[first : before + 1], strict=True)
    return Mark(
        x_px=x, y_px=y, tail=(*way, (x, y)), visible=track.visibility[round(place)] >= VISIBLE, share=track.share
    )
