"""Plain statistics of a clip that know nothing of realism: what a reward must beat to have learnt anything.

Used by `motion-reward evaluate`, on the first window that the decoder makes of each clip.
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
    """Numbers that know nothing of realism, FLOORS by name; a statistic that does not exist is left out.

    flow_magnitude    mean length of the DIS flow, short sides of the frame per second
    frame_difference  mean absolute change of the grey level from frame to frame, 0..255
    track_roughness   mean length of the tracks' second differences where visible, px per frame^2
    sharpness         mean absolute Laplacian, grey levels: no motion at all, it shows how alike the sets look
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
