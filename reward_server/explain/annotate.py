"""Writes a scored clip with what was seen of it drawn on: an mp4 of all its frames, or a png with some of them.

Frames come from the file itself through the project's reader, and keep their times. A small picture is enlarged, so
that marks and numbers can be read, and a very large one is reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from protos.explanation import Explanation
from protos.reader import Source, open_source, with_true_times
from protos.reader.source import as_displayed, resized
from protos.types import Reward
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.explain.drawing import Frame, Scale, drawn, text_px, with_box, with_time
from reward_server.explain.panel import Panel
from reward_server.explain.timeline import Timeline
from reward_server.replacing import replacing

AnnotateFormat = Literal["mp4", "png"]

LEAST_SIDE_PX = 480  # the shorter side of a drawn frame
MOST_SIDE_PX = 1920  # its longer side
CLOCK = 90_000  # ticks per second of the written times
SHEET_FRAMES = 12
SHEET_COLUMNS = 4
SHEET_SIDE_PX = 480  # the longer side of a frame on a sheet
GAP_PX = 8


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How one clip is drawn: its timeline, panel, scale and the lines of its box."""

    timeline: Timeline
    panel: Panel
    scale: Scale
    residual_range: tuple[float, float]
    reward: Reward

    def frame(self, picture: Frame, time_s: float, *, box: bool = True) -> Frame:
        """The picture, already of the drawn size, with everything at `time_s` drawn on a copy."""
        moment = self.timeline.at(time_s)
        image = drawn(picture, moment, self.scale, self.residual_range)
        image = image.copy() if image is picture else image
        if box:
            with_box(image, self._lines(None if moment is None else moment.window), text_px(*image.shape[:2]))
        return image

    def _lines(self, window: int | None) -> list[tuple[str, str]]:
        reward = self.reward
        lines = [
            ("combined", reward.combined),
            ("instantaneous", reward.instantaneous),
            ("long-term", reward.long_term),
        ]
        told = [(name, f"{value:+.2f}") for name, value in lines]
        if reward.clipped:
            told.append(("", "clipped"))
        if window is None:
            return [*told, ("between windows", "not scored")]
        number = f"{window + 1} of {len(reward.windows)}"
        return told if len(reward.windows) == 1 else [*told, ("window", number)]


def annotate(path: Path, reward: Reward, out: Path, form: AnnotateFormat, *, fps: float | None = None) -> None:
    """Write the annotated clip to `out`. `fps` is the frame rate of an image sequence.

    Raises InvalidClip or OSError if the clip or `out` cannot be read or written. A file at `out` is replaced.
    """
    assert reward.explanation is not None, "only an explained reward can be drawn"
    explanation = reward.explanation
    write = _write_video if form == "mp4" else _write_sheet
    with replacing(out) as partial, as_invalid_clip(str(path)), open_source(path, fps=fps) as source:
        with_true_times(source, lambda source: write(source, reward, explanation, partial))


def drawn_size(height_px: int, width_px: int, least: int = LEAST_SIDE_PX, most: int = MOST_SIDE_PX) -> tuple[int, int]:
    """(height, width) of drawn frames: even, no shorter than `least` unless that makes them longer than `most`."""
    factor = max(1.0, least / min(height_px, width_px))
    factor = min(factor, most / max(height_px, width_px))
    height, width = (max(2, 2 * round(length * factor / 2)) for length in (height_px, width_px))
    return height, width


def _drawing(reward: Reward, explanation: Explanation, height: int, width: int, panel_width: int) -> Drawing:
    timeline, source = Timeline(explanation), reward.provenance.source
    return Drawing(
        timeline=timeline,
        panel=Panel(reward, explanation, width=panel_width, size_px=text_px(height, width)),
        scale=Scale(height=height, width=width, x=width / source.width_px, y=height / source.height_px),
        residual_range=timeline.residual_range(),
        reward=reward,
    )


def _write_video(source: Source, reward: Reward, explanation: Explanation, out: Path) -> None:
    height, width = drawn_size(source.height_px, source.width_px)
    drawing = _drawing(reward, explanation, height, width, width)
    with av.open(str(out), "w", format="mp4") as output:
        rate = Fraction(source.fps or 1.0).limit_denominator(1001)
        stream = output.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "fast"})
        stream.height, stream.width, stream.pix_fmt = height + drawing.panel.height, width, "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        for time_s, picture in pictures_at(source, range(source.times_s.size), height, width):
            image = np.concatenate([drawing.frame(picture, time_s), drawing.panel.at(time_s)])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time_s * CLOCK), Fraction(1, CLOCK)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _write_sheet(source: Source, reward: Reward, explanation: Explanation, out: Path) -> None:
    """A contact sheet: frames at even times of the scored windows, in rows, over the panel."""
    height, width = drawn_size(source.height_px, source.width_px, SHEET_SIDE_PX, SHEET_SIDE_PX)
    positions = _sheet_positions(source, explanation)
    columns = min(SHEET_COLUMNS, len(positions))
    sheet_width = columns * width + (columns - 1) * GAP_PX
    drawing = _drawing(reward, explanation, height, width, sheet_width)
    tiles, times_s = list[Frame](), list[float]()
    for time_s, picture in pictures_at(source, positions, height, width):
        tiles.append(drawing.frame(picture, time_s, box=not tiles))
        with_time(tiles[-1], time_s, text_px(height, width))
        times_s.append(time_s)
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    panel = drawing.panel.at(*times_s)
    sheet = Image.new("RGB", (sheet_width, len(rows) * (height + GAP_PX) + len(panel)), (0, 0, 0))
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (column * (width + GAP_PX), row * (height + GAP_PX)))
    sheet.paste(Image.fromarray(panel), (0, len(rows) * (height + GAP_PX)))
    sheet.save(out, format="png")


def _sheet_positions(source: Source, explanation: Explanation) -> list[int]:
    """Positions of at most SHEET_FRAMES frames at evenly chosen times of all windows, each once."""
    times_s = np.unique([time_s for window in explanation.windows for time_s in window.times_s])
    chosen = times_s[np.unique(np.linspace(0, times_s.size - 1, SHEET_FRAMES).round().astype(int))]
    found = [int(np.abs(source.times_s - source.times_s[0] - time_s).argmin()) for time_s in chosen]
    return sorted(set(found))


def pictures_at(source: Source, positions: range | list[int], height: int, width: int) -> Iterator[tuple[float, Frame]]:
    """Time in seconds from the first frame, and the frame in the drawn size, one at a time."""
    fit: Callable[..., Frame] = lambda picture: resized(as_displayed(picture), height, width)  # noqa: E731
    for position, picture in source.frames(positions, fit):
        yield float(source.times_s[position] - source.times_s[0]), picture
