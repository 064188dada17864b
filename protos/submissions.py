"""Makes one clip of the contract from a file, bytes or frames: `submission()`.

Few types are accepted. Other common ones (torch tensors, PIL images, lists, other layouts and ranges) are refused, and
the error message gives the line of Python that converts them. Nothing is converted silently, because a clip would
still get a reward after a wrong guess. torch and PIL are recognised by the names of their types, so neither needs to be
installed.

Float frames outside 0..1 are refused, however small the excess. The only exception is float64: it is checked after it
has been rounded to float32, the type that is sent.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.codec import clip_to_tensor, frames_to_tensor
from protos.conversions import AS_IT_IS, STACKED_PICTURES, advice, from_torch, to_range, to_tchw
from protos.error_codes import ErrorCode
from protos.types import Clip, Context, ContractError, Media, Submission

WANTED = "it takes a file's path, its bytes, or frames: a numpy array [T,3,H,W], RGB, uint8 0..255 or float 0..1"
ONE_EACH = "a submission is one clip; use [submission(clip, fps=fps) for clip in {}]"


def submission(
    source: str | Path | bytes | NDArray[Any],
    *,
    fps: float | None = None,
    media: Media | None = None,
    context: Context | None = None,
) -> Submission:
    """One clip to score: a file, the bytes of one, or frames [T,3,H,W] (uint8 0..255 or float 0..1) with `fps`.

    `fps` is in frames per second. Files and bytes that begin like safetensors are tensor clips, and so is a file whose
    name ends in .safetensors. Others are video files. `media` overrides this. Raises OSError if the file cannot be
    read. Raises ContractError with `bad_fps`, with `bad_frames` (wrong type, shape or dtype), or with `bad_tensor`
    (wrong float values, as the server reports them).
    """
    context = context or Context()
    if isinstance(source, np.ndarray):
        return Submission(payload=_tensor(source, fps), media=Media.TENSOR, context=context)
    if isinstance(source, bytes):
        return Submission(payload=source, media=media or _media_of(source), context=context)
    if isinstance(source, str | os.PathLike):
        payload = _read(source)
        guessed = Media.TENSOR if Path(source).suffix == ".safetensors" else _media_of(payload)
        return Submission(payload=payload, media=media or guessed, context=context)
    raise _refused(source, "frames")


def _media_of(payload: bytes) -> Media:
    """The bytes of a safetensors file are eight bytes of length, then JSON."""
    return Media.TENSOR if payload[8:9] == b"{" else Media.CONTAINER


def _tensor(frames: NDArray[Any], fps: float | None) -> bytes:
    if fps is None:
        raise ContractError(ErrorCode.BAD_FPS, "frames need their frame rate; give fps")
    if not (math.isfinite(fps) and fps > 0):
        raise ContractError(ErrorCode.BAD_FPS, f"fps must be a positive number, got {fps}; give the true frame rate")
    floats = np.issubdtype(frames.dtype, np.floating)
    if frames.size == 0 or to_tchw(frames.shape) != AS_IT_IS:
        raise _refused_array(frames, "a numpy array", "frames")
    if to_range(frames) != AS_IT_IS:
        raise _refused_array(
            frames, "a numpy array", "frames", code=ErrorCode.BAD_TENSOR if floats else ErrorCode.BAD_FRAMES
        )
    if floats:
        return frames_to_tensor(frames, fps)
    return clip_to_tensor(Clip(frames=frames, fps=fps))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        told = f"No such file, seen from {Path.cwd()}; give the path of a video or of a .safetensors clip"
        raise FileNotFoundError(errno.ENOENT, told, os.fspath(path)) from error
    except IsADirectoryError as error:
        told = "A folder, but a submission is one file; use [submission(file) for file in Path(folder).iterdir()]"
        raise IsADirectoryError(errno.EISDIR, told, os.fspath(path)) from error


# --- errors: what came, what is accepted, and the line that converts it -----------------------------


def _refused(source: Any, name: str) -> ContractError:
    """The error for a source that is not a numpy array. `name` stands for the source in the suggested line."""
    if _is_tensor(source):
        array, line = from_torch(source)
        return _refused_array(array, "a torch tensor", line.format(name), dtype=str(source.dtype))
    if _is_picture(source):
        return _error(f"one PIL image, {_picture(source)}", "a clip is several frames; give the list of its images")
    if isinstance(source, list | tuple):
        return _refused_list(source, name)
    if isinstance(source, bytearray | memoryview):
        return _error(f"a {_type(source)} of {len(source)} bytes", "convert: source = bytes(source)")
    what = f"an object of type {_type(source)}"
    return _error(what, _line(f"np.asarray({name})") if hasattr(source, "__array__") else "give one of these")


def _refused_list(items: Sequence[Any], name: str) -> ContractError:
    what = f"a {_type(items)} of {len(items)}"
    if not items:
        return _error(what, "give at least one frame")
    if all(map(_is_picture, items)):
        return _refused_pictures(items, what, name)
    if all(map(_is_tensor, items)):
        line = from_torch(items[0])[1].format(f"torch.stack(tuple({name}))")
        return _refused_stack([from_torch(item)[0] for item in items], f"{what} torch tensors", line)
    if all(isinstance(item, np.ndarray) for item in items):
        return _refused_stack(items, f"{what} numpy arrays", f"np.stack({name})")
    if len(items) == 1 and isinstance(items[0], list | tuple):  # a batch of one, as diffusion pipelines return it
        return _refused_list(items[0], f"{name}[0]")
    return _error(f"{what}, first a {_type(items[0])}", _advice_for_list(items[0], name))


def _advice_for_list(first: object, name: str) -> str:
    if isinstance(first, str | os.PathLike | bytes):
        return f"a submission is one clip; use [submission(file) for file in {name}]"
    return ONE_EACH.format(name) if isinstance(first, list | tuple) else "give frames of one kind"


def _refused_pictures(pictures: Sequence[Any], what: str, name: str) -> ContractError:
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        return _error(f"{what} PIL images of {len(sizes)} sizes", "resize them to one size")
    return _error(f"{what} PIL images, first {_picture(pictures[0])}", _line(STACKED_PICTURES.format(name)))


def _refused_stack(arrays: Sequence[NDArray[Any]], what: str, line: str) -> ContractError:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        two = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
        return _error(f"{what} of {len(shapes)} shapes, {two}", "resize them to one shape")
    return _refused_array(np.stack(arrays), f"{what}, stacked", line)


def _refused_array(
    array: NDArray[Any], what: str, name: str, *, dtype: str = "", code: ErrorCode = ErrorCode.BAD_FRAMES
) -> ContractError:
    """The error for an array. `name` is a Python expression for it: a name, or the conversions made so far."""
    layout, values = to_tchw(array.shape), to_range(array)
    what = f"{what}, {dtype or array.dtype} {list(array.shape)}{_values(array)}"
    if array.size == 0:
        return _error(what, "give at least one frame")
    if layout is None:
        return _error(what, ONE_EACH.format(name) if array.ndim == 5 else "bring the frames of one clip to [T,3,H,W]")
    if values is None:
        return _error(what, advice(array), code)
    return _error(what, _line(values.format(layout.format(name))), code)


def _error(what: str, next_step: str, code: ErrorCode = ErrorCode.BAD_FRAMES) -> ContractError:
    return ContractError(code, f"submission() got {what}; {WANTED}; {next_step}")


def _line(expression: str) -> str:
    return f"convert: frames = {expression}"


# --- descriptions for the messages --------------------------------------------------------------------


def _values(array: NDArray[Any]) -> str:
    if array.dtype.kind not in "biuf" or array.size == 0:
        return ""
    unlawful = ~np.isfinite(array)
    if unlawful.any():
        first = [int(at) for at in np.unravel_index(int(unlawful.argmax()), array.shape)]
        return f", {int(unlawful.sum())} of {array.size} values NaN or infinite, first at {first}"
    return f", values {float(array.min()):.9g} to {float(array.max()):.9g}"


def _picture(picture: Any) -> str:
    return f"{picture.mode} {picture.width}x{picture.height}"


def _type(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _is_tensor(value: object) -> bool:
    return _is_a(value, "torch", "Tensor")


def _is_picture(value: object) -> bool:
    return _is_a(value, "PIL.Image", "Image")


def _is_a(value: object, module: str, name: str) -> bool:
    return any((base.__module__, base.__name__) == (module, name) for base in type(value).__mro__)
