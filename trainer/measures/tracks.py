"""Tracks points of a clip with Lucas-Kanade, to draw them on sample clips and to measure speeds and accelerations.

T frames, N tracks. Lengths are in pixels of a clip whose shorter side is 256, so that clips of any size compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip

SHORT_SIDE_PX = 256  # lengths refer to a clip of this size; a drawn clip has at least this size
TRAIL_FRAMES = 8
MEASURED, DRAWN = 256, 48  # maximum number of tracks

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrackMotion:
    """Motion along all tracks of a clip, one flat array each. Both are empty if nothing could be tracked."""

    speeds_px_s: Floats  # between neighbouring frames, while the point was followed
    accelerations_px_s2: Floats  # magnitude of the change of velocity


def track_motion(clip: Clip) -> TrackMotion:
    """Speeds and accelerations along at most 256 tracks that start in the first frame."""
    tracks_TN2, alive_TN = _tracks(clip, MEASURED)
    scale = SHORT_SIDE_PX / min(clip.frames.shape[2:])
    velocities = np.diff(tracks_TN2.astype(np.float64) * scale, axis=0) * clip.fps
    accelerations = np.diff(velocities, axis=0) * clip.fps
    return TrackMotion(
        speeds_px_s=np.linalg.norm(velocities, axis=2)[alive_TN[1:]],
        accelerations_px_s2=np.linalg.norm(accelerations, axis=2)[alive_TN[2:]],
    )


def with_tracks(clip: Clip) -> Clip:
    """The clip with the trails of up to 48 tracked points drawn on. Clips smaller than 256 px are enlarged."""
    _, _, height, width = clip.frames.shape
    scale = max(1, -(-SHORT_SIDE_PX // min(height, width)))
    images: list[Any] = [
        cv2.resize(
            np.ascontiguousarray(frame.transpose(1, 2, 0)),
            (width * scale, height * scale),
            interpolation=cv2.INTER_NEAREST,
        )
        for frame in clip.frames
    ]
    tracks_TN2, alive_TN = _tracks(clip, DRAWN)
    drawn = [_draw(image, tracks_TN2[: t + 1] * scale, alive_TN[t]) for t, image in enumerate(images)]
    return Clip(frames=np.ascontiguousarray(np.stack(drawn).transpose(0, 3, 1, 2)), fps=clip.fps)


def gray(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The gray image [H,W] of an RGB frame [3,H,W]."""
    image: Any = cv2.cvtColor(np.ascontiguousarray(frame.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY)
    return image  # type: ignore[no-any-return]


def _tracks(clip: Clip, num_tracks: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Positions [T,N,2] (x, y), and whether each point has been followed up to that frame [T,N]."""
    grays = [gray(frame) for frame in clip.frames]
    found = cv2.goodFeaturesToTrack(grays[0], num_tracks, 0.01, max(2, min(grays[0].shape) / 16))
    points: Any = np.zeros((0, 1, 2), np.float32) if found is None else found
    tracks, alive = [points[:, 0]], [np.ones(len(points), bool)]
    for before, after in pairwise(grays):
        if len(points):
            follow: Any = cv2.calcOpticalFlowPyrLK
            points, status, _ = follow(before, after, points, None, winSize=(15, 15), maxLevel=2)
            alive.append(alive[-1] & (status[:, 0] == 1))
        else:
            alive.append(alive[-1])
        tracks.append(points[:, 0])
    return np.stack(tracks), np.stack(alive)


def _draw(image: NDArray[np.uint8], trail_TN2: NDArray[np.float32], alive_N: NDArray[np.bool_]) -> NDArray[np.uint8]:
    hues = np.linspace(0, 179, max(1, len(alive_N)), endpoint=False)
    for point in np.flatnonzero(alive_N):
        hsv = np.array([[[hues[point], 255, 255]]], np.uint8)
        colour = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        trail = trail_TN2[-TRAIL_FRAMES:, point].round().astype(np.int32)
        cv2.polylines(image, [trail[:, None]], isClosed=False, color=colour, thickness=1, lineType=cv2.LINE_AA)
        cv2.circle(image, trail[-1].tolist(), 2, colour, -1, cv2.LINE_AA)
    return image
