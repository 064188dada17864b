"""Opens tensor clips (safetensors) as a Reel. The limits are checked against the header before the data are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from protos.codec import tensor_header, tensor_to_clip
from protos.reader.errors import BadTensor
from protos.reader.guard import Guard
from protos.reader.payload import Payload
from protos.reader.reel import Frame, Picture, Reel
from protos.types import ContractError


def is_tensor(payload: Payload) -> bool:
    """Whether the bytes begin like a safetensors file: eight bytes of length, then JSON."""
    return payload[8:9] == b"{"


def open_tensor(payload: Payload, guard: Guard) -> Reel:
    """Open a tensor clip. Raises BadTensor, ClipTooLarge."""
    data = payload.whole()
    try:
        header = tensor_header(data)
        guard.size(header.height_px, header.width_px)
        guard.frames(header.frames)
        guard.duration((header.frames - 1) / header.fps)
        frames = tensor_to_clip(data).frames
    except ContractError as error:
        raise BadTensor(str(error)) from error
    times_s = np.arange(header.frames) / header.fps

    def pictures(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        return ((float(time_s), _picture(frame)) for time_s, frame in zip(times_s, frames, strict=True))

    return Reel(codec="safetensors", times_s=times_s, pictures=pictures)


def _picture(frame: Frame) -> Picture:
    """`frame` is [3,H,W]."""
    _, height, width = frame.shape
    return Picture(height_px=height, width_px=width, rgb=partial(_rgb, frame), luma=lambda: frame[1])


def _rgb(frame: Frame) -> Frame:
    return frame.transpose(1, 2, 0)
