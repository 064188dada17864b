"""Defines what a client submits: a clip, and what it says about it.

The bounds of a context stand here too. The HTTP door, its OpenAPI document and the trainer's configuration use them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from protos.error_codes import ContractError, ErrorCode

MAX_CHARACTERS = 256  # of a name or key

END_OF_SEEDS = 2**64  # uint64


class Origin(StrEnum):
    REAL = "real"
    ROLLOUT = "rollout"


class Media(StrEnum):
    CONTAINER = "container"
    TENSOR = "tensor"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Decoded frames: uint8 [T,3,H,W], RGB, 0..255, evenly spaced in time at `fps` (frames per second)."""

    frames: NDArray[np.uint8]
    fps: float

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
            raise ContractError(
                ErrorCode.BAD_FRAMES,
                f"frames must be uint8 [T,3,H,W], got {self.frames.dtype} {list(shape)}; convert them",
            )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ContractError(
                ErrorCode.BAD_FPS, f"fps must be a positive number, got {self.fps}; give the true frame rate"
            )

    def __repr__(self) -> str:
        return f"Clip(frames={list(self.frames.shape)}, fps={self.fps:g})"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a submitter says about a clip. Every field is optional. reward.proto explains them."""

    group_id: str = ""
    run_id: str = ""
    origin: Origin | None = None
    query_seed: int | None = None
    deadline_s: float | None = None
    idempotency_key: str = ""
    policy_version: str = ""
    discriminator_version: str = ""
    explain: bool = False

    def __post_init__(self) -> None:
        for name in ("group_id", "run_id", "idempotency_key", "policy_version", "discriminator_version"):
            if len(getattr(self, name)) > MAX_CHARACTERS:
                raise ContractError(ErrorCode.BAD_CONTEXT, f"{name} is over {MAX_CHARACTERS} characters; shorten it")
        if self.query_seed is not None and not 0 <= self.query_seed < END_OF_SEEDS:
            raise ContractError(ErrorCode.BAD_CONTEXT, f"query_seed must be in 0..2^64-1, got {self.query_seed}")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise ContractError(
                ErrorCode.BAD_CONTEXT, f"deadline_s must be a positive number of seconds, got {self.deadline_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One clip as it is sent: the bytes of a video file, or safetensors bytes as from `codec.clip_to_tensor`."""

    payload: bytes = field(repr=False)
    media: Media
    context: Context = field(default_factory=Context)
