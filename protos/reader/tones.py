"""Maps HDR brightness to standard dynamic range, and removes the combs of interlaced frames.

HDR video looks pale and dark if its transfer curve is not undone. The curves are PQ and HLG from ITU-R BT.2100.
Paper white, 203 cd/m2 (BT.2408), stays bright, and brighter values are compressed.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18  # transfer curves in ffmpeg's numbers (ITU-T H.273)
PAPER_WHITE, PEAK = 203.0, 1000.0  # cd/m2
SCREEN_GAMMA = 2.2
BAND_ROWS = 64  # looking a whole 4K frame up in a table would take 200 MB, eight bytes for each value
COMB_LEVELS = 12  # a pixel this much brighter or darker than both its vertical neighbours is part of a comb


def mapped(deep: NDArray[np.uint16], curve: int) -> NDArray[np.uint8]:
    """uint16 [H,W,3] on an HDR curve -> uint8 [H,W,3] in standard dynamic range."""
    table, frame = _table(curve), np.empty(deep.shape, np.uint8)
    for top in range(0, len(deep), BAND_ROWS):
        frame[top : top + BAND_ROWS] = table[deep[top : top + BAND_ROWS]]
    return frame


@functools.cache
def _table(curve: int) -> NDArray[np.uint8]:
    signal = np.arange(65536) / 65535
    light = (_pq(signal) if curve == PQ else _hlg(signal)) / PAPER_WHITE
    white = PEAK / PAPER_WHITE
    squeezed = np.clip(light * (1 + light / white**2) / (1 + light), 0, 1)
    return np.rint(255 * squeezed ** (1 / SCREEN_GAMMA)).astype(np.uint8)


def _pq(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness in cd/m2 of a PQ signal 0..1."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return np.asarray(10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))


def _hlg(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness in cd/m2 of an HLG signal 0..1 on a screen of PEAK cd/m2, with system gamma 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return np.asarray(PEAK * scene**1.2)


def without_combs(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Remove combs from an interlaced frame uint8 [H,W,3].

    Pixels of odd rows that stand out are replaced by the mean of the pixels above and below.
    """
    if frame.shape[0] < 3:
        return frame
    odd, above, below = frame[1:-1:2], frame[0:-2:2], frame[2::2]
    more, less = cv2.subtract(odd, cv2.max(above, below)), cv2.subtract(cv2.min(above, below), odd)  # or 0
    whole = frame.copy()
    np.copyto(whole[1:-1:2], (above & below) + ((above ^ below) >> 1), where=cv2.max(more, less) > COMB_LEVELS)
    return whole
