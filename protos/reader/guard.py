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
PACKETS_PER_FRAME = 2  # at most, in a lawful file: one for each field, or one more for a reference that is never shown
MAX_OTHER_PACKETS = 200_000  # of the video tracks that are not read, together: 28 minutes at 120 frames per second
MAX_READ_S = 3600.0  # wall time to read one of the user's own files
COMPOSED_PX_PER_S = 40e6  # pixels of an animation that one core composes, converts and compares in a second
MOST_PX_PER_BYTE = 2730  # of an animation: a 12-bit code of LZW stands for at most 4095 equal pixels


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

    def packets(self, num_packets: int, *, several_tracks: bool = False) -> None:
        """Check the packets of the track that is read, before decoding tells how many frames they are.

        `several_tracks`: they are those of all video tracks, while it is open which of them is read.
        """
        most, others, remedy = PACKETS_PER_FRAME * self.limits.max_frames, "", "cut the clip"
        if several_tracks:
            most, others = most + MAX_OTHER_PACKETS, " and other tracks"
            remedy = "copy one video track into a new file (ffmpeg -i IN -map 0:v:0 -c copy OUT), cut the clip"
        if num_packets > most:
            raise ClipTooLarge(
                f"the clip has {num_packets} packets of video, over the limit of {most} for "
                f"{self.limits.max_frames} frames{others}; {remedy} or raise {named('max_frames')}"
            )

    def duration(self, duration_s: float) -> None:
        self._at_most(round(duration_s, 3), self.limits.max_duration_s, "seconds", "max_duration_s", "cut the clip")

    def size(self, height_px: int, width_px: int) -> None:
        if height_px * width_px > self.limits.max_frame_pixels:
            raise ClipTooLarge(
                f"a frame of {width_px}x{height_px} is {height_px * width_px} pixels, over the limit of "
                f"{self.limits.max_frame_pixels}; scale the clip down or raise {named('max_frame_pixels')}"
            )

    def smaller(self, error: Exception) -> str:
        """The reason and the next step for a picture that Pillow refuses to open for its size."""
        most = self.limits.max_frame_pixels
        return f"scale them down to at most {most} pixels, the limit of {named('max_frame_pixels')} ({error})"

    def composed(self, num_frames: int, height_px: int, width_px: int, num_bytes: int) -> None:
        """Check an animation: each frame costs its whole canvas, however few of the file's bytes it takes.

        A file with enough bytes of pictures for so many pixels passes, and then has until `clock` ends it.
        """
        pixels = num_frames * height_px * width_px
        if not self.may_compose(pixels, num_bytes):
            raise ClipTooLarge(
                f"the animation's {num_frames} frames of {width_px}x{height_px} are {pixels} pixels, over the limit of "
                f"{int(COMPOSED_PX_PER_S * self.max_decode_s)} that {self.max_decode_s:g} s allow for, and over what "
                f"its {num_bytes} bytes of pictures can hold; cut the clip, scale it down or raise "
                f"{named('max_decode_s')}"
            )

    def may_compose(self, pixels: int, num_bytes: int) -> bool:
        """Whether an animation of so many pixels in all, and bytes of pictures, is within the limit."""
        return pixels <= max(COMPOSED_PX_PER_S * self.max_decode_s, MOST_PX_PER_BYTE * num_bytes)

    @property
    def late(self) -> bool:
        return time.monotonic() - self.started_s > self.max_decode_s

    def clock(self) -> None:
        if self.late:
            raise DecodeTooSlow(
                f"decoding took over {self.max_decode_s:g} s of wall time; send a smaller or shorter clip, "
                f"use a faster codec (h264) or raise {named('max_decode_s')}"
            )

    def _at_most(self, value: float, limit: float, unit: str, name: str, remedy: str) -> None:
        if not value <= limit:
            raise ClipTooLarge(
                f"the clip has {value} {unit}, over the limit of {limit}; {remedy} or raise {named(name)}"
            )


def decoder_threads() -> int:
    """The number of threads of one decoder by the environment variable THREADS_SETTING; 1 if it is not set.

    Raises ValueError for anything but a whole number from 1 to MOST_THREADS.
    """
    text = os.environ.get(THREADS_SETTING, "1")
    if not (text.isdecimal() and 1 <= int(text) <= MOST_THREADS):
        raise ValueError(f"{THREADS_SETTING}={text!r} must be a whole number from 1 to {MOST_THREADS}; correct it")
    return int(text)


def named(limit: str) -> str:
    """The limit's name in Python and the server's setting of it."""
    return f"{limit} (on the server MOTION_REWARD_{limit.upper()})"
