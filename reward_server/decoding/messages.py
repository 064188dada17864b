"""Defines what a decode child is asked and what it answers: one JSON message each, and bytes in shared memory.

The child may have been taken over by a crafted clip. So its answer is data to be checked: `decoded_clip` compares
every count and size with what was asked for before it uses the frames. Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from protos.types import Clip, ClipWarning, Limits, Media, Source
from reward_server.decoding.decode import DecodedClip, Window
from reward_server.decoding.sampling import Sampling, profile_size

MAX_MESSAGE_BYTES = 64 * 1024
STRICT = ConfigDict(allow_inf_nan=False, extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Request:
    """What to decode: the arguments of `decode`. The payload follows in shared memory."""

    media: Media
    sampling: Sampling
    limits: Limits
    max_decode_s: float
    threads: int


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Answer:
    """Either an error (`code`, `message`), or a clip whose frames uint8 [W,T,3,H,W] are in shared memory."""

    code: str = ""
    message: str = ""
    starts_s: Annotated[tuple[float, ...], Field(max_length=64)] = ()
    frames_per_window: int = 0
    height_px: int = 0
    width_px: int = 0
    fps_used: Annotated[float, Field(ge=0)] = 0.0
    source: Source | None = None
    warnings: Annotated[tuple[ClipWarning, ...], Field(max_length=64)] = ()


REQUESTS, ANSWERS = TypeAdapter(Request), TypeAdapter(Answer)


def out_of_memory(memory_mib: int) -> str:
    return (
        f"decoding needs more than {memory_mib} MiB of memory; send a clip with fewer pixels per frame, re-encode it "
        "as h264, or raise decode_memory_mib (on the server MOTION_REWARD_DECODE_MEMORY_MIB)"
    )


def shared(parts: Sequence[bytes | memoryview]) -> int:
    """A new file in memory with these bytes, one after the other. The caller closes it."""
    held = os.memfd_create("clip", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for part in parts:
        left = memoryview(part).cast("B")
        while left:
            left = left[os.write(held, left) :]
    return held


def answer_of(clip: DecodedClip) -> tuple[Answer, int]:
    """The answer for a decoded clip, and the file in memory with its frames."""
    frames, _, height, width = clip.windows[0].clip.frames.shape
    told = Answer(
        starts_s=tuple(window.start_s for window in clip.windows),
        frames_per_window=frames,
        height_px=height,
        width_px=width,
        fps_used=clip.fps_used,
        source=clip.source,
        warnings=clip.warnings,
    )
    return told, shared([window.clip.frames.data for window in clip.windows])


def decoded_clip(answer: Answer, held: int, sampling: Sampling) -> DecodedClip:
    """The clip that an answer describes, with its frames mapped and not copied. Raises ValueError or OSError if the
    answer does not fit what was asked for."""
    windows, source = len(answer.starts_s), answer.source
    shape = (answer.frames_per_window, 3, answer.height_px, answer.width_px)
    if source is None or min(source.height_px, source.width_px, source.frames) < 1 or not answer.fps_used > 0:
        raise ValueError("its answer has no source or no rate")
    if not 1 <= windows <= sampling.max_windows or not sampling.min_frames <= shape[0] <= sampling.window_frames:
        raise ValueError(f"its answer has {windows} windows of {shape[0]} frames")
    if shape[2:] != profile_size(source.height_px, source.width_px, sampling):
        raise ValueError(f"its answer has frames of {shape[3]}x{shape[2]}")
    # No one may change the size of the frames while they are read: a page that is gone would kill the reader.
    fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    num_bytes = windows * math.prod(shape)
    if os.fstat(held).st_size != num_bytes:
        raise ValueError(f"its answer has {os.fstat(held).st_size} bytes of frames instead of {num_bytes}")
    mapped = mmap.mmap(held, num_bytes, access=mmap.ACCESS_COPY)  # private: later writes of the child may not show
    frames = np.frombuffer(mapped, np.uint8).reshape(windows, *shape)
    return DecodedClip(
        windows=tuple(
            Window(start_s=start_s, clip=Clip(frames=part, fps=answer.fps_used))
            for start_s, part in zip(answer.starts_s, frames, strict=True)
        ),
        source=source,
        fps_used=answer.fps_used,
        warnings=answer.warnings,
    )
