"""Defines every setting of the server and its workers, with its unit, its default and a one-sentence description.

Set a value with the environment variable MOTION_REWARD_<NAME> or with a command-line option. An unknown
MOTION_REWARD_ variable is an error, so a misspelt name is not ignored silently.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import model_validator

from reward_server.settings.clips import ClipSettings
from reward_server.settings.doors import DoorSettings
from reward_server.settings.folders import default_queue_dir
from reward_server.settings.group import MIB, PREFIX, names
from reward_server.settings.queue import BatchSettings, QueueSettings
from reward_server.settings.refresh import RefreshSettings
from reward_server.settings.scoring import ScoringSettings

__all__ = ["MIB", "PREFIX", "Settings", "default_queue_dir", "names"]


# Pydantic lists the fields of the last base first, and so do the documents.
class Settings(BatchSettings, RefreshSettings, QueueSettings, DoorSettings, ClipSettings, ScoringSettings):
    """All settings."""

    @property
    def models_folder(self) -> Path:
        return self.models_dir or self.data_dir / "models"

    @property
    def keys_path(self) -> Path:
        return self.keys_file or self.data_dir / "keys.json"

    @property
    def upload_folder(self) -> Path:
        return self.upload_dir or self.data_dir / "uploads"

    @property
    def queue_folder(self) -> Path:
        if self.queue_dir is not None:
            return self.queue_dir
        return self.data_dir / "queue" if "data_dir" in self.model_fields_set else default_queue_dir()

    @model_validator(mode="after")
    def _no_unknown_environment(self) -> Self:
        """Refuse unknown MOTION_REWARD_ variables, because pydantic-settings ignores them silently."""
        given = {name.upper().removeprefix(PREFIX).lower() for name in os.environ if name.upper().startswith(PREFIX)}
        if unknown := given - type(self).model_fields.keys():
            names = ", ".join(PREFIX + name.upper() for name in sorted(unknown))
            raise ValueError(f"no such setting: {names}; correct the name or unset the variable")
        return self
