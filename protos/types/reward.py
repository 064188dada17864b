"""Defines the reward of a clip: logits, bounds, where it comes from and how it is to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from protos.error_codes import ContractError, ErrorCode
from protos.explanation import Explanation

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
class Standing:
    """Where a reward stands among those of real clips, which the weights' reference table holds.

    A percentile, 0..100, is the share of these clips with a lower value; those of the two discriminators are of the
    logits before clipping. It is None, never a number, if the table cannot tell: `missing` then says why. reward.proto
    explains the other fields. Raises ContractError("bad_reward") for a percentile outside its range.
    """

    combined_percentile: float | None = None
    instantaneous_percentile: float | None = None
    long_term_percentile: float | None = None
    nearest: str = ""
    band: str = ""
    num_clips: int = 0
    discriminator_version: str = ""
    missing: str = ""

    def __post_init__(self) -> None:
        for name in PERCENTILES:
            value = getattr(self, name)
            if not (value is None or 0 <= value <= 100):
                raise ContractError(ErrorCode.BAD_REWARD, f"standing.{name} must be in 0..100, got {value}")


PERCENTILES = ("combined_percentile", "instantaneous_percentile", "long_term_percentile")
"""The percentiles of a clip, as the fields of Standing are named, in the order of REWARDS."""


@dataclass(frozen=True, kw_only=True)
class StandardError:
    """Standard errors of a clip's logits before clipping, and of their weighted mean.

    They cover how much the clip's windows differ, and the draw of query points with them; with a single window only the
    draws, of which `num_draws` were averaged. They cover neither what the discriminators cannot see nor how two
    trainings differ. A clip with one window and one draw has none. Raises ContractError("bad_reward") for an error that
    is negative or not finite.
    """

    combined: float
    instantaneous: float
    long_term: float
    num_windows: int
    num_draws: int

    def __post_init__(self) -> None:
        for name in REWARDS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ContractError(
                    ErrorCode.BAD_REWARD, f"standard_error.{name} must be finite and 0 or more, got {value}"
                )


@dataclass(frozen=True, kw_only=True)
class Reward:
    """Motion realism of one clip: raw logits clipped to `bounds`, and `combined`, the weighted mean of these.

    `dynamics` and `standing` are None if the server is older than these fields. `standard_error` is None if the clip
    has one window and one draw of query points. No reward depends on the three. `explanation` is None unless the
    clip's context asks for it, and from an older server or worker.
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
    explanation: Explanation | None = field(default=None, repr=False)
    standing: Standing | None = None
    standard_error: StandardError | None = None

    def __post_init__(self) -> None:
        for name in REWARDS:
            value = getattr(self, name)
            if not (math.isfinite(value) and self.bounds.min <= value <= self.bounds.max):
                raise ContractError(
                    ErrorCode.BAD_REWARD, f"{name} {value} is outside [{self.bounds.min}, {self.bounds.max}]"
                )
