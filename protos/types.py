"""The Python values of the contract: what a client submits and what it gets back.

Every value is frozen and checks itself when made, so that code behind it need not. Both sides of
the wire use these; `codec.py` turns them into messages and bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class ContractError(ValueError):
    """A value breaks the contract. `code` is stable, the message names value, limit and next step."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Origin(StrEnum):
    REAL = "real"
    ROLLOUT = "rollout"


class Media(StrEnum):
    CONTAINER = "container"
    TENSOR = "tensor"


class OutcomeKind(StrEnum):
    OK = "ok"
    INVALID = "invalid"
    TIMEOUT = "timeout"
    OVERLOADED = "overloaded"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Decoded frames: uint8 [T,3,H,W], RGB, 0..255, evenly spaced in time at `fps` (frames per second)."""

    frames: NDArray[np.uint8]
    fps: float

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
            raise ContractError(
                "bad_frames", f"frames must be uint8 [T,3,H,W], got {self.frames.dtype} {list(shape)}; convert them"
            )
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ContractError("bad_fps", f"fps must be a positive number, got {self.fps}; give the true frame rate")

    def __repr__(self) -> str:
        return f"Clip(frames={list(self.frames.shape)}, fps={self.fps:g})"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a submitter says about a clip; every field is optional and explained in reward.proto."""

    group_id: str = ""
    run_id: str = ""
    origin: Origin | None = None
    query_seed: int | None = None
    deadline_s: float | None = None
    idempotency_key: str = ""
    policy_version: str = ""
    discriminator_version: str = ""

    def __post_init__(self) -> None:
        for name in ("group_id", "run_id", "idempotency_key", "policy_version", "discriminator_version"):
            if len(getattr(self, name)) > 256:
                raise ContractError("bad_context", f"{name} is over 256 characters; shorten it")
        if self.query_seed is not None and not 0 <= self.query_seed < 2**64:
            raise ContractError("bad_context", f"query_seed must be in 0..2^64-1, got {self.query_seed}")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise ContractError(
                "bad_context", f"deadline_s must be a positive number of seconds, got {self.deadline_s}"
            )


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One clip as it travels: container bytes, or safetensors bytes as `codec.clip_to_tensor` makes them."""

    payload: bytes = field(repr=False)
    media: Media
    context: Context = field(default_factory=Context)


@dataclass(frozen=True, kw_only=True)
class Logits:
    """One number per discriminator; real motion is high."""

    instantaneous: float
    long_term: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.instantaneous) and math.isfinite(self.long_term)):
            raise ContractError("non_finite", f"logits must be finite, got {self.instantaneous}, {self.long_term}")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Published range of a reward, in logits."""

    min: float
    max: float

    def __post_init__(self) -> None:
        if not self.min < self.max:
            raise ContractError("bad_bounds", f"bounds need min < max, got {self.min}, {self.max}")


@dataclass(frozen=True, kw_only=True)
class WindowLogits:
    """Raw logits of one window of a clip that is longer than the profile's window."""

    start_s: float
    logits: Logits


