"""Estimates motion without weights: Lucas-Kanade tracks and DIS flow from OpenCV, correlation maps in NumPy.

These are the embedded profile's estimators. They run between decoding and the discriminators: `estimate` turns a
clip and its query points into one `Motion`. The code is vectorised over points, thread-safe and sets no global
state. The same clip and queries give the same bits.

Legend: T frames, P = T-1 frame pairs, N points, H, W frame size in pixels, S scales, K offsets per axis.
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
FAR_PX = 1000.0  # replaces infinity where errors are interpolated; confidence is 0 at much smaller errors


class Tracks(NamedTuple):
    places: Floats  # [T,N,2] (x, y) px
    visible: NDArray[np.bool_]  # [T,N]
    error_px: Floats  # [T,N] forward-backward error of the step into frame t; 0 in the first frame


class Flow(NamedTuple):
    forward: Floats  # [P,H,W,2] px, frame t to t+1
    error_px: Floats  # [P,H,W] forward-backward error; infinite where the forward flow leaves the frame


@dataclass(frozen=True, kw_only=True)
class ClassicalEstimators:
    """Settings of the estimators; the defaults are the embedded profile's.

    Raises ValueError unless `window` and `patch` are odd and `num_scales` is at least 1.
    """

    num_scales: int = 3  # pyramid levels of the correlation maps: 1, 1/2, 1/4
    window: int = 5  # offsets per axis of a correlation map, odd, in pixels of its level
    patch: int = 7  # side of a correlated patch, odd, in pixels of its level
    track_window: int = 15  # side of the Lucas-Kanade window, px
    track_levels: int = 3  # pyramid levels above the frame in Lucas-Kanade
    least_texture: float = 1e-5  # smallest eigenvalue, in OpenCV's units, at which Lucas-Kanade tracks a point
    tolerance_px: float = 0.5  # largest forward-backward error, px, of a track that is not lost
    least_resemblance: float = 0.7  # smallest `resemblance` of successive patches of a track that is not lost
    track_tau_px: float = 0.5  # forward-backward error at which a track's confidence falls to 1/e
    flow_tau_px: float = 0.7  # forward-backward error at which the flow's confidence falls to 1/e
    texture_levels: float = 1.0  # slope along the least textured direction, gray levels per px, that halves confidence
    flat_levels: float = 1.0  # contrast, gray levels, below which correlation fades to 0
    noise_levels: float = 4.0  # contrast, gray levels, below which a changed patch may be noise

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or self.patch % 2 == 0 or min(self.window, self.patch, self.num_scales) < 1:
            raise ValueError(f"window and patch must be odd and num_scales at least 1, got {self}")

    def estimate(self, clip: Clip, queries: NDArray[np.integer | np.floating]) -> Motion:
        """Estimate the motion of a clip.

        The clip needs at least two frames. `queries` [N,2] are points (x, y) px inside the first frame. Raises
        ValueError for fewer frames, another shape or a point outside the frame.
        """
        num_frames, _, height, width = clip.frames.shape
        points = np.asarray(queries, np.float32)
        if num_frames < 2 or points.ndim != 2 or points.shape[1] != 2 or not len(points):
            raise ValueError(f"need at least 2 frames and queries [N,2], got {clip} and queries {list(points.shape)}")
        if not _inside(points, height, width).all():
            raise ValueError(f"queries (x, y) must lie in 0..{width - 1}, 0..{height - 1}, got {points.tolist()[:3]}..")
        frames = torch.from_numpy(clip.frames).float()
        gray = gray_levels(frames).numpy()
        coded = np.rint(gray).astype(np.uint8)  # OpenCV's trackers take uint8
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
            # In px, because relative to the map's median error a clip that wobbles everywhere would look certain.
            flow_confidence=torch.from_numpy(np.exp(-flow.error_px / self.flow_tau_px)),
            fps=clip.fps,
        )

    def _tracks(self, gray: Bytes, flow: Flow, points: Floats) -> Tracks:
        """Follow points [N,2] by Lucas-Kanade from frame to frame.

        A lost point stays lost, because it could reappear on another object. Lost points, and points without texture
        to track, follow the flow instead. Holding their position would invent a sudden stop.
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
        """Track points [N,2] by one frame: new positions [N,2], forward-backward error [N] px, and success [N].

        Success means that both directions found enough texture to track.
        """
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
        """Which tracks [N] are not lost: the step stays inside the frame, its forward-backward error is small, and the
        patch around the point looks the same afterwards."""
        before = windows(first.astype(np.float32), here, self.patch)
        after = windows(second.astype(np.float32), there, self.patch)
        alike = resemblance(before, after, 2 * self.noise_levels**2) >= self.least_resemblance
        return alike & (error <= self.tolerance_px) & _inside(there, *first.shape)

    def _correlation(self, gray: Floats, places: Floats) -> Floats:
        """Correlation maps [T,N,S,K,K]; 0 where the tracked position is outside the frame."""
        maps = correlation_maps(
            gray, places, scales=self.num_scales, window=self.window, patch=self.patch, floor=self.flat_levels**2
        )
        return maps * _inside(places, *gray.shape[1:])[..., None, None, None]

    def _confidence(self, gray: Bytes, tracks: Tracks, correlation: Floats) -> Floats:
        """Confidence [T,N] 0..1, the product of three factors.

        It is high where the forward-backward error is small, the patch looks like the query's, and the patch has
        texture in every direction.
        """
        texture = [_sample(_weakest_slope(g), p) for g, p in zip(gray, tracks.places, strict=True)]
        firmness = np.stack(texture) / (np.stack(texture) + self.texture_levels**2)
        likeness = correlation[:, :, 0].max((-2, -1)).clip(0, 1)
        return np.asarray(np.exp(-tracks.error_px / self.track_tau_px) * likeness * firmness, np.float32)


