"""`submission`: a file, bytes or frames -> the Submission that a client sends or a pipeline scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos.codec import clip_to_tensor, frames_to_tensor
from protos.error_codes import ErrorCode
from protos.types import Clip, Context, ContractError, Media, Submission


def submission(
    source: str | Path | bytes | NDArray[Any],
    *,
    fps: float | None = None,
    media: Media | None = None,
    context: Context | None = None,
) -> Submission:
    """One clip to score: a file, the bytes of one, or frames [T,3,H,W] (uint8 0..255 or float 0..1) with `fps`.

    A file is a tensor clip if its name ends in .safetensors; bytes are a container unless `media`
    says otherwise. Raises ContractError for frames of another form, OSError for an unreadable file.
    """
    context = context or Context()
    if isinstance(source, np.ndarray):
        return Submission(payload=_tensor(source, fps), media=Media.TENSOR, context=context)
    if isinstance(source, bytes):
        return Submission(payload=source, media=media or Media.CONTAINER, context=context)
    path = Path(source)
    guessed = Media.TENSOR if path.suffix == ".safetensors" else Media.CONTAINER
    return Submission(payload=path.read_bytes(), media=media or guessed, context=context)


def _tensor(frames: NDArray[Any], fps: float | None) -> bytes:
    if fps is None:
        raise ContractError(ErrorCode.BAD_FPS, "frames need their frame rate; give fps")
    if np.issubdtype(frames.dtype, np.floating):
        return frames_to_tensor(frames, fps)
    return clip_to_tensor(Clip(frames=frames, fps=fps))
