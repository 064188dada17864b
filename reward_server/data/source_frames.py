"""Frames of one shot of a file, for pretraining and for the ladder's held-out shots."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from protos.codec import tensor_to_clip
from protos.types import ContractError
from reward_server.decoding.sniff import TENSOR_SUFFIX
from reward_server.errors import UnreadableClip

Frame = NDArray[np.uint8]  # [H,W,3] RGB


@dataclass(frozen=True, kw_only=True)
class SourceFrames:
    """Frames of one cut-free shot, uint8 [T,H,W,3] RGB, at their own rate."""

    frames: NDArray[np.uint8]
    fps: float


def read_source(path: Path, *, first: int = 0, last: int | None = None, max_side_px: int = 640) -> SourceFrames:
    """Frames first..last (exclusive) of a video or a tensor clip, no side longer than `max_side_px`."""
    try:
        read = _tensor_frames if path.suffix.lower() == TENSOR_SUFFIX else _video_frames
        fps, frames = read(path, first, last, max_side_px)
    except (av.FFmpegError, IndexError, ContractError) as error:
        raise UnreadableClip(f"{path} cannot be decoded ({error}); leave it out") from error
    if not frames or fps <= 0:
        raise UnreadableClip(f"{path} gives no frames from {first} on, or no frame rate; leave it out")
    return SourceFrames(frames=np.stack(frames), fps=fps)


def _tensor_frames(path: Path, first: int, last: int | None, max_side_px: int) -> tuple[float, list[Frame]]:
    clip = tensor_to_clip(path.read_bytes())
    return clip.fps, [_shrink(frame, max_side_px) for frame in clip.frames[first:last].transpose(0, 2, 3, 1)]


def _video_frames(path: Path, first: int, last: int | None, max_side_px: int) -> tuple[float, list[Frame]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = itertools.islice(container.decode(stream), first, last)
        frames = [_shrink(np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8), max_side_px) for frame in shown]
        return float(stream.average_rate or stream.guessed_rate or 0), frames


def _shrink(frame: NDArray[np.uint8], max_side_px: int) -> NDArray[np.uint8]:
    factor = max_side_px / max(frame.shape[:2])
    if factor >= 1:
        return frame
    size = (round(frame.shape[1] * factor), round(frame.shape[0] * factor))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