@dataclass(frozen=True, kw_only=True)
class Source:
    """The clip as it came, before resampling and resizing; height and width as displayed."""

    frames: int
    fps: float
    duration_s: float
    height_px: int
    width_px: int
    codec: str
    rotation_deg: int = 0


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time went, in milliseconds; motion and discriminator times are those of the whole batch."""

    queue_ms: float = 0.0
    decode_ms: float = 0.0
    motion_ms: float = 0.0
    discriminator_ms: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClipWarning:
    """Something odd about a clip that was scored all the same. `code` is stable, `share` (0..1) how much of it."""

    code: str
    message: str
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything needed to say how a reward came about; fields are explained in reward.proto."""

    profile: str
    discriminator_version: str
    weights_digest: str
    preprocessing_digest: str
    query_seed: int
    num_tracks: int
    source: Source
    fps_used: float
    frames_used: int
    height_px: int
    width_px: int
    mean_visibility: float
    mean_confidence: float
    timings: Timings = field(default_factory=Timings)
    warnings: tuple[ClipWarning, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Motion realism of one clip: raw logits clipped to `bounds`, and their weighted mean."""

    combined: float
    instantaneous: float
    long_term: float
    logits: Logits
    clipped: bool
    bounds: Bounds
    windows: tuple[WindowLogits, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        for name in ("combined", "instantaneous", "long_term"):
            value = getattr(self, name)
            if not (math.isfinite(value) and self.bounds.min <= value <= self.bounds.max):
                raise ContractError("bad_reward", f"{name} {value} is outside [{self.bounds.min}, {self.bounds.max}]")


@dataclass(frozen=True, kw_only=True)
class Error:
    """Why there is no reward. `code` is stable, for programs; `message` names value, limit and next step."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one submitted clip: a reward if and only if `kind` is OK, otherwise an error."""

    job_id: str
    kind: OutcomeKind
    reward: Reward | None = None
    error: Error | None = None
    context: Context = field(default_factory=Context)
    cursor: str = ""

    def __post_init__(self) -> None:
        ok = self.kind is OutcomeKind.OK
        if (self.reward is not None) != ok or (self.error is not None) == ok:
            raise ContractError(
                "bad_outcome", f"outcome {self.kind} must hold {'a reward' if ok else 'an error'} alone"
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the server accepts of a clip and of a request."""

    max_bytes: int
    max_frames: int
    max_frame_pixels: int
    max_duration_s: float
    max_clips_per_request: int


@dataclass(frozen=True, kw_only=True)
class Input:
    """What the profile makes of a clip before it looks at its motion."""

    fps: float
    window_frames: int
    min_frames: int
    num_tracks: int
    area_px: int
    containers: tuple[str, ...]
    tensor_forms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is being served."""

    profile: str
    discriminator_version: str
    weights_digest: str
    preprocessing_digest: str
    bounds: Bounds
    weights: Logits
    limits: Limits
    input: Input


@dataclass(frozen=True, kw_only=True)
class RefreshRequest:
    """An order to train a run's discriminators on its recent clips; fields are explained in reward.proto."""

    run_id: str
    steps: int
    learning_rate: float = 1e-5
    ema: float = 0.99
    clips_per_step: int = 8
    seed: int = 0
    max_real: int = 0
    max_rollouts: int = 0
    deadline_s: float | None = None
    idempotency_key: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.run_id) <= 256:
            raise _bad_refresh("run_id", f"1 to 256 characters, got {len(self.run_id)}; name the run to refresh")
        if len(self.idempotency_key) > 256:
            raise _bad_refresh("idempotency_key", f"256 characters at most, got {len(self.idempotency_key)}")
        for name, most in (("steps", 100_000), ("clips_per_step", 1024)):
            if not 1 <= getattr(self, name) <= most:
                raise _bad_refresh(name, f"in 1..{most}, got {getattr(self, name)}")
        if not 0 < self.learning_rate <= 1:
            raise _bad_refresh("learning_rate", f"above 0 and at most 1, got {self.learning_rate}")
        if not 0 <= self.ema < 1:
            raise _bad_refresh("ema", f"in 0..1 and below 1, got {self.ema}")
        for name, end in (("seed", 2**64), ("max_real", 2**32), ("max_rollouts", 2**32)):
            if not 0 <= getattr(self, name) < end:
                raise _bad_refresh(name, f"in 0..{end - 1}, got {getattr(self, name)}")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise _bad_refresh("deadline_s", f"a positive number of seconds, got {self.deadline_s}")


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a discriminator tells real clips from rollouts: order, and mean difference in logits."""

    auc: float
    logit_gap: float


@dataclass(frozen=True, kw_only=True)
class DiscriminatorRefresh:
    """What a refresh did to one discriminator: its loss per step, and its held-out figures before and after."""

    losses: tuple[float, ...]
    before: Separation
    after: Separation


@dataclass(frozen=True, kw_only=True)
class RefreshResponse:
    """A published discriminator version and how it came about; fields are explained in reward.proto."""

    discriminator_version: str
    weights_digest: str
    previous_version: str
    steps: int
    num_real: int
    num_rollouts: int
    num_held_out: int
    instantaneous: DiscriminatorRefresh
    long_term: DiscriminatorRefresh
    seconds: float


def _bad_refresh(name: str, must_be: str) -> ContractError:
    return ContractError("bad_refresh", f"{name} must be {must_be}")
