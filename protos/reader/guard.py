"""Checks the limits for reading one clip: bytes, frames, pixels, seconds of video and seconds of wall time.

Every module of the reader asks the guard before it spends time or memory on what a file claims to hold.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from protos.reader.errors import ClipTooLarge, DecodeTooSlow, EmptyPayload
from protos.types import Limits

# For the user's own files, which can be hours of footage. Only parts of them are decoded.
FILE_LIMITS = Limits(
    max_bytes=64 * 1024**3,
    max_frames=1_000_000,
    max_frame_pixels=7680 * 4320,
    max_duration_s=24 * 3600.0,
    max_clips_per_request=1,
)
THREADS_SETTING = "MOTION_REWARD_DECODER_THREADS"  # the server reads it as a setting, the other users from here
MOST_THREADS = 64
MAX_READ_S = 3600.0  # wall time to read one of the user's own files


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The limits for reading one clip. Each method raises if its value is over the limit; the message says what to do.

    `threads` is the number of threads of one decoder; frames are the same for any number.

    Raises ClipTooLarge, EmptyPayload (`payload`) and DecodeTooSlow (`clock`).
    """

    limits: Limits = FILE_LIMITS
    max_decode_s: float = MAX_READ_S
    threads: int = 1
    started_s: float = field(default_factory=time.monotonic)

    def payload(self, num_bytes: int) -> None:
        if num_bytes == 0:
            raise EmptyPayload("the payload has 0 bytes, a video of a few frames is needed; check the upload")
        self._at_most(num_bytes, self.limits.max_bytes, "bytes", "max_bytes", "compress or cut the clip")

    def frames(self, num_frames: int) -> None:
        self._at_most(num_frames, self.limits.max_frames, "frames", "max_frames", "cut the clip")

    def duration(self, duration_s: float) -> None:
        self._at_most(round(duration_s, 3), self.limits.max_duration_s, "seconds", "max_duration_s", "cut the clip")

    def size(self, height_px: int, width_px: int) -> None:
        if height_px * width_px > self.limits.max_frame_pixels:
            raise ClipTooLarge(
                f"a frame of {width_px}x{height_px} is {height_px * width_px} pixels, over the limit of "
                f"{self.limits.max_frame_pixels}; scale the clip down or raise {_named('max_frame_pixels')}"
            )

    @property
    def late(self) -> bool:
        return time.monotonic() - self.started_s > self.max_decode_s

    def clock(self) -> None:
        if self.late:
            raise DecodeTooSlow(
                f"decoding took over {self.max_decode_s:g} s of wall time; send a smaller or shorter clip, "
                f"use a faster codec (h264) or raise {_named('max_decode_s')}"
            )

    def _at_most(self, value: float, limit: float, unit: str, name: str, remedy: str) -> None:
        if not value <= limit:
            raise ClipTooLarge(
                f"the clip has {value} {unit}, over the limit of {limit}; {remedy} or raise {_named(name)}"
            )


def decoder_threads() -> int:
    """The number of threads of one decoder by the environment variable THREADS_SETTING; 1 if it is not set.

    Raises ValueError for anything but a whole number from 1 to MOST_THREADS.
    """
    text = os.environ.get(THREADS_SETTING, "1")
    if not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
        raise ValueError(f"{THREADS_SETTING}={text!r} must be a whole number from 1 to {MOST_THREADS}; correct it")
    return int(text)


def _named(limit: str) -> str:
    """The limit's name in Python and the server's setting of it."""
    return f"{limit} (on the server MOTION_REWARD_{limit.upper()})"
