"""Makes the Explanation of one scored clip from its motions and from what the long-term discriminator pooled.

Places are given in pixels of the clip as displayed. The decoder shows a frame upright and with square pixels, and then
stretches it to the profile's size, without borders and without a crop. So a place only has to be scaled back, each
axis by its own factor.

Legend: T frames, P = T-1 frame pairs, N tracks, H, W frame size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from protos.explanation import Explanation, PairMaps, TrackExplanation, WindowExplanation
from protos.types import Source
from reward_server.decoding.decode import DecodedClip, Window
from reward_server.explain.pool import PoolWatch
from reward_server.explain.room import Room, room_for
from reward_server.motion import Motion
from reward_server.profiles import Profile

DECIMALS = 2  # of places in pixels, and of visibility and confidence
CURVE_DECIMALS = 4


@torch.inference_mode()
def explanation(
    decoded: DecodedClip,
    motions: Sequence[Motion],
    *,
    profile: Profile,
    pool: PoolWatch,
    first_window: int,
    max_bytes: int,
) -> Explanation:
    """Explain a clip whose windows have these motions. In `pool` its windows begin at `first_window`."""
    num_pairs, height_px, width_px = motions[0].residual.shape
    room, reduced = room_for(
        windows=len(motions),
        frames=num_pairs + 1,
        height_px=height_px,
        width_px=width_px,
        tracks=motions[0].tracks.shape[1],
        max_bytes=max_bytes,
    )
    residuals = [_cells(motion.residual.abs(), room) for motion in motions]
    top = float(max(np.max(values, initial=0.0) for values in residuals))  # one scale, so that windows compare
    windows = [
        WindowExplanation(
            times_s=tuple(round(window.start_s + t / decoded.fps_used, CURVE_DECIMALS) for t in range(num_pairs + 1)),
            tracks=_tracks(window, motion, decoded.source, profile, pool.shares(first_window + at, room.tracks)),
            residual=_maps(residual, top),
            flow_confidence=_maps(_cells(motion.flow_confidence, room), 1.0),
            residual_curve=_curve(motion.residual.abs()),
            flow_confidence_curve=_curve(motion.flow_confidence),
        )
        for at, (window, motion, residual) in enumerate(zip(decoded.windows, motions, residuals, strict=True))
    ]
    return Explanation(windows=tuple(windows), reduced=reduced)


def _tracks(
    window: Window, motion: Motion, source: Source, profile: Profile, shares: Sequence[float]
) -> tuple[TrackExplanation, ...]:
    """The first tracks, one per share. Queries are in random order, so these are a random sample."""
    height, width = window.clip.frames.shape[2:]
    places = displayed_places(profile.clip_tracks(motion, height, width)[:, : len(shares)], (height, width), source)
    numbers = torch.cat([places, *(v[:, : len(shares), None] for v in (motion.visibility, motion.confidence))], dim=-1)
    rounded = numbers.double().cpu().numpy().round(DECIMALS).transpose(1, 2, 0).tolist()
    return tuple(
        TrackExplanation(
            x_px=tuple(x), y_px=tuple(y), visibility=tuple(visibility), confidence=tuple(confidence), share=share
        )
        for (x, y, visibility, confidence), share in zip(rounded, shares, strict=True)
    )


def displayed_places(tracks_TN2: Tensor, size: tuple[int, int], source: Source) -> Tensor:
    """Places (x, y) [T,N,2] of decoded frames of this (height, width), in pixels of the clip as displayed.

    A pixel's centre is a whole number in both, as in OpenCV, which resized the frames.
    """
    height, width = size
    scale = tracks_TN2.new_tensor([source.width_px / width, source.height_px / height])
    return (tracks_TN2 + 0.5) * scale - 0.5


def _cells(values_PHW: Tensor, room: Room) -> NDArray[np.float32]:
    """Means over the cells of small maps, float32 [P,h,w]."""
    if not room.height:
        return np.zeros((len(values_PHW), 0, 0), np.float32)
    cells = F.adaptive_avg_pool2d(values_PHW[None], (room.height, room.width))[0]
    return np.asarray(cells.cpu().numpy(), np.float32)


def _maps(cells_PHW: NDArray[np.float32], top: float) -> PairMaps:
    return PairMaps.of(np.rint(cells_PHW * (255 / (top or 1.0))).clip(0, 255).astype(np.uint8), top)


def _curve(values_PHW: Tensor) -> tuple[float, ...]:
    return tuple(round(value, CURVE_DECIMALS) for value in values_PHW.mean(dim=(1, 2)).double().cpu().tolist())
