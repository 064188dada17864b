"""Defines the settings of what is served and of rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from reward_server.settings.folders import default_data_dir
from reward_server.settings.group import MIB, Group


class ScoringSettings(Group):
    """What is served, and how logits become rewards."""

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

    explain_max_bytes: int = Field(
        MIB,
        ge=128 * 1024,
        description="Maximum number of bytes of one clip's explanation, as the queue stores it. Above it maps get "
        "smaller, and then tracks are left out.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if not self.reward_min < self.reward_max:
            raise ValueError(f"reward_min must be below reward_max ({self.reward_max:g}), got {self.reward_min:g}")
        return self
