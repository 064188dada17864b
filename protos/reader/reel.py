"""Defines Reel, a clip that is open but not decoded: frame times, breaks, and a function that gives its pictures.

containers.py, animation.py and tensors.py each open a kind of file as a Reel. source.py turns a Reel into a Source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.types import ClipWarning

Frame = NDArray[np.uint8]  # [H,W,3] RGB, 0..255
Times = NDArray[np.float64]  # [T] seconds, rising


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded frame, converted only when `rgb` is called.

    `height_px` and `width_px` are the displayed size: after rotation and with square pixels. `rgb()` is upright, with
    transparency over black, but keeps the stored pixel grid if pixels are not square. `luma()` is the brightness as
    decoded, uint8 [h,w]. It is cheap, and enough to tell frames apart.
    """

    height_px: int
    width_px: int
    rgb: Callable[[], Frame]
    luma: Callable[[], NDArray[np.uint8]]
    rotation_deg: int = 0
    interlaced: bool = False  # rgb() removes the combs
    hdr: bool = False  # rgb() is mapped to standard dynamic range


@dataclass(frozen=True, kw_only=True)
class Track:
    """One video track of a file. `index` is the number for `track=`; `frames` is the number of packets."""

    index: int
    codec: str
    frames: int
    default: bool
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Reel:
    """A clip that is open but not decoded.

    `times_s` are the frames' presentation times, as the file gives them without decoding. `breaks` are the positions
    of the frames that begin a new stretch, after a jump of time.

    `pictures(wanted)` decodes on demand and yields (time in seconds, picture) in order of time. It yields at least
    the frames at the positions `wanted`, or all for None. It raises ClipTooLarge, DecodeTooSlow or UnreadableClip;
    missing frames are reported at the end. It raises Recount if decoding gives other times than the file does.

    `reads_all(wanted)` says whether `pictures(wanted)` is the same as `pictures(None)`.

    `counted()` decodes everything. It gives a Reel with the true times, and each frame's displayed (height, width).
    """

    codec: str
    times_s: Times
    pictures: Callable[[Sequence[int] | None], Iterator[tuple[float, Picture]]]
    breaks: tuple[int, ...] = ()
    tracks: tuple[Track, ...] = ()
    warnings: tuple[ClipWarning, ...] = ()
    reads_all: Callable[[Sequence[int]], bool] = lambda wanted: False
    stoppable: bool = True  # frame times are checked one by one, so decoding can stop early
    counted: Callable[[], tuple[Reel, list[tuple[int, int]]]] | None = None


class Recount(Exception):
    """Decoding gave other frames than the container promised. source.py then counts them and reads again."""
