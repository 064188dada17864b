"""Implements the faults that treat what moves on its own and the rest of the scene differently.

The camera's motion is fitted to optical flow between neighbouring frames; what is left of the flow is motion of its
own. Each fault takes (clip, strength in (0,1], rng) and returns a clip with the same number of frames.

Shapes: T frames, H, W frame size in pixels, S the short side of the frame, h, w the size at which flow is searched.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.faults.frames import image_of
from reward_server.faults.interpolation import Floats, pixel_grid, sample_linear, sample_sharp
from reward_server.faults.regions import soft_region

SEARCH_SIDE = 72  # px; the short side of the frames in which flow is searched
STILL = 0.002  # S per frame; motion of its own below this is noise of the flow
SHARE = (0.15, 0.35)  # share of the frame that is taken for the subject
GAIN = 1.5  # extra motion of its own at strength 1 of exaggerated
FARTHEST = 0.12  # bound of the extra displacement, in S


def subject_frozen(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Freeze the moving subject while the camera goes on: the last share `strength` of the clip.

    The region that moves most on its own then shows one frame, the first at 1, carried along by the camera's motion.
    """
    num_frames, _, height, width = clip.frames.shape
    motion = _Motion(clip)
    mask = motion.subject(rng, carried=True)
    held = _held(num_frames, strength)
    image = image_of(clip.frames[held])
    frames = clip.frames.copy()
    for t in range(held + 1, num_frames):
        since_held = motion.cameras[t] @ np.linalg.inv(motion.cameras[held])
        content = cv2.warpAffine(
            image, since_held[:2], (width, height), flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101
        )
        region = cv2.warpAffine(mask, motion.cameras[t][:2], (width, height))
        inside = np.asarray(content.transpose(2, 0, 1), np.uint8)
        frames[t] = _layered(inside, frames[t], np.asarray(region, np.float32))
    return Clip(frames=frames, fps=clip.fps)


def background_frozen(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Hold one frame, the first at 1, around the moving subject, for the last share `strength` of the clip."""
    mask = _Motion(clip).subject(rng, carried=False)
    held = _held(len(clip.frames), strength)
    frames = clip.frames.copy()
    for t in range(held + 1, len(frames)):
        frames[t] = _layered(frames[t], clip.frames[held], mask)
    return Clip(frames=frames, fps=clip.fps)


def exaggerated(clip: Clip, strength: float, rng: np.random.Generator) -> Clip:
    """Enlarge motion of its own, as a displacement from the first frame, by 1 + GAIN `strength`, up to a bound."""
    _, _, height, width = clip.frames.shape
    grid, farthest = pixel_grid(height, width), np.float32(FARTHEST * min(height, width))
    frames = clip.frames.copy()
    for t, moved in enumerate(_Motion(clip).displacements(), start=1):
        extra = np.asarray(cv2.resize(moved, (width, height)) * np.float32(GAIN * strength), np.float32)
        length = np.hypot(extra[..., 0], extra[..., 1])[..., None]
        extra *= farthest * np.tanh(length / farthest) / np.maximum(length, 1e-6)
        extra = sample_linear(extra, grid - extra)
        frames[t] = sample_sharp(image_of(frames[t]), grid - extra).transpose(2, 0, 1)
    return Clip(frames=frames, fps=clip.fps)


class _Motion:
    """The motion of a clip, apart into the camera's and what is left.

    `cameras` [T] are affine maps 3x3 from pixels of the first frame to those of frame t. `flows` and `own` [T-1,h,w,2]
    lead from frame t+1 back to frame t, in pixels of the clip: all motion, and what the camera does not explain.
    """

    def __init__(self, clip: Clip) -> None:
        _, _, self.height, self.width = clip.frames.shape
        self.side = min(self.height, self.width)
        scale = SEARCH_SIDE / self.side
        size = (round(self.width * scale), round(self.height * scale))
        small = [cv2.resize(_gray(frame), size, interpolation=cv2.INTER_AREA) for frame in clip.frames]
        self.small_grid = pixel_grid(size[1], size[0])
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        search.setFinestScale(0)
        self.flows, self.own, self.cameras = [], [], [np.eye(3)]
        for before, after in pairwise(small):
            flow = np.asarray(search.calc(after, before, np.zeros((*after.shape, 2), np.float32)), np.float32)
            camera = _camera(flow, self.small_grid)
            explained = self.small_grid @ camera[:2, :2].T.astype(np.float32) + camera[:2, 2].astype(np.float32)
            self.flows.append(flow)
            self.own.append(flow - (explained - self.small_grid))
            self.cameras.append(np.linalg.inv(_rescaled(camera, 1 / scale)) @ self.cameras[-1])
        self.scale = scale

    def subject(self, rng: np.random.Generator, *, carried: bool) -> Floats:
        """A soft mask [H,W] of the region that moves most on its own, or a random region if nothing does.

        `carried` sums that motion in the first frame's place, along the camera's motion, else in its place on screen.
        """
        size = (self.small_grid.shape[1], self.small_grid.shape[0])
        total = np.zeros(size[::-1], np.float32)
        for own, camera in zip(self.own, self.cameras[1:], strict=True):
            speed = np.minimum(np.hypot(own[..., 0], own[..., 1]), 0.1 * SEARCH_SIDE)
            back = _rescaled(np.linalg.inv(camera), self.scale) if carried else np.eye(3)
            total += cv2.warpAffine(speed, back[:2], size) / len(self.own)
        wanted = cv2.GaussianBlur(total, (0, 0), 0.06 * SEARCH_SIDE)
        moves = bool(np.quantile(wanted, 0.95) > STILL * SEARCH_SIDE)
        where = np.asarray(cv2.resize(wanted, (self.width, self.height)), np.float32) if moves else None
        return soft_region(self.height, self.width, rng, rng.uniform(*SHARE), softness=0.4, wanted=where)

    def displacements(self) -> list[Floats]:
        """For each frame after the first, how far its content has moved on its own since then: [h,w,2] in pixels."""
        total, totals = np.zeros_like(self.small_grid), []
        for flow, own in zip(self.flows, self.own, strict=True):
            total = sample_linear(total, self.small_grid + flow) - own
            smooth = cv2.GaussianBlur(total, (0, 0), 0.03 * SEARCH_SIDE)
            totals.append(np.asarray(smooth / np.float32(self.scale), np.float32))
        return totals


def _camera(flow: Floats, grid: Floats) -> NDArray[np.float64]:
    """The affine map 3x3 that explains most of a flow [h,w,2]; the identity if there is none."""
    points = grid[2::5, 2::5].reshape(-1, 2)
    found, _ = cv2.estimateAffine2D(
        points, points + flow[2::5, 2::5].reshape(-1, 2), ransacReprojThreshold=0.3, maxIters=300, refineIters=5
    )
    return np.eye(3) if found is None else np.vstack([found, [0, 0, 1]])


def _rescaled(camera: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    """The same map in pixels of a frame that is larger by `scale`."""
    return np.asarray(camera * [[1, 1, scale], [1, 1, scale], [1, 1, 1]], np.float64)


def _layered(inside: NDArray[np.uint8], outside: NDArray[np.uint8], mask: Floats) -> NDArray[np.uint8]:
    base = outside.astype(np.float32)
    return np.asarray(np.rint(base + mask * (inside - base)), np.uint8)


def _held(num_frames: int, strength: float) -> int:
    """The frame at which the last share `strength` of a clip begins, as in `static`."""
    return min(round((1 - strength) * (num_frames - 1)), num_frames - 2)


def _gray(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image_of(frame), cv2.COLOR_RGB2GRAY), np.uint8)
