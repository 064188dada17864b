"""Defines the Python values of the contract: what a client submits and what it gets back.

Every value is frozen and checked when it is made, so that other code need not check it again. The
server and its clients both use these values. `codec.py` converts them to messages and bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protos.error_codes import ErrorCode

# Bounds of a context and of a refresh. The HTTP door, its OpenAPI document and the trainer's configuration use these
# bounds, and the defaults of the fields below.
MAX_CHARACTERS = 256  # of a name or key
END_OF_SEEDS = 2**64  # uint64
END_OF_COUNTS = 2**32  # uint32
MAX_STEPS = 100_000
MAX_CLIPS_PER_STEP = 1024
MAX_LEARNING_RATE = 1

SCORE_TIMEOUT_S = 120.0  # the server's defaults, which a client also assumes if the server does not report its own
REFRESH_TIMEOUT_S = 3600.0


class ContractError(ValueError):
    """A value breaks the contract. `code` is stable. The message names the value, the limit and the next step."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Origin(StrEnum):
    REAL = "real"
    ROLLOUT = "rollout"


class Media(StrEnum):
    CONTAINER = "container"
    TENSOR = "tensor"


class OutcomeKind(StrEnum):
    """How a clip ends. OVERLOADED is reserved and not used: a full queue refuses the call, and nothing is queued."""

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


DiscriminatorName = Literal["instantaneous", "long_term"]
DISCRIMINATORS: tuple[DiscriminatorName, ...] = ("instantaneous", "long_term")
"""The discriminators, as the fields of Logits, Reward and RefreshResponse are named."""
REWARDS = ("combined", *DISCRIMINATORS)
"""The rewards of a clip, as the fields of Reward are named."""


@dataclass(frozen=True, kw_only=True)
class Logits:
    """One finite number per discriminator. Real motion gets high values."""

    instantaneous: float
    long_term: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.instantaneous) and math.isfinite(self.long_term)):
            raise ContractError(
                ErrorCode.NON_FINITE, f"logits must be finite, got {self.instantaneous}, {self.long_term}"
            )


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The range of a reward, in logits."""

    min: float
    max: float

    def __post_init__(self) -> None:
        if not self.min < self.max:
            raise ContractError(ErrorCode.BAD_BOUNDS, f"bounds need min < max, got {self.min}, {self.max}")


@dataclass(frozen=True, kw_only=True)
class WindowLogits:
    """Raw logits of one window of a clip that is longer than the profile's window. `start_s` is in seconds."""

    start_s: float
    logits: Logits


@dataclass(frozen=True, kw_only=True)
class Source:
    """The clip as it was sent, before resampling and resizing. Height and width are as displayed."""

    frames: int
    fps: float
    duration_s: float
    height_px: int
    width_px: int
    codec: str
    rotation_deg: int = 0


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Time per stage in milliseconds. The times of motion and discriminators are those of the whole batch."""

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
    """How a reward was computed. reward.proto explains the fields."""

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
class Dynamics:
    """How much one clip moves, whether or not the motion is real. Every number is a mean over the clip's windows.

    total_motion    mean length of the optical flow, in frame heights per second, 0 or more
    camera_motion   mean displacement by the homography that fits a pair of frames best, same unit
    object_motion   mean length of the flow minus that displacement, same unit: moving objects, and parallax
    dynamic_degree  share of windows that are dynamic by VBench's rule, 0..1
    tracks_alive    share of tracks that are still visible in a window's last frame, 0..1

    Camera and object motion need not add up to the total: they may cancel each other. Raises
    ContractError("bad_reward") for a number outside its range.
    """

    total_motion: float
    camera_motion: float
    object_motion: float
    dynamic_degree: float
    tracks_alive: float

    def __post_init__(self) -> None:
        for name in DYNAMICS:
            value, most = getattr(self, name), 1 if name in SHARES else math.inf
            if not (math.isfinite(value) and 0 <= value <= most):
                raise ContractError(
                    ErrorCode.BAD_REWARD, f"dynamics.{name} must be finite and in 0..{most}, got {value}"
                )


DYNAMICS = ("total_motion", "camera_motion", "object_motion", "dynamic_degree", "tracks_alive")
"""The numbers of a clip's dynamics, as the fields of Dynamics are named."""
SHARES = ("dynamic_degree", "tracks_alive")
"""Those of them that are shares, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Motion realism of one clip: raw logits clipped to `bounds`, and `combined`, the weighted mean of these.

    `dynamics` is None if the server is older than this field. No reward depends on it.
    """

    combined: float
    instantaneous: float
    long_term: float
    logits: Logits
    clipped: bool
    bounds: Bounds
    windows: tuple[WindowLogits, ...]
    provenance: Provenance
    dynamics: Dynamics | None = None

    def __post_init__(self) -> None:
        for name in REWARDS:
            value = getattr(self, name)
            if not (math.isfinite(value) and self.bounds.min <= value <= self.bounds.max):
                raise ContractError(
                    ErrorCode.BAD_REWARD, f"{name} {value} is outside [{self.bounds.min}, {self.bounds.max}]"
                )


