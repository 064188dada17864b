"""Defines the settings of refreshes: a run's clips, the gate, and its versions."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from protos.types import REFRESH_STEP_S, REFRESH_TIMEOUT_S
from reward_server.settings.group import MIB, Group


class RefreshSettings(Group):
    """What a run keeps, and what a refresh may take."""

    feature_max_clips: int = Field(
        1024,
        ge=0,
        description="Maximum number of clips per run and origin whose motion features are kept for a refresh: a random "
        "sample over all groups. 0 turns refreshes off.",
    )
    feature_max_bytes: int | None = Field(
        None,
        ge=1,
        description="Maximum number of bytes of motion features kept per run and origin. Default: 2 GiB in files, room "
        "for all first frames of a buffer with shift and shift-wan, and 256 MiB in Redis. Without room for all, clips "
        "keep fewer tracks and pairs first.",
    )
    feature_dir: Path | None = Field(
        None,
        description="Folder, shared by all workers, in which motion features are kept as files. An absolute path. "
        "Redis then holds only references to them. Default: the folder 'features' in that of a private Redis; none "
        "with a Redis of your own, which then holds them.",
    )
    feature_older_share: float = Field(
        0.25,
        ge=0,
        le=0.9,
        description="Largest share of the clips of a refresh, and of the room for them, that clips of earlier buffers "
        "take.",
    )
    feature_ttl_s: int = Field(
        86400,
        ge=1,
        description="How long a run's motion features are kept after its last clip or sign of life, in seconds.",
    )
    feature_pairs: int = Field(4, ge=1, description="Frame pairs kept per clip for a refresh.")
    feature_tracks: int = Field(
        256,
        ge=16,
        description="Tracks kept per clip for a refresh by shift and shift-wan, if there is room. A track takes 25 kB, "
        "a frame pair 0.37 MB.",
    )
    feature_min_tracks: int = Field(
        32, ge=8, description="Tracks that such a clip keeps, with one frame pair, if there is not."
    )
    refresh_min_clips: int = Field(2, ge=2, description="Minimum number of clips of each origin for a refresh.")
    refresh_timeout_s: float = Field(
        REFRESH_TIMEOUT_S, gt=0, description="Maximum time a refresh may take, in seconds, besides that of its steps."
    )
    refresh_step_s: float = Field(
        REFRESH_STEP_S, ge=0, description="Time that each of its steps adds to it, in seconds."
    )
    gate_min_clips: int = Field(
        8,
        ge=0,
        description="A run's anchor set is the held-out clips of its first refresh that holds out this many of each "
        "origin; 0 turns the gate off.",
    )
    gate_max_auc_drop: float = Field(
        0.15,
        ge=0,
        description="A refresh is refused if a discriminator's AUC on the anchor set is lower than its parent's by "
        "more than this.",
    )
    gate_max_gap_drop: float = Field(
        1.0,
        ge=0,
        description="A refresh is refused if real clips of the anchor set get lower logits than its rollouts on "
        "average, and the gap between the two fell by more than this.",
    )
    gate_max_drift: float = Field(
        0.5,
        gt=0,
        description="A refresh is refused if a logit on the anchor set changes by more than this share of the "
        "reward's range on average.",
    )
    gate_max_saturation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="A refresh is refused if a larger share of logits on the anchor set is outside of the reward's "
        "bounds, and more than of its parent's.",
    )
    gate_max_copies_drop: float = Field(
        0.25,
        ge=0,
        description="A refresh is refused if the share of copies of the anchor set's real clips, a held frame and a "
        "glide over it, that get a lower logit than their clip falls by more than this.",
    )
    gate_min_amount: float = Field(
        -0.6,
        ge=-1,
        le=1,
        description="A refresh is refused if the rank correlation of the logit with the amount of motion, among real "
        "clips or among rollouts of the anchor set, is below this and fell by more than 0.2: less motion would pay.",
    )
    versions_kept: int = Field(
        4, ge=1, description="Discriminator versions kept per run; a client can pin any of these."
    )
    restore_max_bytes: int = Field(
        2048 * MIB,
        ge=1,
        description="Maximum number of bytes of both files of a version that a client restores after Redis lost it.",
    )
    versions_loaded: int = Field(
        4, ge=1, description="Refreshed discriminator versions, over all runs, that a worker holds in memory."
    )
    version_ttl_s: int = Field(
        604800,
        ge=1,
        description="How long a run's versions are kept after its last clip or refresh, in seconds.",
    )

    @field_validator("feature_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        """Workers have different working directories. An empty variable gives '.'."""
        if value and not value.is_absolute():
            raise ValueError(f"'{value}' is not an absolute path; give one, or unset it")
        return value

    @property
    def feature_room(self) -> int:
        """`feature_max_bytes`, or its default for where motion is kept."""
        return self.feature_max_bytes or (2048 if self.feature_dir else 256) * MIB

    def refresh_life_s(self, steps: int) -> float:
        """How long a refresh of this many steps may take."""
        return self.refresh_timeout_s + steps * self.refresh_step_s
