"""Implements the matched protocol, which makes real and generated clips alike in everything but their motion.

Generated clips also differ from real clips in rate, length, size, sharpness and codec, and any one of these separates
the sets. `matched_submission` brings every clip to the same values. Clips must not have a cut in their first two
seconds; the caller has to remove cuts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip, Context, Media, Submission
from reward_server.decoding.decode import Sampling
from reward_server.decoding.encode import encode_h264
from reward_server.errors import InvalidClip
from reward_server.evaluation.scoring import RewardSource
from reward_server.settings import Settings

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The values to which every clip is brought."""

    fps: float = 8.0
    fps_tolerance: float = 0.15  # largest relative error of the rate; frames are never repeated or blended to meet it
    frames: int = 16
    side_px: int = 192  # side of the square cut from the centre; 192 x 192 is the embedded profile's area
    detail_px: int = 128  # the square is shrunk to this side first, so that finer detail is lost in both sets
    crf: int = 18  # quality of the h264 encoding
    source_area_px: int = 512 * 512  # clips are decoded at about this size before the crop

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            fps=self.fps,
            window_frames=self.frames,
            min_frames=self.frames,
            max_windows=1,
            area_px=self.source_area_px,
        )


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A clip under the protocol, as mp4 bytes, and the rate that its frames really had, in frames per second.

    The rate still differs by up to `fps_tolerance`, so it can tell the sets apart: `strata.balanced` balances it. It is
    None for a clip that is scored as it is, whose rate the scorer reports.
    """

    submission: Submission
    rate: float | None


def matched_submission(
    submission: Submission, protocol: Protocol, scorer: RewardSource, settings: Settings, context: Context
) -> Matched:
    """Bring a clip to the protocol. Raises InvalidClip if that is not possible."""
    decoded = scorer.decode(submission, protocol.sampling, settings)
    if abs(decoded.fps_used / protocol.fps - 1) > protocol.fps_tolerance:
        raise InvalidClip(
            f"taking every n-th frame of this clip gives {decoded.fps_used:.2f} fps, more than "
            f"{protocol.fps_tolerance:.0%} away from the protocol's {protocol.fps:g} fps; leave the clip out, or give "
            f"it at a multiple of {protocol.fps:g} fps"
        )
    clip = match(decoded.windows[0].clip, protocol)
    made = Submission(payload=encode_h264(clip, crf=protocol.crf), media=Media.CONTAINER, context=context)
    return Matched(submission=made, rate=decoded.fps_used)


def match(clip: Clip, protocol: Protocol) -> Clip:
    """Cut out the centre square of every frame, with the protocol's sharpness and size, and set the protocol's fps."""
    frames = [_soft_square(image, protocol) for image in clip.frames.transpose(0, 2, 3, 1)]
    return Clip(frames=np.stack(frames).transpose(0, 3, 1, 2), fps=protocol.fps)


def _soft_square(image: Images, protocol: Protocol) -> Images:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    small = cv2.resize(square, (protocol.detail_px,) * 2, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (protocol.side_px,) * 2, interpolation=cv2.INTER_CUBIC), np.uint8)
