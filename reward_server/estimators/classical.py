"""Motion without weights: Lucas-Kanade tracks, DIS flow and correlation maps, from OpenCV and NumPy.

The embedded profile's estimators, between decode.py and the discriminators: `estimate` makes one
`Motion` of a clip and its queries. Vectorised over points, safe in threads, nothing global is set.

Same clip and queries give the same bits for a given `cv2.getNumThreads()`: DIS cuts the frame into
that many stripes, and its patches learn from neighbours inside a stripe only. The worker sets 1.

Legend: T frames, P = T-1 pairs, N points, H, W pixels, S scales, K window, R patch, M = T*N places.
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
from reward_server.motion import Motion, gray_levels, residual_map

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
UNKNOWN = np.empty(0, np.float32)  # OpenCV's "no first guess"


class Tracks(NamedTuple):
    places: Floats  # [T,N,2] (x, y) px
    visible: NDArray[np.bool_]  # [T,N]
    error_px: Floats  # [T,N] forward-backward error of the step that led here, 0 in the first frame


class Flow(NamedTuple):
    forward: Floats  # [P,H,W,2] px, frame t to t+1
    backward: Floats  # [P,H,W,2] px, frame t+1 to t
    error_px: Floats  # [P,H,W] distance from where forward then backward ends to where it began; inf outside


@dataclass(frozen=True, kw_only=True)
class ClassicalEstimators:
    """Settings of the estimators; the defaults are the embedded profile's and part of its preprocessing digest."""

    num_scales: int = 3  # pyramid levels of the correlation maps: 1, 1/2, 1/4
    window: int = 5  # offsets per axis of a correlation map, odd, in pixels of its level
    patch: int = 7  # side of the correlated patch, odd, in pixels of its level
    track_window: int = 15  # side of Lucas-Kanade's window, px
    track_levels: int = 3  # pyramid levels above the frame for Lucas-Kanade
    track_tolerance_px: float = 1.0  # a track that returns further away than this is lost
    track_tau_px: float = 0.5  # forward-backward error at which a track's confidence falls to 1/e
    flow_tau_px: float = 0.7  # the same for the flow
    texture_levels: float = 2.0  # gradient, gray levels per px, whose weakest direction gives half confidence
    flat_levels: float = 1.0  # contrast, gray levels, below which a patch is noise and correlation fades to 0

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or self.patch % 2 == 0 or min(self.window, self.patch, self.num_scales) < 1:
            raise ValueError(f"window and patch must be odd, num_scales at least 1, got {self}")

    def estimate(self, clip: Clip, queries: NDArray[np.integer | np.floating]) -> Motion:
        """Motion of a clip's first-frame points, queries [N,2] (x, y) px inside the frame; at least two frames."""
        num_frames, _, height, width = clip.frames.shape
        points = np.asarray(queries, np.float32)
        if num_frames < 2 or points.ndim != 2 or points.shape[1] != 2 or not _inside(points, height, width).all():
            raise ValueError(f"need 2 frames and queries [N,2] inside, got {clip} and queries {list(points.shape)}")
        frames = torch.from_numpy(clip.frames).float()
        gray = gray_levels(frames).numpy()
        coded = np.rint(gray).astype(np.uint8)  # OpenCV's trackers take bytes
        flow = dense_flow(coded)
        tracks = self._tracks(coded, flow, points)
        correlation = self._correlation(gray, tracks.places)
        confidence = self._confidence(coded, tracks, correlation)
        forward = torch.from_numpy(flow.forward.transpose(0, 3, 1, 2).copy())
        return Motion(
            tracks=torch.from_numpy(tracks.places),
            visibility=torch.from_numpy(tracks.visible.astype(np.float32)),
            confidence=torch.from_numpy(confidence),
            correlation=torch.from_numpy(correlation),
            flow=forward,
            residual=residual_map(frames[None], forward[None])[0],
            # in px, not relative to the map's median, by which a clip wobbling everywhere would look sure
            flow_confidence=torch.from_numpy(np.exp(-flow.error_px / self.flow_tau_px)),
            fps=clip.fps,
        )

    def _tracks(self, gray: Bytes, flow: Flow, points: Floats) -> Tracks:
        """Chain Lucas-Kanade from frame to frame. A point once lost stays lost, as it may return on something else.

        A lost point is carried on by the flow: it then moves with its surroundings, where a held position would
        claim a sudden stop that nothing in the clip made.
        """
        places, visible, errors = [points], [np.ones(len(points), bool)], [np.zeros(len(points), np.float32)]
        height, width = gray.shape[1:]
        for t in range(len(gray) - 1):
            here, alive = places[-1], visible[-1]
            there, error = self._follow(gray[t], gray[t + 1], here)
            alive = alive & (error <= self.track_tolerance_px) & _inside(there, height, width)
            carried = here + _sample(flow.forward[t], here)
            places.append(np.where(alive[:, None], there, carried))
            visible.append(alive)
            errors.append(np.where(alive, error, _sample(np.minimum(flow.error_px[t], 1e3), here)))
        return Tracks(np.stack(places), np.stack(visible), np.stack(errors))

    def _follow(self, first: Bytes, second: Bytes, points: Floats) -> tuple[Floats, Floats]:
        """One step of [N,2] points and its forward-backward error [N] px, infinite where Lucas-Kanade gave up."""
        there, found = self._lucas_kanade(first, second, points)
        back, returned = self._lucas_kanade(second, first, there)
        error = np.hypot(*(back - points).T)
        return there, np.where(found & returned, error, np.float32(np.inf))

    def _lucas_kanade(self, first: Bytes, second: Bytes, points: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        size, stop = (
            (self.track_window, self.track_window),
            (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.003),
        )
        there, status, _ = cv2.calcOpticalFlowPyrLK(
            first, second, points, UNKNOWN, winSize=size, maxLevel=self.track_levels, criteria=stop
        )
        return np.asarray(there, np.float32), np.asarray(status).ravel() == 1

    def _confidence(self, gray: Bytes, tracks: Tracks, correlation: Floats) -> Floats:
        """[T,N] 0..1: returns on itself, still looks like the query, and has texture in every direction."""
        texture = np.stack([_sample(_weakest_gradient(g), p) for g, p in zip(gray, tracks.places, strict=True)])
        likeness = correlation[:, :, 0].max((-2, -1)).clip(0, 1)
        firmness = texture / (texture + self.texture_levels**2)
        return np.asarray(np.exp(-tracks.error_px / self.track_tau_px) * likeness * firmness, np.float32)

    def _correlation(self, gray: Floats, places: Floats) -> Floats:
        """Correlation maps [T,N,S,K,K] between the query's patch in the first frame and the tracked places.

        Normalised cross-correlation of R x R patches, bilinear at sub-pixel places, at every level of an image
        pyramid; variances are raised by flat_levels^2, so a patch without contrast gives 0. 0 outside the frame.
        """
        num_frames, num_points = places.shape[:2]
        inside = _inside(places, *gray.shape[1:])
        reach = self.patch + self.window - 1
        maps = []
        for level in range(self.num_scales):
            if level:
                gray = np.stack([cv2.pyrDown(g) for g in gray])
            cut = self.window // 2
            around = _windows(gray, places / 2**level, reach)
            query = around[cut : reach - cut, cut : reach - cut, 0]
            maps.append(_normalised_correlation(query, around, self.window, self.flat_levels**2))
        stacked = np.stack(maps).transpose(3, 4, 0, 1, 2) * inside[..., None, None, None]
        return np.ascontiguousarray(stacked.reshape(num_frames, num_points, self.num_scales, self.window, self.window))


def dense_flow(gray: Bytes) -> Flow:
    """DIS flow of every consecutive pair of [T,H,W] frames, both ways, with its forward-backward error."""
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # holds buffers: one per call
    forward = [estimator.calc(first, second, UNKNOWN) for first, second in pairwise(gray)]
    backward = [estimator.calc(second, first, UNKNOWN) for first, second in pairwise(gray)]
    there, back = np.stack(forward).astype(np.float32), np.stack(backward).astype(np.float32)
    error = np.stack([_round_trip_px(f, b) for f, b in zip(there, back, strict=True)])
    return Flow(there, back, error)


def _round_trip_px(forward: Floats, backward: Floats) -> Floats:
    """Distance [H,W] from each pixel to where forward then backward flow leads; infinite where it leaves the frame."""
    height, width = forward.shape[:2]
    there = forward + np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    error = np.sqrt(np.square(forward + _sample(backward, there)).sum(-1))
    return np.where(_inside(there, height, width), error, np.float32(np.inf))


def _weakest_gradient(gray: Bytes) -> Floats:
    """Mean squared slope along the least textured direction around each pixel, [H,W] (gray levels per px)^2."""
    slope_gain = 2 / 255  # OpenCV scales bytes to 0..1 and its Sobel sees a slope twice
    return np.asarray(cv2.cornerMinEigenVal(gray, 7), np.float32) / np.float32(slope_gain**2)


def _inside(points: Floats, height: int, width: int) -> NDArray[np.bool_]:
    x, y = points[..., 0], points[..., 1]
    return np.asarray((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))


def _sample(image: Floats, points: Floats) -> Floats:
    """Bilinear values of [H,W] or [H,W,C] at [...,2] points, clamped to the frame -> [...] or [...,C]."""
    grid = points.reshape(-1, points.shape[-2], 2)
    values = cv2.remap(image, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, np.float32).reshape(*points.shape[:-1], *image.shape[2:])


def _windows(gray: Floats, places: Floats, side: int) -> Floats:
    """Windows of `side` px centred on sub-pixel places: [T,H,W], [T,N,2] -> [side,side,T,N], clamped at the border.

    All samples of a window share one fraction, so one gather of (side+1)^2 whole pixels and two blends make it.
    """
    num_frames, height, width = gray.shape
    corner = np.floor(places)
    right, down = np.moveaxis(places - corner, -1, 0)
    span = np.arange(side + 1) - side // 2
    columns = (corner[..., 0].astype(np.intp) + span[:, None, None]).clip(0, width - 1)
    rows = (corner[..., 1].astype(np.intp) + span[:, None, None]).clip(0, height - 1)
    rows += height * np.arange(num_frames)[:, None]
    pixels = gray.reshape(-1).take(rows[:, None] * width + columns)
    rowwise = pixels[:-1] + down * (pixels[1:] - pixels[:-1])
    return np.asarray(rowwise[:, :-1] + right * (rowwise[:, 1:] - rowwise[:, :-1]), np.float32)


def _normalised_correlation(query: Floats, around: Floats, window: int, floor: float) -> Floats:
    """Correlate [R,R,N] query patches with every R x R patch of [R+K-1,R+K-1,T,N] surroundings -> [K,K,T,N].

    Points are the last axis, so each product is one long vector operation. `floor` is added to both variances.
    """
    side, area = len(query), len(query) ** 2
    query = query - query.mean((0, 1))
    around = around - around.mean((0, 1))  # variance by mean of squares needs small values in float32
    patches = np.lib.stride_tricks.sliding_window_view(around, (side, side), (0, 1))
    covariance = np.einsum("yxtnij,ijn->yxtn", patches, query) / area
    mean = _box_sum(around, side, window) / area
    variance = _box_sum(np.square(around), side, window) / area - np.square(mean)
    scale = (variance.clip(0) + floor) * (np.square(query).mean((0, 1)) + floor)
    return np.asarray(covariance / np.sqrt(scale), np.float32).clip(-1, 1)


def _box_sum(values: Floats, side: int, window: int) -> Floats:
    """Sums over side x side boxes of the first two axes: [R+K-1,R+K-1,...] -> [K,K,...]."""
    rows = np.sum([values[i : i + window] for i in range(side)], axis=0)
    return np.asarray(np.sum([rows[:, i : i + window] for i in range(side)], axis=0))
