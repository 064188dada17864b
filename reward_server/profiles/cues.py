"""Computes cues: plain numbers about a track's motion that reveal faults. They are part of `embedded`'s track tokens.

Kinematics compare a track's motion with that of its neighbours. Wobble, swimming textures and teleports make a track
move differently from them. Trails compare the correlation map along the track's drift with the map across it and with
the map of the first frame, which has no fault. A ghosted frame still shows an object where it was, or already where it
will be. Both need only cached features.

Legend: T frames, N tracks, S scales, K side of a correlation map, C cues.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_NEIGHBOURS = 8
NEIGHBOUR_POOL = 256  # neighbours come from this many first tracks, so that their distance depends on no later track
FINEST_PX = 0.1  # kinematics are about linear below this and logarithmic above
KINEMATICS = 8
TRAIL_CUES = 5  # per scale
LEAST_STEP = 0.7  # shortest drift, in pixels of a scale, whose direction the correlation map can resolve


def num_cues(scales: int) -> int:
    """Number of cues of one track in one frame, for this number of correlation scales."""
    return KINEMATICS + 4 + 2 + 2 * scales + TRAIL_CUES * scales


def track_cues(
    tracks_TN2: Tensor, visibility_TN: Tensor, confidence_TN: Tensor, correlation_TNSKK: Tensor, chosen: slice
) -> Tensor:
    """Cues [T,N,C] of the `chosen` tracks; the arguments hold all tracks.

    They are kinematics, the magnitudes of these, visibility, confidence, per scale the correlation at the centre and
    how far the map's peak lies above it, and trails.
    """
    moving = kinematics(tracks_TN2, chosen)
    speeds = moving.reshape(*moving.shape[:2], 4, 2).norm(dim=-1)
    state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
    maps = correlation_TNSKK[:, chosen]
    middle = maps.shape[-1] // 2
    centre = maps[..., middle, middle]
    peak = maps.flatten(3).amax(dim=-1) - centre
    return torch.cat([moving, speeds, state, centre, peak, trails(_drift(tracks_TN2[:, chosen]), maps)], dim=-1)


def kinematics(tracks_TN2: Tensor, chosen: slice = slice(None)) -> Tensor:
    """Drift and acceleration of the `chosen` tracks [T,N,8], absolute and relative to the mean of the nearest tracks.

    They are in pixels per frame (and per frame^2), compressed as asinh(d / 0.1 px). A point of a rigid or smoothly
    bending object moves with its neighbourhood. In wobble, swimming textures and teleports it does not.
    """
    drift = _drift(tracks_TN2)
    acceleration = torch.zeros_like(drift)
    acceleration[1:-1] = drift[2:] - drift[1:-1]
    motion = torch.cat([drift, acceleration], dim=-1)
    nearest = _neighbours(tracks_TN2[0], chosen)
    relative = motion[:, chosen] - motion[:, nearest].mean(dim=2)
    return torch.asinh(torch.cat([motion[:, chosen], relative], dim=-1) / FINEST_PX)


def trails(drift_TN2: Tensor, correlation_TNSKK: Tensor) -> Tensor:
    """Trail cues [T,N,5S]: five per scale, from correlation maps sampled along and across the drift.

    Cues one and two: the map behind the track (at minus the drift) and ahead of it (at the drift), each minus the first
    frame's map at the same offset and minus the change at the centre. Cue three: behind minus ahead. Cue four: the mean
    of behind and ahead minus the mean of both sides across the drift. Cue five: 1 if the drift fits into the map and is
    at least LEAST_STEP. If it does not, all five are 0.
    """
    cues = []
    for scale in range(correlation_TNSKK.shape[2]):
        maps = correlation_TNSKK[:, :, scale]
        step = drift_TN2 / 2**scale
        reach, middle = maps.shape[-1] // 2, maps.shape[-1] // 2
        fits = ((step.abs().amax(dim=-1) <= reach) & (step.norm(dim=-1) >= LEAST_STEP)).float()
        across = torch.stack([-step[..., 1], step[..., 0]], dim=-1)
        behind, ahead, left, right = (_at(maps, offset) for offset in (-step, step, across, -across))
        first = maps[:1].expand_as(maps)
        lost = maps[..., middle, middle] - first[..., middle, middle]
        found = [behind - _at(first, -step) - lost, ahead - _at(first, step) - lost, behind - ahead]
        found += [(behind + ahead - left - right) / 2, torch.ones_like(behind)]
        cues.append(torch.stack(found, dim=-1) * fits[..., None])
    return torch.cat(cues, dim=-1)


def _at(maps_TNKK: Tensor, offset_TN2: Tensor) -> Tensor:
    """Sample maps bilinearly at offsets (x, y) from their centres: [T,N]."""
    num_frames, num_tracks, window, _ = maps_TNKK.shape
    grid = (offset_TN2 / (window // 2)).reshape(-1, 1, 1, 2)
    sampled = F.grid_sample(maps_TNKK.reshape(-1, 1, window, window), grid, padding_mode="border", align_corners=True)
    return sampled.reshape(num_frames, num_tracks)


def _drift(tracks_TN2: Tensor) -> Tensor:
    return F.pad(tracks_TN2.diff(dim=0), (0, 0, 0, 0, 1, 0))


def _neighbours(points_N2: Tensor, chosen: slice) -> Tensor:
    """Indices [n,K] of the K nearest other points of each chosen point, among the first NEIGHBOUR_POOL points.

    Query points are whole pixels, so equal distances are common. The earlier point then wins. Otherwise rounding would
    decide, and the same clip could get different rewards.
    """
    points = points_N2.double()
    pool = points[:NEIGHBOUR_POOL]
    own = torch.arange(len(points))[chosen]
    distance = (points[own][:, None] - pool).square().sum(dim=-1)
    distance[own[:, None] == torch.arange(len(pool))] = torch.inf
    return distance.argsort(dim=-1, stable=True)[:, : min(NUM_NEIGHBOURS, len(pool) - 1)]
