"""Says where the server keeps its data by default."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def default_data_dir() -> Path:
    """$XDG_DATA_HOME/motion-reward, else ~/.local/share/motion-reward."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "motion-reward"


def default_queue_dir() -> Path:
    """$XDG_STATE_HOME/motion-reward/queue, else ~/.local/state/...; on macOS under ~/Library/Application Support."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "motion-reward" / "queue"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "motion-reward" / "queue"
