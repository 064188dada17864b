"""A clip that is open but not decoded yet, and the guard that keeps its decoding within the limits.

Every kind of payload (containers.py, webp.py, tensors in decode.py) opens into a Reel; decode.py plans
on its timestamps and only then pulls pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protos.types import Limits
from reward_server.errors import ClipTooLarge, DecodeTooSlow, EmptyPayload


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded frame, converted only when `rgb` is called.

    `height_px` and `width_px` are as displayed: after rotation and with square pixels. `rgb()` is uint8
    [H,W,3], 0..255, upright, transparency over black; where pixels are not square it is still as coded.
    """

    height_px: int
    width_px: int
    rgb: Callable[[], NDArray[np.uint8]]
    rotation_deg: int = 0


@dataclass(frozen=True, kw_only=True)
class Reel:
    """`times_s` [T] are the frames' presentation times, rising, as the container tells them without decoding.

    `pictures` decodes as it is pulled and yields (time in seconds, picture) with rising times. It raises
    UnreadableClip, ClipTooLarge or DecodeTooSlow, the first only at its end if frames are missing.
    """

    codec: str
    times_s: NDArray[np.float64]
    pictures: Iterator[tuple[float, Picture]]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The limits of one decode; each method raises where its value is over, and says what to do about it."""

    limits: Limits
    max_decode_s: float
    started_s: float = field(default_factory=time.monotonic)

    def payload(self, num_bytes: int) -> None:
        if num_bytes == 0:
            raise EmptyPayload("the payload has 0 bytes; at least a video of a few frames is needed: check the upload")
        self._at_most(num_bytes, self.limits.max_bytes, "bytes", "max_bytes", "compress or cut the clip")

    def frames(self, num_frames: int) -> None:
        self._at_most(num_frames, self.limits.max_frames, "frames", "max_frames", "cut the clip")

    def duration(self, duration_s: float) -> None:
        self._at_most(round(duration_s, 3), self.limits.max_duration_s, "seconds", "max_duration_s", "cut the clip")

    def size(self, height_px: int, width_px: int) -> None:
        if height_px * width_px > self.limits.max_frame_pixels:
            raise ClipTooLarge(
                f"a frame of {width_px}x{height_px} is {height_px * width_px} pixels, over the limit of "
                f"{self.limits.max_frame_pixels}; scale the clip down or raise max_frame_pixels"
            )

    @property
    def late(self) -> bool:
        return time.monotonic() - self.started_s > self.max_decode_s

    def clock(self) -> None:
        if self.late:
            raise DecodeTooSlow(
                f"decoding took over {self.max_decode_s:g} s of wall time; send a smaller or shorter clip, "
                "an easier codec (h264), or raise max_decode_s"
            )

    def _at_most(self, value: float, limit: float, unit: str, name: str, remedy: str) -> None:
        if not value <= limit:
            raise ClipTooLarge(f"the clip has {value} {unit}, over the limit of {limit}; {remedy} or raise {name}")
