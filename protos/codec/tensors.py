"""Converts clips to tensor clips and back.

A tensor clip is a safetensors file with one tensor `frames` and the metadata `layout` ("TCHW"), `range` ("0-255" for
uint8, "0-1" for float16 and float32) and `fps`. Any other file is refused with the reason, so that [0,1] and [0,255]
can never be confused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from protos.error_codes import ErrorCode
from protos.types import Clip, ContractError

TENSOR_NAME = "frames"
MAX_HEADER_BYTES = 100_000  # of a tensor clip
RANGES = {"U8": "0-255", "F16": "0-1", "F32": "0-1"}
DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
TENSOR_FORMS = ("uint8 TCHW 0-255", "float16 TCHW 0-1", "float32 TCHW 0-1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """What the header of a tensor clip declares. Reading it does not touch the frames.

    `first_byte` is the position of the first frame in the file, and `frame_bytes` the size of each.
    """

    dtype: str
    frames: int
    height_px: int
    width_px: int
    fps: float
    first_byte: int

    @property
    def frame_bytes(self) -> int:
        return int(3 * self.height_px * self.width_px * DTYPES[self.dtype].itemsize)


def clip_to_tensor(clip: Clip) -> bytes:
    """A tensor clip as bytes: lossless, uint8 TCHW 0-255. The same frames always give the same bytes."""
    return _tensor_bytes(clip.frames, "U8", clip.fps)


def frames_to_tensor(frames: NDArray[np.floating[Any]], fps: float) -> bytes:
    """A tensor clip as bytes, from float frames [T,3,H,W] in 0..1 such as a diffusion pipeline returns.

    float16 stays float16. Every other float type is stored as float32. `fps` is in frames per second.
    """
    half = frames.dtype == np.float16
    return _tensor_bytes(frames if half else frames.astype(np.float32), "F16" if half else "F32", fps)


def _tensor_bytes(frames: NDArray[Any], dtype: str, fps: float) -> bytes:
    """Write the safetensors file here, because its own library writes the metadata in random order.

    A clip's bytes must not vary: idempotency keys and query seeds are derived from them.
    """
    meta = {"layout": "TCHW", "range": RANGES[dtype], "fps": repr(float(fps))}
    tensor = {"dtype": dtype, "shape": list(frames.shape), "data_offsets": [0, frames.nbytes]}
    header = json.dumps({"__metadata__": meta, TENSOR_NAME: tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # align the data to 8 bytes
    return struct.pack("<Q", len(header)) + header + frames.tobytes()


def tensor_header(data: bytes) -> TensorHeader:
    """Read and check the header of a tensor clip. Raises ContractError("bad_tensor") that says what is wrong."""
    header = _safetensors_header(data)
    meta = header.pop("__metadata__", {})
    if set(header) != {TENSOR_NAME}:
        raise _bad(f"holds the tensors {sorted(header)}; store exactly one, named '{TENSOR_NAME}'")
    dtype, shape = header[TENSOR_NAME].get("dtype"), header[TENSOR_NAME].get("shape", [])
    if not (isinstance(dtype, str) and dtype in RANGES):
        raise _bad(f"dtype {dtype!r} is not one of {sorted(RANGES)} (uint8, float16, float32)")
    if meta.get("layout") != "TCHW":
        raise _bad(f"layout is {meta.get('layout')!r}; only 'TCHW' is accepted: permute the frames and declare it")
    sound = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not sound or len(shape) != 4 or shape[1] != 3:
        raise _bad(f"shape {shape} is not [T,3,H,W]")
    if meta.get("range") != RANGES[dtype]:
        raise _bad(f"range is {meta.get('range')!r}; {dtype} frames must be declared and scaled '{RANGES[dtype]}'")
    num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if header[TENSOR_NAME].get("data_offsets") != [0, num_bytes]:
        offsets = header[TENSOR_NAME].get("data_offsets")
        raise _bad(f"is damaged: data_offsets are {offsets}, but {dtype} frames of this shape need [0, {num_bytes}]")
    return TensorHeader(
        dtype=dtype,
        frames=shape[0],
        height_px=shape[2],
        width_px=shape[3],
        fps=_fps(meta.get("fps")),
        first_byte=8 + struct.unpack("<Q", data[:8])[0],
    )


def tensor_to_clip(data: bytes) -> Clip:
    """Decode and check a tensor clip. Raises ContractError("bad_tensor") that says what is wrong.

    Float frames are scaled to 0..255 and rounded to uint8.
    """
    header = tensor_header(data)
    try:
        frames = load(data)[TENSOR_NAME]
    except (SafetensorError, ValueError) as error:
        raise _bad(f"is damaged: {error}") from error
    check_values([frames])
    return Clip(frames=to_uint8(frames), fps=header.fps)


def check_length(header: TensorHeader, num_bytes: int) -> None:
    """Raises ContractError("bad_tensor") unless a file of `num_bytes` bytes ends with the header's last frame."""
    wanted = header.first_byte + header.frames * header.frame_bytes
    if num_bytes != wanted:
        raise _bad(f"is damaged: it has {num_bytes} bytes, but its header declares {wanted}; upload the whole file")


def check_values(parts: Iterable[NDArray[Any]]) -> None:
    """Raises ContractError("bad_tensor") if the stored values are out of range. `parts` together are all frames."""
    found = [(part.dtype, float(part.min()), float(part.max())) for part in parts]
    low, high = float(np.min([low for _, low, _ in found])), float(np.max([high for _, _, high in found]))
    if found[0][0] == np.uint8:
        if high == 1:
            raise _bad("uint8 values are all 0 or 1; scale them to 0..255 before you cast them")
        return
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _bad("values are not all finite; look for NaN in the code that made them")
    if low < 0 or high > 1:
        raise _bad(f"values range from {low:.9g} to {high:.9g}, but float frames must lie in 0..1; rescale them")


def to_uint8(frames: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames of checked values as 0..255. Floats are scaled and rounded."""
    return frames if frames.dtype == np.uint8 else np.asarray(np.rint(frames.astype(np.float32) * 255), dtype=np.uint8)


def _safetensors_header(data: bytes) -> dict[str, Any]:
    try:
        (size,) = struct.unpack("<Q", data[:8])
        if not 0 < size <= min(len(data) - 8, MAX_HEADER_BYTES):
            raise ValueError(f"header size {size}")
        header = json.loads(str(data[8 : 8 + size], "utf-8"))  # of bytes, json would guess the encoding
        if not (isinstance(header, dict) and all(isinstance(value, dict) for value in header.values())):
            raise ValueError("header is not an object of objects")
    except (struct.error, ValueError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(f"is not a safetensors file ({error}); send videos as media 'container'") from error
    return header


def _fps(text: str | None) -> float:
    try:
        fps = float(text or "")
    except (TypeError, ValueError):
        fps = math.nan
    if not (math.isfinite(fps) and fps > 0):
        raise _bad(f"fps is {text!r}; declare the frame rate as a positive number")
    return fps


def _bad(what: str) -> ContractError:
    return ContractError(ErrorCode.BAD_TENSOR, f"tensor clip {what}")
