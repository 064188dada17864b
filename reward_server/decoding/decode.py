"""Decodes a submission into a DecodedClip: the first stage of the pipeline, before the motion estimators.

The reader (protos/reader) opens the bytes within the limits and gives the frames. This module and sampling.py decide
which frames are used, and at what size. It is thread-safe: calls share no state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from protos.reader import Frame, Picture, Stretch, open_source, with_true_times
from protos.reader import Source as OpenSource
from protos.reader.evenness import TOLD_UNEVEN
from protos.reader.scenes import Scenes, crosses
from protos.reader.sniff import CONTAINERS
from protos.reader.times import is_even
from protos.types import Clip, ClipWarning, Limits, Media, Source, Submission
from reward_server.decoding.even_windows import even_schedule
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.decoding.sampling import Sampling, Schedule, profile_size, resize_frame, schedule
from reward_server.decoding.time_warnings import main_stretch, positions_of, time_warnings, uneven_share
from reward_server.errors import ClipTooShort

__all__ = [
    "CONTAINERS",
    "DecodedClip",
    "Sampling",
    "Window",
    "decode",
    "decode_payload",
    "profile_size",
    "resize_frame",
]

# Even windows must be at least this share of the windows that the clip would have without lost frames. A single one of
# four showed another part of a clip, and moved its reward by 1.6 mild faults.
LEAST_WINDOWS = 0.5
MAX_REPLANS = 3  # moved windows can meet new cuts


@dataclass(frozen=True, kw_only=True)
class Window:
    """Part of a clip: frames uint8 [T,3,H,W] at the clip's `fps_used`, from `start_s` seconds after its first frame."""

    start_s: float
    clip: Clip


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """Windows of one shape in order of time, the properties of the source, and the rate it was resampled to."""

    windows: tuple[Window, ...]
    source: Source
    fps_used: float
    warnings: tuple[ClipWarning, ...] = ()


def decode(
    submission: Submission, sampling: Sampling, limits: Limits, max_decode_s: float, *, threads: int = 1
) -> DecodedClip:
    """Decode one clip into windows of uint8 [T,3,H,W], with `threads` threads of the decoder.

    Raises only subclasses of InvalidClip (errors.py). The bytes are decoded in this process; children.py does it in
    another.
    """
    return decode_payload(submission.payload, submission.media, sampling, limits, max_decode_s, threads=threads)


def decode_payload(
    payload: bytes | BinaryIO, media: Media, sampling: Sampling, limits: Limits, max_decode_s: float, *, threads: int
) -> DecodedClip:
    """As `decode`, from bytes or an open file."""
    with (
        as_invalid_clip(),
        open_source(payload, limits, max_decode_s=max_decode_s, media=media, threads=threads) as source,
    ):
        return with_true_times(source, lambda source: _decoded(source, sampling))


def _decoded(source: OpenSource, sampling: Sampling) -> DecodedClip:
    """Plan the windows and read them. Plan and read again if decoding finds a cut inside a window."""
    scenes, cuts_s = Scenes(), list[float]()
    plan, share = _plan(source, sampling, cuts_s)
    frames = _frames(source, plan, sampling, scenes)
    for _ in range(MAX_REPLANS):
        cuts_s = sorted({*cuts_s, *scenes.cuts_s()})
        better, share = _plan(source, sampling, cuts_s)
        if better == plan:
            break
        plan, scenes = better, Scenes()
        frames = _frames(source, plan, sampling, scenes)
    return DecodedClip(
        windows=_windows(frames, plan),
        source=_described(source, plan),
        fps_used=plan.fps_used,
        warnings=(*source.warnings, *time_warnings(source, plan, share), *scenes.warnings(cuts_s)),
    )


def _plan(source: OpenSource, sampling: Sampling, cuts_s: Sequence[float]) -> tuple[Schedule, float]:
    """The windows to read, and the share of evenly spaced times without a frame nearby."""
    stretches = [(one.first, one.last) for one in _of_one_size(source)]
    with _told_if_truncated(source):
        plan = schedule(source.times_s, sampling, stretches, cuts_s)
    share = uneven_share(source.times_s, plan)
    if share <= TOLD_UNEVEN:
        return plan, share
    even = even_schedule(source.times_s, sampling, stretches, partial(crosses, cuts_s))
    covers = even is not None and len(even.starts) >= LEAST_WINDOWS * len(plan.starts)
    return even if even and covers else plan, share


@contextmanager
def _told_if_truncated(source: OpenSource) -> Iterator[None]:
    """Add to the refusal of a short clip that its file is cut."""
    try:
        yield
    except ClipTooShort as error:
        cut = [warning.message for warning in source.warnings if warning.code == "truncated"]
        raise ClipTooShort("; ".join([str(error), *cut])) from error


def _of_one_size(source: OpenSource) -> list[Stretch]:
    """The stretches with the same frame size as the longest one, because a clip's windows have one shape."""
    longest = main_stretch(source)
    size = (longest.height_px, longest.width_px)
    return [one for one in source.stretches if (one.height_px, one.width_px) == size]


def _frames(source: OpenSource, plan: Schedule, sampling: Sampling, scenes: Scenes) -> NDArray[np.uint8]:
    """The frames at all steps of the plan, uint8 [S,3,H,W]."""
    longest = main_stretch(source)
    size = profile_size(longest.height_px, longest.width_px, sampling)

    def fit(picture: Picture) -> Frame:
        return resize_frame(picture.rgb(), *size)

    wanted = positions_of(source.times_s, plan)
    frames = dict(source.frames(np.unique(wanted).tolist(), fit, watch=scenes.watch))
    return np.ascontiguousarray(np.stack([frames[index] for index in wanted.tolist()]).transpose(0, 3, 1, 2))


def _windows(frames: NDArray[np.uint8], plan: Schedule) -> tuple[Window, ...]:
    row = {step: index for index, step in enumerate(plan.steps)}
    return tuple(
        Window(
            start_s=plan.start_s(start),
            clip=Clip(frames=frames[row[start] : row[start] + plan.length], fps=plan.fps_used),
        )
        for start in plan.starts
    )


def _described(source: OpenSource, plan: Schedule) -> Source:
    """The clip's properties. If its times are uneven, `fps` is the number of frames divided by the duration."""
    size, num = main_stretch(source), source.times_s.size
    duration_s = float(source.times_s[-1] - source.times_s[0]) + 1 / plan.base_fps
    return Source(
        frames=num,
        fps=plan.base_fps if is_even(source.times_s, 1 / plan.base_fps) else num / duration_s,
        duration_s=duration_s,
        height_px=size.height_px,
        width_px=size.width_px,
        codec=source.codec,
        rotation_deg=source.rotation_deg,
    )
