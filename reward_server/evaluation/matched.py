"""The matched protocol: real and generated clips made alike in everything but their motion, then compared.

Generated clips differ from real ones in rate, length, size, sharpness and codec before they differ in motion,
and any of these alone tells the sets apart. `match` gives every clip the same. A clip with a cut in its first
two seconds is not fit for it: cutting is the caller's job.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip, Context, Limits, Media, Submission
from reward_server.decoding.decode import Sampling, decode
from reward_server.decoding.encode import encode_h264
from reward_server.errors import InvalidClip

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What every clip is brought to."""

    fps: float = 8.0
    fps_tolerance: float = 0.15  # a frame is never repeated or blended, so the true rate may be this far off
    frames: int = 16
    side_px: int = 192  # of the square cut from the centre; 192 x 192 is the embedded profile's area
    detail_px: int = 128  # side that still carries all detail: nothing finer survives in either set
    crf: int = 18  # of the h264 re-encoding
    source_area_px: int = 512 * 512  # decoded at about this size before the crop

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            fps=self.fps,
            window_frames=self.frames,
            min_frames=self.frames,
            max_windows=1,
            area_px=self.source_area_px,
        )


def matched_submission(
    submission: Submission, protocol: Protocol, limits: Limits, max_decode_s: float, context: Context
) -> Submission:
    """The clip under the protocol, as mp4 bytes. Raises InvalidClip where it cannot be brought to it."""
    decoded = decode(submission, protocol.sampling, limits, max_decode_s)
    if abs(decoded.fps_used / protocol.fps - 1) > protocol.fps_tolerance:
        raise InvalidClip(
            f"every n-th frame of this clip is {decoded.fps_used:.2f} a second, over {protocol.fps_tolerance:.0%} from "
            f"the protocol's {protocol.fps:g}; leave it out, or give it at a multiple of {protocol.fps:g}"
        )
    clip = match(decoded.windows[0].clip, protocol)
    return Submission(payload=encode_h264(clip, crf=protocol.crf), media=Media.CONTAINER, context=context)


def match(clip: Clip, protocol: Protocol) -> Clip:
    """Centre square, the same sharpness and size, said to be at the protocol's rate."""
    frames = [_soft_square(image, protocol) for image in clip.frames.transpose(0, 2, 3, 1)]
    return Clip(frames=np.stack(frames).transpose(0, 3, 1, 2), fps=protocol.fps)


def _soft_square(image: Images, protocol: Protocol) -> Images:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    small = cv2.resize(square, (protocol.detail_px,) * 2, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (protocol.side_px,) * 2, interpolation=cv2.INTER_CUBIC), np.uint8)
