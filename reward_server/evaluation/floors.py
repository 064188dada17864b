"""Computes the floors of `motion-reward evaluate`: plain statistics of a clip that do not measure realism.

A reward that separates real from generated clips no better than these has learnt nothing about realism. They are
computed on the first window that the decoder makes of each clip. Two of them, the plain cues, need only the flow;
`sanity` and `attack` print them as baselines beside the rewards.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import REWARDS, Clip
from reward_server.estimators.classical import UNKNOWN, ClassicalEstimators
from reward_server.motion import random_queries

CUES = ("peak_divergence", "warp_likeness")
VALUES = (*REWARDS, *CUES)  # what `sanity` and `attack` compare
FLOORS = ("flow_magnitude", "frame_difference", "track_roughness", "sharpness", *CUES)
NUM_TRACKS = 256
CUE_SIZE = (320, 180)  # width and height, px, at which the cues are measured
MOST_DIVERGENCE = 1.0  # px per px: beyond it, the flow has failed at a border

Grays = NDArray[np.uint8]


def plain_statistics(clip: Clip, seed: int) -> dict[str, float]:
    """Compute the plain statistics of a clip, by name (FLOORS).

    flow_magnitude    mean length of the DIS flow, in short sides of the frame per second
    frame_difference  mean absolute change of the gray level between frames, 0..255
    track_roughness   mean length of the visible tracks' second differences, px per frame^2; left out if none is visible
    sharpness         mean absolute Laplacian, in gray levels; it measures no motion, but how alike the sets look
    and the two of `plain_cues`
    """
    _, _, height, width = clip.frames.shape
    gray = _grays(clip)
    motion = ClassicalEstimators().estimate(clip, random_queries(seed, NUM_TRACKS, height, width))
    speed = motion.flow.square().sum(1).sqrt().mean().item() * clip.fps / min(height, width)
    bend = (motion.tracks[2:] - 2 * motion.tracks[1:-1] + motion.tracks[:-2]).norm(dim=-1)
    followed = motion.visibility[2:] > 0.5
    values = {
        "flow_magnitude": speed,
        "frame_difference": float(np.abs(np.diff(gray.astype(np.float32), axis=0)).mean()),
        "sharpness": float(np.mean([np.abs(cv2.Laplacian(frame, cv2.CV_32F)).mean() for frame in gray])),
        **plain_cues(clip),
    }
    return values | ({"track_roughness": bend[followed].mean().item()} if followed.any() else {})


def plain_cues(clip: Clip) -> dict[str, float]:
    """Compute the two plain cues of a clip, by name (CUES). Higher is meant to be more real.

    peak_divergence  largest divergence of the DIS flow between frames two apart, up to MOST_DIVERGENCE, in px per px;
                     mean over pairs. Things that move past each other have high values, a moving picture has low ones.
                     Left out for a clip of two frames.
    warp_likeness    negative flow-warp error: minus the mean absolute difference, in gray levels, between a frame
                     and the next one warped back by the flow

    Both are measured at CUE_SIZE, whatever the clip's own size.
    """
    small = np.stack([cv2.resize(frame, CUE_SIZE, interpolation=cv2.INTER_AREA) for frame in _grays(clip)])
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def flow(first: Grays, second: Grays) -> NDArray[np.float32]:
        return np.asarray(search.calc(first, second, UNKNOWN), np.float32)

    peaks = [_peak(flow(first, third)) for first, third in zip(small, small[2:], strict=False)]
    errors = [_warp_error(first, second, flow(first, second)) for first, second in pairwise(small)]
    likeness = {"warp_likeness": -float(np.mean(errors))}
    return likeness | ({"peak_divergence": float(np.mean(peaks))} if peaks else {})


def _grays(clip: Clip) -> Grays:
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.frames.transpose(0, 2, 3, 1)])


def _peak(flow: NDArray[np.float32]) -> float:
    divergence = np.gradient(flow[..., 0], axis=1) + np.gradient(flow[..., 1], axis=0)
    return float(np.minimum(np.abs(divergence).max(), MOST_DIVERGENCE))


def _warp_error(first: Grays, second: Grays, flow: NDArray[np.float32]) -> float:
    height, width = first.shape
    place = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32) + flow
    back = cv2.remap(
        second.astype(np.float32), place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return float(np.abs(back - first).mean())
