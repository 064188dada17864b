"""Opens tensor clips (safetensors) as a Reel. The limits are checked against the header before the data are read.

Frames are read one at a time, so that memory use does not grow with the file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.codec import (
    DTYPES,
    MAX_HEADER_BYTES,
    TensorHeader,
    check_length,
    check_values,
    tensor_header,
    to_uint8,
)
from protos.reader.errors import BadTensor
from protos.reader.guard import Guard
from protos.reader.payload import Payload
from protos.reader.reel import Frame, Picture, Reel
from protos.types import ContractError


def is_tensor(payload: Payload) -> bool:
    """Whether the bytes begin like a safetensors file: eight bytes of length, then JSON."""
    return payload[8:9] == b"{"


def open_tensor(payload: Payload, guard: Guard) -> Reel:
    """Open a tensor clip and check all its values. Raises BadTensor, ClipTooLarge, DecodeTooSlow."""
    try:
        header = tensor_header(payload[: 8 + MAX_HEADER_BYTES])
        guard.size(header.height_px, header.width_px)
        guard.frames(header.frames)
        guard.duration((header.frames - 1) / header.fps)
        check_length(header, len(payload))
        check_values(_stored_frames(payload, header, guard))
    except ContractError as error:
        raise BadTensor(str(error)) from error
    times_s = np.arange(header.frames) / header.fps

    def pictures(wanted: Sequence[int] | None) -> Iterator[tuple[float, Picture]]:
        stored = _stored_frames(payload, header, guard)
        return ((float(time_s), _picture(to_uint8(frame))) for time_s, frame in zip(times_s, stored, strict=True))

    return Reel(codec="safetensors", times_s=times_s, pictures=pictures)


def _stored_frames(payload: Payload, header: TensorHeader, guard: Guard) -> Iterator[NDArray[Any]]:
    """Each frame [3,H,W] as stored."""
    for at in range(header.frames):
        guard.clock()
        first = header.first_byte + at * header.frame_bytes
        data = payload[first : first + header.frame_bytes]
        yield np.frombuffer(data, DTYPES[header.dtype]).reshape(3, header.height_px, header.width_px)


def _picture(frame: Frame) -> Picture:
    """`frame` is [3,H,W]."""
    _, height, width = frame.shape
    return Picture(height_px=height, width_px=width, rgb=partial(_rgb, frame), luma=lambda: frame[1])


def _rgb(frame: Frame) -> Frame:
    return frame.transpose(1, 2, 0)
