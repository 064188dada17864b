"""Computes the floors of `motion-reward evaluate`: plain statistics of a clip that do not measure realism.

A reward that separates real from generated clips no better than these has learnt nothing about realism. They are
computed on the first window that the decoder makes of each clip.
"""

from __future__ import annotations

import cv2
import numpy as np

from protos.types import Clip
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.motion import random_queries

FLOORS = ("flow_magnitude", "frame_difference", "track_roughness", "sharpness")
NUM_TRACKS = 256


def plain_statistics(clip: Clip, seed: int) -> dict[str, float]:
    """Compute the plain statistics of a clip, by name (FLOORS).

    flow_magnitude    mean length of the DIS flow, in short sides of the frame per second
    frame_difference  mean absolute change of the gray level between frames, 0..255
    track_roughness   mean length of the visible tracks' second differences, px per frame^2; left out if none is visible
    sharpness         mean absolute Laplacian, in gray levels; it measures no motion, but how alike the sets look
    """
    _, _, height, width = clip.frames.shape
    gray = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.frames.transpose(0, 2, 3, 1)])
    motion = ClassicalEstimators().estimate(clip, random_queries(seed, NUM_TRACKS, height, width))
    speed = motion.flow.square().sum(1).sqrt().mean().item() * clip.fps / min(height, width)
    bend = (motion.tracks[2:] - 2 * motion.tracks[1:-1] + motion.tracks[:-2]).norm(dim=-1)
    followed = motion.visibility[2:] > 0.5
    values = {
        "flow_magnitude": speed,
        "frame_difference": float(np.abs(np.diff(gray.astype(np.float32), axis=0)).mean()),
        "sharpness": float(np.mean([np.abs(cv2.Laplacian(frame, cv2.CV_32F)).mean() for frame in gray])),
    }
    return values | ({"track_roughness": bend[followed].mean().item()} if followed.any() else {})
