"""Submission -> DecodedClip: the first stage of the pipeline, between the queue's bytes and the motion estimators.

The reader (protos/reader) opens the bytes under the limits and gives the frames; which of them are taken, and at what
size, is decided here (sampling.py). Thread-safe: every call owns all that it touches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.reader import Frame, Picture, open_source, with_true_times
from protos.reader import Source as OpenSource
from protos.reader.sniff import CONTAINERS
from protos.reader.times import nearest_frames
from protos.types import Clip, Limits, Source, Submission
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.decoding.sampling import Sampling, Schedule, profile_size, resize_frame, schedule

__all__ = ["CONTAINERS", "DecodedClip", "Sampling", "Window", "decode", "profile_size", "resize_frame"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a clip: frames uint8 [T,3,H,W] at the clip's `fps_used`, from `start_s` after its first frame."""

    start_s: float
    clip: Clip


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """Windows of one shape, rising in time, what the clip was like, and the rate it was resampled to."""

    windows: tuple[Window, ...]
    source: Source
    fps_used: float


def decode(submission: Submission, sampling: Sampling, limits: Limits, max_decode_s: float) -> DecodedClip:
    """Decode one clip into windows of uint8 [T,3,H,W]. Raises only leaves of InvalidClip (errors.py)."""
    with (
        as_invalid_clip(),
        open_source(submission.payload, limits, max_decode_s=max_decode_s, media=submission.media) as source,
    ):
        return with_true_times(source, lambda source: _decoded(source, sampling))


def _decoded(source: OpenSource, sampling: Sampling) -> DecodedClip:
    plan = schedule(source.times_s, sampling)
    frames = _frames(source, plan, sampling)
    return DecodedClip(windows=_windows(frames, plan), source=_described(source, plan), fps_used=plan.fps_used)


def _frames(source: OpenSource, plan: Schedule, sampling: Sampling) -> NDArray[np.uint8]:
    """The frames at all steps of the plan, uint8 [S,3,H,W]."""
    size = profile_size(source.height_px, source.width_px, sampling)

    def fit(picture: Picture) -> Frame:
        return resize_frame(picture.rgb(), *size)

    wanted = nearest_frames(source.times_s, [plan.time_s(step) for step in plan.steps])
    frames = dict(source.frames(np.unique(wanted).tolist(), fit))
    return np.ascontiguousarray(np.stack([frames[index] for index in wanted.tolist()]).transpose(0, 3, 1, 2))


def _windows(frames: NDArray[np.uint8], plan: Schedule) -> tuple[Window, ...]:
    row = {step: index for index, step in enumerate(plan.steps)}
    return tuple(
        Window(
            start_s=start / plan.fps_used,
            clip=Clip(frames=frames[row[start] : row[start] + plan.length], fps=plan.fps_used),
        )
        for start in plan.starts
    )


def _described(source: OpenSource, plan: Schedule) -> Source:
    shown_s = float(source.times_s[-1] - source.times_s[0])
    return Source(
        frames=source.times_s.size,
        fps=plan.base_fps,
        duration_s=shown_s + 1 / plan.base_fps,
        height_px=source.height_px,
        width_px=source.width_px,
        codec=source.codec,
        rotation_deg=source.rotation_deg,
    )
