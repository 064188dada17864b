"""Reads from Linux how much memory a process has had."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mib(pid: int) -> float:
    """The most resident memory, in MiB, that a process has had; 0 if it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
