"""Keeps glibc from holding the memory of large frames that were freed.

After the first large block is freed, glibc takes later ones from its heap, where small objects between them keep
their pages in use: reading a 4K file then took three times the memory of its frames.
"""

from __future__ import annotations

import ctypes
import functools
import sys

LARGE_BYTES = 4 * 1024**2  # a frame of 1080p in RGB has 6 MB, one of 720p has 3 MB
M_MMAP_THRESHOLD = -3  # from malloc.h


def prepare_for(height_px: int, width_px: int) -> None:
    """Call before frames of this size are decoded. It changes how this process allocates, and only for large frames.

    Does nothing without glibc.
    """
    if 3 * height_px * width_px >= 2 * LARGE_BYTES:
        _give_back_at_once()


@functools.cache  # once a process
def _give_back_at_once() -> None:
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
