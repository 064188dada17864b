"""Defines what a server says about itself: the served model, its input and its limits."""

from __future__ import annotations

from dataclasses import dataclass

from protos.types.reward import Bounds, Logits

# The server's defaults, which a client also assumes if the server does not report its own.
SCORE_TIMEOUT_S = 120.0
REFRESH_TIMEOUT_S = 3600.0
REFRESH_STEP_S = 2.0  # enough for embedded, and for the networks on a GPU (docs/training.md)


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
    refresh_step_s: float | None = None


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
    architecture_digest: str = ""
