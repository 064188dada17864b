"""Submission -> DecodedClip: the first stage of the pipeline, between the queue's bytes and the motion estimators.

Bytes, frame size, number of frames and length are checked before anything is decoded, wall time, size and
number again while decoding. Then frames are picked by timestamp (sampling.py) and brought to one size.
Thread-safe: every call owns all that it touches.

What may be odd: any frame rate, also a variable one; any size and pixel shape; rotation and mirroring; gray,
alpha (over black), high bit depth, every common colour matrix and range; missing, repeated or negative
timestamps. A cut or damaged file is refused if more than one frame and 2 % of its frames are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from protos.codec import tensor_header, tensor_to_clip
from protos.types import Clip, ContractError, Limits, Media, Source, Submission
from reward_server.decoding.containers import open_container
from reward_server.decoding.reel import Guard, Picture, Reel
from reward_server.decoding.sampling import Sampling, Schedule, nearest, profile_size, resize_frame, schedule
from reward_server.decoding.sniff import CONTAINERS, check_complete, sniff
from reward_server.decoding.webp import open_webp
from reward_server.errors import BadTensor

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
    guard = Guard(limits=limits, max_decode_s=max_decode_s)
    guard.payload(len(submission.payload))
    with _open(submission, guard) as reel:
        plan = schedule(reel.times_s, sampling)
        frames, picture = _frames(reel, plan, sampling, guard)
    return DecodedClip(windows=_windows(frames, plan), source=_source(reel, plan, picture), fps_used=plan.fps_used)


def _open(submission: Submission, guard: Guard) -> AbstractContextManager[Reel]:
    data = submission.payload
    if submission.media is Media.TENSOR:
        return _open_tensor(data, guard)
    form = sniff(data)
    check_complete(data, form)
    return open_webp(data, guard) if form == "webp" else open_container(data, form, guard)


@contextmanager
def _open_tensor(data: bytes, guard: Guard) -> Iterator[Reel]:
    try:
        header = tensor_header(data)
        guard.size(header.height_px, header.width_px)
        guard.frames(header.frames)
        guard.duration((header.frames - 1) / header.fps)
        frames = tensor_to_clip(data).frames
    except ContractError as error:
        raise BadTensor(str(error)) from error
    times_s = np.arange(header.frames) / header.fps
    pictures = (
        (float(time_s), Picture(height_px=header.height_px, width_px=header.width_px, rgb=partial(_rgb, frame)))
        for time_s, frame in zip(times_s, frames, strict=True)
    )
    yield Reel(codec="safetensors", times_s=times_s, pictures=pictures)


def _rgb(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return frame.transpose(1, 2, 0)


def _frames(reel: Reel, plan: Schedule, sampling: Sampling, guard: Guard) -> tuple[NDArray[np.uint8], Picture]:
    """The frames at all steps of the plan, uint8 [S,3,H,W], and the first of them as it was."""
    frames: list[NDArray[np.uint8]] = []
    first = last = None
    for picture in nearest(reel.pictures, [plan.time_s(step) for step in plan.steps]):
        guard.clock()
        first = first or picture
        size = profile_size(first.height_px, first.width_px, sampling)
        frames.append(frames[-1] if picture is last else resize_frame(picture.rgb(), *size))
        last = picture
    assert first is not None, "a reel yields a picture or raises"
    return np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2)), first


def _windows(frames: NDArray[np.uint8], plan: Schedule) -> tuple[Window, ...]:
    row = {step: index for index, step in enumerate(plan.steps)}
    return tuple(
        Window(
            start_s=start / plan.fps_used,
            clip=Clip(frames=frames[row[start] : row[start] + plan.length], fps=plan.fps_used),
        )
        for start in plan.starts
    )


def _source(reel: Reel, plan: Schedule, picture: Picture) -> Source:
    shown_s = float(reel.times_s[-1] - reel.times_s[0])
    return Source(
        frames=reel.times_s.size,
        fps=plan.base_fps,
        duration_s=shown_s + 1 / plan.base_fps,
        height_px=picture.height_px,
        width_px=picture.width_px,
        codec=reel.codec,
        rotation_deg=picture.rotation_deg,
    )
