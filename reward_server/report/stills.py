"""Draws the frames of a clip's worst window in which the residual is highest, with their tracks, as data URIs.

Legend: P frame pairs of a window, H, W size of a drawn frame in pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from protos.explanation import WindowExplanation
from protos.reader import Source, open_source, with_true_times
from protos.types import Logits, Media, Reward
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.explain.annotate import drawn_size, pictures_at
from reward_server.explain.drawing import Frame, Scale, drawn
from reward_server.explain.timeline import Timeline

NUM_STILLS = 4
SIDE_PX = 480  # the longer side of a still
QUALITY = 78  # of WebP
EVEN_GRAY_LEVELS = 0.05  # a residual that varies less over a window has no peaks


@dataclass(frozen=True, kw_only=True)
class Still:
    """A drawn frame at `time_s` seconds from the clip's first frame, as a data URI. `peak`: the highest residual."""

    time_s: float
    peak: bool
    uri: str
    height_px: int
    width_px: int


def worst_window(reward: Reward, weights: Logits) -> int:
    """The position of the window with the lowest weighted mean of its logits. The reward has windows."""
    values = [
        weights.instantaneous * window.logits.instantaneous + weights.long_term * window.logits.long_term
        for window in reward.windows
    ]
    return int(np.argmin(values))


def bad_times(window: WindowExplanation, most: int = NUM_STILLS) -> tuple[list[float], float | None]:
    """At most `most` times of a window, in order, at which the residual is highest, not side by side; and its peak.

    A window whose residual hardly varies has no peak (None), and its times are spread evenly.
    """
    curve = np.asarray(window.residual_curve)
    if np.ptp(curve) < EVEN_GRAY_LEVELS:
        even = np.unique(np.linspace(0, curve.size - 1, most).round().astype(int))
        return [window.times_s[at] for at in even], None
    apart = max(1, curve.size // (2 * most))
    chosen: list[int] = []
    for at in np.argsort(-curve, kind="stable").tolist():
        if len(chosen) < most and all(abs(at - other) > apart for other in chosen):
            chosen.append(at)
    return [window.times_s[at] for at in sorted(chosen)], window.times_s[chosen[0]]


def stills(
    clip: Path | bytes, reward: Reward, window: int, *, media: Media | None = None, fps: float | None = None
) -> list[Still]:
    """Stills of a clip file, or of a payload of this kind. `fps` is the frame rate of an image sequence.

    Raises InvalidClip, OSError.
    """
    name = str(clip) if isinstance(clip, Path) else "the clip"
    with as_invalid_clip(name), open_source(clip, media=media, fps=fps) as source:
        return with_true_times(source, lambda source: _drawn(_of_source(source, reward, window), reward, window))


def _of_source(source: Source, reward: Reward, window: int) -> Iterable[tuple[float, Frame]]:
    height, width = drawn_size(source.height_px, source.width_px, SIDE_PX, SIDE_PX)
    starts = source.times_s - source.times_s[0]
    times_s, _ = bad_times(_window(reward, window))
    return pictures_at(source, sorted({int(np.abs(starts - time_s).argmin()) for time_s in times_s}), height, width)


def _drawn(frames: Iterable[tuple[float, Frame]], reward: Reward, window: int) -> list[Still]:
    """The frames with the moments of the window drawn on them. The haze has one scale for the whole clip."""
    assert reward.explanation, "only an explained reward can be drawn"
    source, shown = reward.provenance.source, _window(reward, window)
    residual_range = Timeline(reward.explanation).residual_range()
    timeline = Timeline(type(reward.explanation)(windows=(shown,)))  # where windows overlap, this one is drawn
    _, peak_s = bad_times(shown)
    found: list[tuple[float, Frame]] = []
    for time_s, picture in frames:
        height, width = picture.shape[:2]
        scale = Scale(height=height, width=width, x=width / source.width_px, y=height / source.height_px)
        found.append((time_s, drawn(picture, timeline.at(time_s), scale, residual_range)))
    nearest = min((abs(time_s - peak_s) for time_s, _ in found), default=0.0) if peak_s is not None else -1.0
    return [
        Still(
            time_s=time_s,
            peak=peak_s is not None and abs(time_s - peak_s) == nearest,
            uri=data_uri(image),
            height_px=image.shape[0],
            width_px=image.shape[1],
        )
        for time_s, image in found
    ]


def _window(reward: Reward, window: int) -> WindowExplanation:
    assert reward.explanation, "only an explained reward can be drawn"
    windows: Sequence[WindowExplanation] = reward.explanation.windows
    return windows[window]


def data_uri(image: Frame) -> str:
    """An image [H,W,3] as a data URI of WebP."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
