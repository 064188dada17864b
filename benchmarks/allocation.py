"""Sets how glibc allocates big blocks: with its defaults, or keeping freed blocks for reuse.

By default glibc returns each big block to the system and faults its pages in again at the next use. That takes up to
half of the official code's time. `against_official.py` measures the official code both ways.
"""

from __future__ import annotations

import ctypes

MIB = 1024**2
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # mallopt's parameters, malloc.h


def keep_big_blocks(limit_mib: int = 1024) -> bool:
    """Take blocks up to `limit_mib` from the heap and never trim it. Returns False if this is not glibc."""
    return _told({MMAP_THRESHOLD: limit_mib * MIB, TRIM_THRESHOLD: 2047 * MIB, TOP_PAD: 64 * MIB})


def as_shipped() -> bool:
    """Set the thresholds that glibc reaches by itself once a process has freed big blocks, and return free memory.

    Returns False if this is not glibc.
    """
    done = _told({MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8})
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _told(options: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and sum(mallopt(name, value) for name, value in options.items()) == len(options)