@dataclass(frozen=True, kw_only=True)
class Error:
    """Why there is no reward. `message` names the value, the limit and the next step.

    `code` is for programs: compare it with members of ErrorCode. It is a plain string, because a newer server may send
    codes that this ErrorCode does not have yet.
    """

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one submitted clip: a reward if `kind` is OK, otherwise an error."""

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
                ErrorCode.BAD_OUTCOME, f"outcome '{self.kind}' must hold only {'a reward' if ok else 'an error'}"
            )


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The server's limits for a clip and for a request, and its timeouts in seconds.

    The timeouts are None for a pipeline in the caller's own process and for an older server, which do not report them.
    """

    max_bytes: int
    max_frames: int
    max_frame_pixels: int
    max_duration_s: float
    max_clips_per_request: int
    score_timeout_s: float | None = None
    refresh_timeout_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Input:
    """How the profile prepares a clip before it measures the clip's motion. reward.proto explains the fields."""

    fps: float
    window_frames: int
    min_frames: int
    num_tracks: int
    area_px: int
    containers: tuple[str, ...]
    tensor_forms: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The served model: its profile, version, digests, reward range, limits and input. See reward.proto."""

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
    """A request to train a run's discriminators on its recent clips. reward.proto explains the fields."""

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
        if not 1 <= len(self.run_id) <= MAX_CHARACTERS:
            raise _bad_refresh(
                "run_id", f"1 to {MAX_CHARACTERS} characters, got {len(self.run_id)}; name the run to refresh"
            )
        if len(self.idempotency_key) > MAX_CHARACTERS:
            told = f"{MAX_CHARACTERS} characters at most, got {len(self.idempotency_key)}"
            raise _bad_refresh("idempotency_key", told)
        for name, most in (("steps", MAX_STEPS), ("clips_per_step", MAX_CLIPS_PER_STEP)):
            if not 1 <= getattr(self, name) <= most:
                raise _bad_refresh(name, f"in 1..{most}, got {getattr(self, name)}")
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise _bad_refresh("learning_rate", f"above 0 and at most {MAX_LEARNING_RATE}, got {self.learning_rate}")
        if not 0 <= self.ema < 1:
            raise _bad_refresh("ema", f"in 0..1 and below 1, got {self.ema}")
        for name, end in (("seed", END_OF_SEEDS), ("max_real", END_OF_COUNTS), ("max_rollouts", END_OF_COUNTS)):
            if not 0 <= getattr(self, name) < end:
                raise _bad_refresh(name, f"in 0..{end - 1}, got {getattr(self, name)}")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise _bad_refresh("deadline_s", f"a positive number of seconds, got {self.deadline_s}")


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a discriminator separates real clips from rollouts: the AUC, and the mean difference in logits."""

    auc: float
    logit_gap: float


@dataclass(frozen=True, kw_only=True)
class DiscriminatorRefresh:
    """What a refresh did to one discriminator: the loss per step, and held-out figures before and after."""

    losses: tuple[float, ...]
    before: Separation
    after: Separation


@dataclass(frozen=True, kw_only=True)
class RefreshResponse:
    """A published discriminator version and how it was trained. reward.proto explains the fields."""

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
    return ContractError(ErrorCode.BAD_REFRESH, f"{name} must be {must_be}")
