"""Suggests the line of Python that converts frames to the contract's form, for the error messages of `submissions.py`.

A conversion is a Python expression with `{}` in place of the frames: "{}.transpose(0, 3, 1, 2)". It is never applied
here. The caller reads it in the message and decides whether it fits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

AS_IT_IS = "{}"
STACKED_PICTURES = "np.stack([np.asarray(frame.convert('RGB')) for frame in {}]).transpose(0, 3, 1, 2)"
CHANNELS = (  # for four axes: the channel axis, its size, the conversion; the first row that fits is used
    (1, 3, AS_IT_IS),
    (3, 3, "{}.transpose(0, 3, 1, 2)"),
    (3, 4, "{}[..., :3].transpose(0, 3, 1, 2)"),  # RGBA; [T,4,H,W] has no row, as it is a diffusion model's latents
    (0, 3, "{}.transpose(1, 0, 2, 3)"),
    (3, 1, "{}.transpose(0, 3, 1, 2).repeat(3, axis=1)"),
    (1, 1, "{}.repeat(3, axis=1)"),
)


def to_tchw(shape: tuple[int, ...]) -> str | None:
    """The conversion of frames of this shape to [T,3,H,W], or None if the shape does not determine it."""
    if len(shape) == 4:
        for axis, size, conversion in CHANNELS:
            if shape[axis] == size:
                return conversion
    if len(shape) in (4, 5) and shape[0] == 1:  # a batch of one
        inner = to_tchw(shape[1:])
        return inner and inner.format("{}[0]")
    is_grey_clip = len(shape) == 3 and 3 not in (shape[0], shape[2])  # with a 3 there it is one RGB picture
    return "{}[:, None].repeat(3, axis=1)" if is_grey_clip else None


def to_range(array: NDArray[Any]) -> str | None:
    """The conversion of these values to uint8 0..255 or float 0..1, or None if the values do not determine it."""
    kind = array.dtype.kind
    if kind not in "biuf" or array.size == 0:
        return None
    if array.dtype == np.uint8:
        return AS_IT_IS
    low, high = float(array.min()), float(array.max())
    if kind == "f":
        return _floats_to_range(low, high)
    if low >= 0 and high <= 1:
        return "{}.astype(np.uint8) * 255"
    if low >= 0 and high <= 255:
        return "{}.astype(np.uint8)"
    return "{} / 65535" if array.dtype == np.uint16 else "{}.clip(0, 255).astype(np.uint8)"


def _floats_to_range(low: float, high: float) -> str | None:
    with np.errstate(over="ignore"):
        if np.float32(low) >= 0 and np.float32(high) <= 1:
            return AS_IT_IS
    if low >= -0.1 and high <= 1.1:
        return "{}.clip(0, 1)"
    if low >= -1.1 and high <= 1.1:
        return "({} / 2 + 0.5).clip(0, 1)"
    if low >= -25 and 2 < high <= 280:
        return "({} / 255).clip(0, 1)"
    return None


def advice(array: NDArray[Any]) -> str:
    """What to do with values for which `to_range` has no conversion."""
    if array.dtype.kind != "f":
        return "make them uint8 or float"
    if not np.isfinite(array).all():
        return "no conversion repairs these values: find the step that makes them, starting at the frame named"
    return "undo the normalisation that made them, for example frames * std + mean"


def from_torch(tensor: Any) -> tuple[NDArray[Any], str]:
    """The values of a torch tensor as an array, and the conversion that does the same.

    bfloat16 becomes float32, because numpy has no bfloat16.
    """
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return tensor.float().numpy(), "{}.detach().cpu().float().numpy()"
    return tensor.numpy(), "{}.detach().cpu().numpy()"
