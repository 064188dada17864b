"""A clip that is open but not decoded yet: its frames' times, where it breaks, and how to get its pictures.

Every kind of file (containers.py, animation.py, tensors.py) opens into a Reel; source.py turns it into a Source.
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

    `height_px` and `width_px` are as displayed: after rotation and with square pixels. `rgb()` is upright, with
    transparency over black; where pixels are not square it is still as coded. `luma()` is the picture's brightness
    as decoded, uint8 [h,w]: cheap, and enough to tell frames apart.
    """

    height_px: int
    width_px: int
    rgb: Callable[[], Frame]
    luma: Callable[[], NDArray[np.uint8]]
    rotation_deg: int = 0
    interlaced: bool = False  # rgb() is without combs
    hdr: bool = False  # rgb() is as an ordinary screen shows it


@dataclass(frozen=True, kw_only=True)
class Track:
    """One video track of a file, `index` as `track=` counts them; `frames` counts its packets."""

    index: int
    codec: str
    frames: int
    default: bool
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Reel:
    """`times_s` are the frames' presentation times as the file tells them without decoding.

    `breaks` are the frames that begin a new stretch: time jumps there. `pictures(wanted)` decodes as it is pulled and
    yields (time in seconds, picture) with rising times: at least the frames at the positions `wanted`, or all for
    None. It raises UnreadableClip, ClipTooLarge or DecodeTooSlow, the first only at its end if frames are missing,
    and Recount where decoding shows other times than the file tells. `counted()` decodes everything to know the true
    times, and gives a Reel that has them, and each frame's (height, width) as displayed.
    """

    codec: str
    times_s: Times
    pictures: Callable[[Sequence[int] | None], Iterator[tuple[float, Picture]]]
    breaks: tuple[int, ...] = ()
    tracks: tuple[Track, ...] = ()
    warnings: tuple[ClipWarning, ...] = ()
    stoppable: bool = True  # each frame's time is checked as it comes, not all at the end
    counted: Callable[[], tuple[Reel, list[tuple[int, int]]]] | None = None


class Recount(Exception):
    """Decoding gave other frames than the container promised; source.py counts them and asks again."""