def dense_flow(gray: Bytes) -> Flow:
    """DIS flow of every pair of consecutive frames [T,H,W], with its forward-backward error."""
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # it holds buffers, so one per call
    forward = [np.asarray(estimator.calc(first, second, UNKNOWN), np.float32) for first, second in pairwise(gray)]
    backward = [np.asarray(estimator.calc(second, first, UNKNOWN), np.float32) for first, second in pairwise(gray)]
    error = [_round_trip_px(there, back) for there, back in zip(forward, backward, strict=True)]
    return Flow(np.stack(forward), np.stack(error))


def _round_trip_px(forward: Floats, backward: Floats) -> Floats:
    """Forward-backward error [H,W] px: the distance from a pixel to where forward and then backward flow take it.

    Infinite where the forward flow leaves the frame.
    """
    height, width = forward.shape[:2]
    there = forward + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    error = np.sqrt(np.square(forward + _sample(backward, there)).sum(-1))
    return np.where(_inside(there, height, width), error, np.inf).astype(np.float32)


def _weakest_slope(gray: Bytes) -> Floats:
    """Mean squared slope along the least textured direction around each pixel, [H,W] (gray levels per px)^2."""
    slope_gain = 2 / 255  # OpenCV scales uint8 to 0..1, and its Sobel filter doubles a slope
    return np.asarray(cv2.cornerMinEigenVal(gray, 7) / np.float32(slope_gain**2), np.float32).clip(0)


def _inside(points: Floats, height: int, width: int) -> NDArray[np.bool_]:
    x, y = points[..., 0], points[..., 1]
    return np.asarray((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))


def _sample(image: Floats, points: Floats) -> Floats:
    """Sample an image [H,W] or [H,W,C] bilinearly at points [...,2] clamped to the frame -> [...] or [...,C]."""
    grid = points.reshape(-1, points.shape[-2], 2)
    values = cv2.remap(image, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32).reshape(*points.shape[:-1], *image.shape[2:])
