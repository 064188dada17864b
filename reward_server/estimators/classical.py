"""Motion without weights: Lucas-Kanade tracks and DIS flow from OpenCV, correlation maps from NumPy.

The embedded profile's estimators, between decode.py and the discriminators: `estimate` makes one
`Motion` of a clip and its queries. Vectorised over points, safe in threads, and nothing global is
set; the same clip and queries give the same bits.

Legend: T frames, P = T-1 pairs, N points, H, W pixels, S scales, K offsets per axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.estimators.patch_correlation import Floats, correlation_maps, resemblance, windows
from reward_server.motion import Motion, gray_levels, residual_map

Bytes = NDArray[np.uint8]
UNKNOWN = np.empty(0, np.float32)  # OpenCV's "no first guess"
STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.003)  # iterations, px
FAR_PX = 1000.0  # stands for infinity where errors are interpolated: confidence is 0 long before


class Tracks(NamedTuple):
    places: Floats  # [T,N,2] (x, y) px
    visible: NDArray[np.bool_]  # [T,N]
    error_px: Floats  # [T,N] forward-backward error of the step that led here, 0 in the first frame


class Flow(NamedTuple):
    forward: Floats  # [P,H,W,2] px, frame t to t+1
    error_px: Floats  # [P,H,W] distance from where forward then backward flow ends to where it began; inf outside


@dataclass(frozen=True, kw_only=True)
class ClassicalEstimators:
    """Settings of the estimators; the defaults are the embedded profile's."""

    num_scales: int = 3  # pyramid levels of the correlation maps: 1, 1/2, 1/4
    window: int = 5  # offsets per axis of a correlation map, odd, in pixels of its level
    patch: int = 7  # side of a correlated patch, odd, in pixels of its level
    track_window: int = 15  # side of Lucas-Kanade's window, px
    track_levels: int = 3  # pyramid levels above the frame for Lucas-Kanade
    least_texture: float = 1e-5  # smallest eigenvalue, in OpenCV's measure, that Lucas-Kanade works with
    tolerance_px: float = 0.5  # a track that returns further away than this is lost
    least_resemblance: float = 0.7  # as is one whose patch changes more than this from frame to frame
    track_tau_px: float = 0.5  # forward-backward error at which a track's confidence falls to 1/e
    flow_tau_px: float = 0.7  # the same for the flow
    texture_levels: float = 1.0  # slope, gray levels per px, whose weakest direction gives half confidence
    flat_levels: float = 1.0  # contrast, gray levels, below which correlation fades to 0
    noise_levels: float = 4.0  # contrast, gray levels, below which a changed patch may be noise

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or self.patch % 2 == 0 or min(self.window, self.patch, self.num_scales) < 1:
            raise ValueError(f"window and patch must be odd and num_scales at least 1, got {self}")

    def estimate(self, clip: Clip, queries: NDArray[np.integer | np.floating]) -> Motion:
        """Motion of a clip of at least two frames, seen from first-frame points [N,2] (x, y) px inside the frame."""
        num_frames, _, height, width = clip.frames.shape
        points = np.asarray(queries, np.float32)
        if num_frames < 2 or points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"need at least 2 frames and queries [N,2], got {clip} and queries {list(points.shape)}")
        if not _inside(points, height, width).all():
            raise ValueError(f"queries (x, y) must lie in 0..{width - 1}, 0..{height - 1}, got {points.tolist()[:3]}..")
        frames = torch.from_numpy(clip.frames).float()
        gray = gray_levels(frames).numpy()
        coded = np.rint(gray).astype(np.uint8)  # OpenCV's trackers take bytes
        flow = dense_flow(coded)
        tracks = self._tracks(coded, flow, points)
        correlation = self._correlation(gray, tracks.places)
        forward = torch.from_numpy(flow.forward).permute(0, 3, 1, 2).contiguous()
        return Motion(
            tracks=torch.from_numpy(tracks.places),
            visibility=torch.from_numpy(tracks.visible.astype(np.float32)),
            confidence=torch.from_numpy(self._confidence(coded, tracks, correlation)),
            correlation=torch.from_numpy(correlation),
            flow=forward,
            residual=residual_map(frames[None], forward[None])[0],
            # in px and not relative to the map's median, by which a clip that wobbles everywhere would look sure
            flow_confidence=torch.from_numpy(np.exp(-flow.error_px / self.flow_tau_px)),
            fps=clip.fps,
        )

    def _tracks(self, gray: Bytes, flow: Flow, points: Floats) -> Tracks:
        """Chain Lucas-Kanade from frame to frame. A point once lost stays lost, as it may return on something else.

        Lost points, and those without texture to follow, are carried by the flow: they move with their
        surroundings, where a held position would claim a sudden stop that nothing in the clip made.
        """
        steps = [(points, np.ones(len(points), np.bool_), np.zeros(len(points), np.float32))]
        for t, (first, second) in enumerate(pairwise(gray)):
            here, alive, _ = steps[-1]
            there, error, found = self._follow(first, second, here)
            found &= alive
            there = np.where(found[:, None], there, here + _sample(flow.forward[t], here))
            error = np.where(found, error, _sample(np.minimum(flow.error_px[t], FAR_PX), here))
            steps.append((there, alive & self._kept(first, second, here, there, error), error))
        places, visible, errors = (np.stack(column) for column in zip(*steps, strict=True))
        return Tracks(places, visible, errors)

    def _follow(self, first: Bytes, second: Bytes, points: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """One step of [N,2] points: where to, forward-backward error [N] px, and whether there was texture for it."""
        there, found = self._lucas_kanade(first, second, points)
        back, returned = self._lucas_kanade(second, first, there)
        return there, np.hypot(*(back - points).T), found & returned

    def _lucas_kanade(self, first: Bytes, second: Bytes, points: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        there, status, _ = cv2.calcOpticalFlowPyrLK(
            first,
            second,
            points,
            UNKNOWN,
            winSize=(self.track_window, self.track_window),
            maxLevel=self.track_levels,
            criteria=STOP,
            minEigThreshold=self.least_texture,
        )
        return np.asarray(there, np.float32), np.asarray(status).ravel() == 1

    def _kept(self, first: Bytes, second: Bytes, here: Floats, there: Floats, error: Floats) -> NDArray[np.bool_]:
        """Whether a step [N] stays inside, returns on itself, and leaves the patch as it was."""
        before = windows(first.astype(np.float32), here, self.patch)
        after = windows(second.astype(np.float32), there, self.patch)
        alike = resemblance(before, after, 2 * self.noise_levels**2) >= self.least_resemblance
        return alike & (error <= self.tolerance_px) & _inside(there, *first.shape)

    def _correlation(self, gray: Floats, places: Floats) -> Floats:
        """Correlation maps [T,N,S,K,K]; 0 where the tracked place is outside the frame."""
        maps = correlation_maps(
            gray, places, scales=self.num_scales, window=self.window, patch=self.patch, floor=self.flat_levels**2
        )
        return maps * _inside(places, *gray.shape[1:])[..., None, None, None]

    def _confidence(self, gray: Bytes, tracks: Tracks, correlation: Floats) -> Floats:
        """[T,N] 0..1: the step returns on itself, the query is seen here, and has texture in every direction."""
        texture = [_sample(_weakest_slope(g), p) for g, p in zip(gray, tracks.places, strict=True)]
        firmness = np.stack(texture) / (np.stack(texture) + self.texture_levels**2)
        likeness = correlation[:, :, 0].max((-2, -1)).clip(0, 1)
        return np.asarray(np.exp(-tracks.error_px / self.track_tau_px) * likeness * firmness, np.float32)


def dense_flow(gray: Bytes) -> Flow:
    """DIS flow of every consecutive pair of [T,H,W] frames, with its forward-backward error."""
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # holds buffers: one per call
    forward = [np.asarray(estimator.calc(first, second, UNKNOWN), np.float32) for first, second in pairwise(gray)]
    backward = [np.asarray(estimator.calc(second, first, UNKNOWN), np.float32) for first, second in pairwise(gray)]
    error = [_round_trip_px(there, back) for there, back in zip(forward, backward, strict=True)]
    return Flow(np.stack(forward), np.stack(error))


def _round_trip_px(forward: Floats, backward: Floats) -> Floats:
    """Distance [H,W] from each pixel to where forward then backward flow leads; infinite where it leaves the frame."""
    height, width = forward.shape[:2]
    there = forward + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    error = np.sqrt(np.square(forward + _sample(backward, there)).sum(-1))
    return np.where(_inside(there, height, width), error, np.inf).astype(np.float32)


def _weakest_slope(gray: Bytes) -> Floats:
    """Mean squared slope along the least textured direction around each pixel, [H,W] (gray levels per px)^2."""
    slope_gain = 2 / 255  # OpenCV scales bytes to 0..1 and its Sobel sees a slope twice
    return np.asarray(cv2.cornerMinEigenVal(gray, 7) / np.float32(slope_gain**2), np.float32).clip(0)


def _inside(points: Floats, height: int, width: int) -> NDArray[np.bool_]:
    x, y = points[..., 0], points[..., 1]
    return np.asarray((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))


def _sample(image: Floats, points: Floats) -> Floats:
    """Bilinear values of [H,W] or [H,W,C] at [...,2] points, clamped to the frame -> [...] or [...,C]."""
    grid = points.reshape(-1, points.shape[-2], 2)
    values = cv2.remap(image, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32).reshape(*points.shape[:-1], *image.shape[2:])
