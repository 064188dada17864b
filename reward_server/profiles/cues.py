"""Computes cues: plain numbers about a track's motion that reveal faults. They are part of `embedded`'s track tokens.

Kinematics compare a track's motion with that of its neighbours. Wobble, swimming textures and teleports make a track
move differently from them. Most cues are in units of the clip's typical speed, so they say how a clip moves and not
how much. Trails compare the correlation map along the track's drift with the map across it and with the map of the
first frame, which has no fault. A ghosted frame still shows an object where it was, or already where it will be.

Legend: T frames, N tracks, n chosen tracks, K neighbours or side of a correlation map, S scales, C cues.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.motion import SLOWEST_PX, fastest

NUM_NEIGHBOURS = 8
NEIGHBOUR_POOL = 256  # neighbours and the typical speed come from this many first tracks, so that no later track counts
LAG = 4  # frames
LEAST_CONFIDENCE = 0.3
FITS = 3
LEAST_WEIGHT = 1e-3
FEWEST = 64  # confident positions from which the speed is taken
STILL_PX = (0.02, 0.3)  # px per frame; below, a clip is still, and above, more motion says nothing
FINEST_PX = 0.1  # kinematics are about linear below this and logarithmic above
FINEST = 0.05  # the same for motion in typical speeds
KINEMATICS = 8
RATIOS = 5
GRADIENTS = 3
TRAIL_CUES = 4  # per scale
SIDE_PX = 192.0  # side of a square of the profile's area
LEAST_STEP = 0.7  # shortest drift, in pixels of a scale, whose direction the correlation map can resolve


def num_cues(scales: int) -> int:
    """Number of cues of one track in one frame, for this number of correlation scales."""
    return KINEMATICS + 4 + scales + num_plain_cues(scales)


def num_plain_cues(scales: int) -> int:
    """Number of the cues, the last ones, that carry no amount of motion and no direction."""
    return 4 + 2 + RATIOS + GRADIENTS + 2 + 2 * scales + TRAIL_CUES * scales


def track_speed(tracks_TN2: Tensor, confidence_TN: Tensor) -> Tensor:
    """How fast the fastest tenth of a clip's tracks gets on, in px per frame: a scalar.

    A track's steps are taken over LAG frames, because noise trembles and does not get on. Tracks that are not sure of
    their position do not count, unless hardly any is.
    """
    lag = min(LAG, len(tracks_TN2) - 1)
    tracks, sure = tracks_TN2[:, :NEIGHBOUR_POOL], confidence_TN[lag:, :NEIGHBOUR_POOL] > LEAST_CONFIDENCE
    steps = (tracks[lag:] - tracks[:-lag]) / lag
    return fastest(steps[sure] if int(sure.sum()) >= FEWEST else steps)


def track_cues(
    tracks_TN2: Tensor, visibility_TN: Tensor, confidence_TN: Tensor, correlation_TNSKK: Tensor, chosen: slice
) -> Tensor:
    """Cues [T,n,C] of the `chosen` tracks; the arguments hold all tracks.

    First those with an amount: kinematics in px per frame, their magnitudes, and where trails can be read. Then those
    without: the same magnitudes and the own motion in typical speeds, stillness, ratios, gradients, visibility,
    confidence, per scale the correlation at the centre and how far the map's peak lies above it, and trails.
    """
    speed = track_speed(tracks_TN2, confidence_TN)
    unit = speed.clamp_min(SLOWEST_PX)
    steps, nearest, maps = _drift(tracks_TN2), nearest_tracks(tracks_TN2[0], chosen), correlation_TNSKK[:, chosen]
    motion_px = relative_motion(steps, nearest, chosen)
    kinematics = torch.asinh(motion_px / FINEST_PX)
    motion = motion_px / unit
    sizes = torch.cat([_sizes(motion), own_motion(tracks_TN2, confidence_TN)[:, chosen, None] / unit], dim=-1)
    stillness = speed.clamp(*STILL_PX).log().expand(*motion.shape[:2], 1)
    state = torch.stack([visibility_TN, confidence_TN], dim=-1)[:, chosen]
    middle = maps.shape[-1] // 2
    centre = maps[..., middle, middle]
    peak = maps.flatten(3).amax(dim=-1) - centre
    cues = [kinematics, _sizes(kinematics), trail_fits(steps[:, chosen], maps)]
    cues += [
        torch.asinh(sizes / FINEST),
        stillness,
        ratios(motion),
        gradients(steps / unit, tracks_TN2, nearest, chosen),
    ]
    return torch.cat([*cues, state, centre, peak, trails(steps[:, chosen], maps)], dim=-1)


def _sizes(motion_Tn8: Tensor) -> Tensor:
    """Lengths [T,n,4] of the four vectors of `relative_motion`."""
    return torch.unflatten(motion_Tn8, -1, (4, 2)).norm(dim=-1)


def relative_motion(drift_TN2: Tensor, nearest_nK: Tensor, chosen: slice = slice(None)) -> Tensor:
    """Drift and acceleration of the `chosen` tracks [T,n,8], absolute and relative to the mean of the nearest tracks.

    They are in the unit of `drift_TN2`. A point of a rigid or smoothly bending object moves with its neighbourhood. In
    wobble, swimming textures and teleports it does not.
    """
    acceleration = torch.zeros_like(drift_TN2)
    acceleration[1:-1] = drift_TN2[2:] - drift_TN2[1:-1]
    motion = torch.cat([drift_TN2, acceleration], dim=-1)
    return torch.cat([motion[:, chosen], motion[:, chosen] - motion[:, nearest_nK].mean(dim=2)], dim=-1)


def own_motion(tracks_TN2: Tensor, confidence_TN: Tensor) -> Tensor:
    """How far each track moves on its own [T,N], in px per frame: what no affine motion of the whole frame explains.

    Steps are taken over LAG frames. In a glide over a still picture hardly anything moves on its own. The fit is
    repeated with less weight for the tracks that it does not explain, so that it follows the background.
    """
    lag = min(LAG, len(tracks_TN2) - 1)
    places, steps = tracks_TN2[:-lag] / SIDE_PX, (tracks_TN2[lag:] - tracks_TN2[:-lag]) / lag
    known = torch.cat([torch.ones_like(places[..., :1]), places], dim=-1)[:, :NEIGHBOUR_POOL]  # [T-lag,N,3]
    weight = confidence_TN[lag:, :NEIGHBOUR_POOL, None] + LEAST_WEIGHT
    left = steps[:, :NEIGHBOUR_POOL]
    for _ in range(FITS):
        moments = known.mT @ (weight * known) + LEAST_WEIGHT * torch.eye(3)
        affine = torch.linalg.solve(moments, known.mT @ (weight * steps[:, :NEIGHBOUR_POOL]))
        left = (steps[:, :NEIGHBOUR_POOL] - known @ affine).norm(dim=-1, keepdim=True)
        middle = left.median(dim=1, keepdim=True).values + LEAST_WEIGHT
        weight = (confidence_TN[lag:, :NEIGHBOUR_POOL, None] + LEAST_WEIGHT) / (1 + (left / middle).square())
    everywhere = torch.cat([torch.ones_like(places[..., :1]), places], dim=-1) @ affine
    own = (steps - everywhere).norm(dim=-1)
    return torch.cat([own[:1].expand(lag, -1), own])


def ratios(motion_Tn8: Tensor) -> Tensor:
    """Numbers without an amount [T,n,5], from `relative_motion`.

    Logarithms of relative over absolute drift, relative over absolute acceleration, and acceleration over drift. Then
    how alike successive drifts, and successive accelerations, are in direction (-1..1): steady motion keeps its
    direction, and trembling turns back in every frame.
    """
    drift, acceleration, *_ = vectors = torch.unflatten(motion_Tn8, -1, (4, 2)).unbind(-2)
    own, bent, apart, apart_bent = ((vector.norm(dim=-1) + FINEST).log() for vector in vectors)
    turns = [_likeness(drift), _likeness(acceleration)]
    return torch.stack([apart - own, apart_bent - bent, bent - own, *turns], dim=-1)


def gradients(drift_TN2: Tensor, tracks_TN2: Tensor, nearest_nK: Tensor, chosen: slice = slice(None)) -> Tensor:
    """How the drift changes around each track [T,n,3]: divergence, size of the curl, and what neither explains.

    From the nearest tracks: the drift relative to the track, against the position relative to the track, both as
    asinh of the drift's unit per frame side.
    """
    there = tracks_TN2[:, nearest_nK] - tracks_TN2[:, chosen][:, :, None]
    differs = drift_TN2[:, nearest_nK] - drift_TN2[:, chosen][:, :, None]
    weight = there.square().sum(dim=(-1, -2)).clamp_min(1.0)
    turned = torch.stack([-there[..., 1], there[..., 0]], dim=-1)
    divergence = (differs * there).sum(dim=(-1, -2)) / weight
    curl = (differs * turned).sum(dim=(-1, -2)) / weight
    rest = differs - divergence[..., None, None] * there - curl[..., None, None] * turned
    distance = (weight / nearest_nK.shape[-1]).sqrt()
    bending = rest.square().sum(dim=-1).mean(dim=-1).sqrt() / distance
    return torch.asinh(torch.stack([divergence, curl.abs(), bending], dim=-1) * SIDE_PX)


def nearest_tracks(points_N2: Tensor, chosen: slice = slice(None)) -> Tensor:
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


def trail_fits(drift_TN2: Tensor, correlation_TNSKK: Tensor) -> Tensor:
    """Per scale [T,N,S], 1 where the drift fits into the correlation map and is at least LEAST_STEP, else 0."""
    reach = correlation_TNSKK.shape[-1] // 2
    steps = torch.stack([drift_TN2 / 2**scale for scale in range(correlation_TNSKK.shape[2])], dim=-2)
    return ((steps.abs().amax(dim=-1) <= reach) & (steps.norm(dim=-1) >= LEAST_STEP)).float()


def trails(drift_TN2: Tensor, correlation_TNSKK: Tensor) -> Tensor:
    """Trail cues [T,N,4S]: four per scale, from correlation maps sampled along and across the drift.

    Cues one and two: the map behind the track (at minus the drift) and ahead of it (at the drift), each minus the first
    frame's map at the same offset and minus the change at the centre. Cue three: behind minus ahead. Cue four: the mean
    of behind and ahead minus the mean of both sides across the drift. All four are 0 where `trail_fits` is.
    """
    fits, cues = trail_fits(drift_TN2, correlation_TNSKK), []
    for scale in range(correlation_TNSKK.shape[2]):
        maps = correlation_TNSKK[:, :, scale]
        step, middle = drift_TN2 / 2**scale, maps.shape[-1] // 2
        across = torch.stack([-step[..., 1], step[..., 0]], dim=-1)
        behind, ahead, left, right = (_at(maps, offset) for offset in (-step, step, across, -across))
        first = maps[:1].expand_as(maps)
        lost = maps[..., middle, middle] - first[..., middle, middle]
        found = [behind - _at(first, -step) - lost, ahead - _at(first, step) - lost, behind - ahead]
        found.append((behind + ahead - left - right) / 2)
        cues.append(torch.stack(found, dim=-1) * fits[..., scale, None])
    return torch.cat(cues, dim=-1)


def _at(maps_TNKK: Tensor, offset_TN2: Tensor) -> Tensor:
    """Sample maps bilinearly at offsets (x, y) from their centres: [T,N]."""
    num_frames, num_tracks, window, _ = maps_TNKK.shape
    grid = (offset_TN2 / (window // 2)).reshape(-1, 1, 1, 2)
    sampled = F.grid_sample(maps_TNKK.reshape(-1, 1, window, window), grid, padding_mode="border", align_corners=True)
    return sampled.reshape(num_frames, num_tracks)


def _drift(tracks_TN2: Tensor) -> Tensor:
    return F.pad(tracks_TN2.diff(dim=0), (0, 0, 0, 0, 1, 0))


def _likeness(vectors_TN2: Tensor) -> Tensor:
    """How alike the directions of a vector and its successor in the last frame are [T,N], -1..1; near 0 if either is
    small."""
    last = F.pad(vectors_TN2[:-1], (0, 0, 0, 0, 1, 0))
    product = vectors_TN2.norm(dim=-1) * last.norm(dim=-1)
    likeness: Tensor = (vectors_TN2 * last).sum(dim=-1) / (product + FINEST**2)
    return likeness
