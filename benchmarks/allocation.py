"""How glibc hands out big blocks: as it does by itself, or keeping them for reuse.

By itself it returns each to the system and faults it in again, which takes up to half of the official
code's time. `against_official.py` measures that code both ways.
"""

from __future__ import annotations

import ctypes

MIB = 1024**2
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # mallopt's parameters, malloc.h


def keep_big_blocks(limit_mib: int = 1024) -> bool:
    """Blocks up to `limit_mib` come from the heap, which is not trimmed before. False where this is not glibc."""
    return _told({MMAP_THRESHOLD: limit_mib * MIB, TRIM_THRESHOLD: 2047 * MIB, TOP_PAD: 64 * MIB})


def as_shipped() -> bool:
    """Where glibc's own moving thresholds end up once a process has freed big blocks; also returns free memory."""
    done = _told({MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8})
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _told(options: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and sum(mallopt(name, value) for name, value in options.items()) == len(options)
