"""What a track's own course says of its plausibility, as plain numbers beside the learned features.

Part of the embedded profile's track tokens. Kinematics compare a track's motion with that of its
neighbours: wobble, swimming textures and teleports part from theirs. Trails compare the correlation
map along the track's drift with the map across it and with the clean first frame's: a ghosted frame
still shows a body where it was, or already where it will be. Both come from cached features alone.

Legend: T frames, N tracks, S scales, K correlation window, C cues.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_NEIGHBOURS = 8
NEIGHBOUR_POOL = 256  # neighbours come from the first so many tracks, so that more tracks do not change their distance
FINEST_PX = 0.1  # kinematics are linear below it and logarithmic above
KINEMATICS = 8
TRAIL_CUES = 5  # per scale
LEAST_STEP = 0.7  # offset, in pixels of a scale, from which drift tells "along" from "here"


def num_cues(scales: int) -> int:
    """Cues of one track in one frame."""
    return KINEMATICS + 4 + 2 + 2 * scales + TRAIL_CUES * scales


def track_cues(
    tracks_TN2: Tensor, visibility_TN: Tensor, confidence_TN: Tensor, correlation_TNSKK: Tensor, chosen: slice
) -> Tensor:
    """[T,N,C] of the `chosen` tracks: kinematics and their magnitudes, visibility, confidence, peaks, trails."""
    moving = kinematics(tracks_TN2, chosen)
    speeds = moving.reshape(*moving.shape[:2], 4, 2).norm(dim=-1)
    state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
    maps = correlation_TNSKK[:, chosen]
    middle = maps.shape[-1] // 2
    centre = maps[..., middle, middle]
    peak = maps.flatten(3).amax(dim=-1) - centre
    return torch.cat([moving, speeds, state, centre, peak, trails(_drift(tracks_TN2[:, chosen]), maps)], dim=-1)


def kinematics(tracks_TN2: Tensor, chosen: slice = slice(None)) -> Tensor:
    """[T,N,8]: drift and acceleration of each track, alone and less the mean of its nearest tracks.

    Pixels, compressed as asinh(d / 0.1 px). A rigid or smoothly bending scene moves with its
    neighbourhood; wobble, swimming and teleports do not.
    """
    drift = _drift(tracks_TN2)
    acceleration = torch.zeros_like(drift)
    acceleration[1:-1] = drift[2:] - drift[1:-1]
    motion = torch.cat([drift, acceleration], dim=-1)
    nearest = _neighbours(tracks_TN2[0], chosen)
    relative = motion[:, chosen] - motion[:, nearest].mean(dim=2)
    return torch.asinh(torch.cat([motion[:, chosen], relative], dim=-1) / FINEST_PX)


def trails(drift_TN2: Tensor, correlation_TNSKK: Tensor) -> Tensor:
    """[T,N,5S]: per scale, where the drift fits the map's window, else zeros (and the fifth says which).

    The map behind the track (at minus the drift) and ahead of it, each against the first frame's map at the same
    offset and less the loss at the centre; their difference; their mean against the map across the drift.
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
    """Bilinear samples [T,N] of maps at offsets (x, y) from their centres."""
    num_frames, num_tracks, window, _ = maps_TNKK.shape
    grid = (offset_TN2 / (window // 2)).reshape(-1, 1, 1, 2)
    sampled = F.grid_sample(maps_TNKK.reshape(-1, 1, window, window), grid, padding_mode="border", align_corners=True)
    return sampled.reshape(num_frames, num_tracks)


def _drift(tracks_TN2: Tensor) -> Tensor:
    return F.pad(tracks_TN2.diff(dim=0), (0, 0, 0, 0, 1, 0))


def _neighbours(points_N2: Tensor, chosen: slice) -> Tensor:
    """[n,K] indices of the chosen points' nearest others among the first NEIGHBOUR_POOL.

    Queries are whole pixels, so equal distances are common: the earlier point wins, or rounding
    would choose, and the same clip would get another reward.
    """
    points = points_N2.double()
    pool = points[:NEIGHBOUR_POOL]
    own = torch.arange(len(points))[chosen]
    distance = (points[own][:, None] - pool).square().sum(dim=-1)
    distance[own[:, None] == torch.arange(len(pool))] = torch.inf
    return distance.argsort(dim=-1, stable=True)[:, : min(NUM_NEIGHBOURS, len(pool) - 1)]
