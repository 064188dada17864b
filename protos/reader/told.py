"""Logs the reader's warnings about a file, for the users that have no answer to put them in."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from protos.types import ClipWarning


def log_warnings(log: logging.Logger, file: Path | str, warnings: Sequence[ClipWarning]) -> None:
    """Log one line with the file's name and all its warnings, if there are any."""
    if warnings:
        log.warning("%s: %s", file, "; ".join(f"{one.code}: {one.message}" for one in warnings))
