"""Tests the stillness term: it finds held and gliding pictures under noise too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.types import Clip
from reward_server.profiles.discriminators import NO_PACE
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.stillness import StillnessWeights, flow_steepness, own_motion, stillness_term, track_speed
from tests.media import texture

PROFILE = EmbeddedProfile()


def points(num_frames: int) -> Tensor:
    """Still tracks [T,64,2] of an 8x8 grid of points, 10 px apart."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = 10 * torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    return grid.expand(num_frames, -1, -1).clone()


def passing(pixels_per_frame: float, num_pairs: int = 15) -> Tensor:
    """Flow [P,2,90,160] of an object that moves to the right before a still background."""
    flow = torch.zeros(num_pairs, 2, 90, 160)
    flow[:, 0, 30:60, 50:110] = pixels_per_frame
    return flow


def term(tracks: Tensor, flow: Tensor | None = None) -> float:
    flow = passing(1.0, max(1, len(tracks) - 1)) if flow is None else flow
    return stillness_term(tracks, torch.ones(tracks.shape[:2]), flow, StillnessWeights())


def walking(tracks: Tensor, step: float = 1.0) -> Tensor:
    """The same tracks with a third of the points walking to the right, 1 px per frame."""
    tracks = tracks.clone()
    tracks[:, ::3, 0] += step * torch.arange(float(len(tracks)))[:, None]
    return tracks


def test_noise_trembles_and_does_not_get_on() -> None:
    noise = torch.randn(16, 64, 2, generator=torch.Generator().manual_seed(0))
    sure = torch.ones(16, 64)
    assert track_speed(points(16) + 0.05 * noise, sure) < 0.04
    assert track_speed(walking(points(16)) + 0.05 * noise, sure) == pytest.approx(1.0, abs=0.05)


def test_own_motion_is_what_the_camera_does_not_explain() -> None:
    time = torch.arange(16.0)[:, None, None]
    panned = (points(16) - 35) * 1.01**time + 35 + torch.tensor([2.0, 1.0]) * time
    sure = torch.ones(16, 64)
    assert own_motion(panned, sure).max() < 0.02
    own = own_motion(walking(panned), sure)[-1]
    walkers, others = own[::3], torch.cat([own[1::3], own[2::3]])
    assert walkers.mean() > 0.7
    assert others.mean() < 0.25


def test_the_term_is_zero_for_moving_clips_and_falls_with_stillness() -> None:
    noise = 0.02 * torch.randn(16, 64, 2, generator=torch.Generator().manual_seed(1))
    pan = torch.tensor([2.0, 0.0]) * torch.arange(16.0)[:, None, None]
    assert term(walking(points(16)) + noise) == 0
    assert term(walking(points(16), step=3.0) + noise) == 0  # more motion is not more reward
    assert term(points(16) + noise) < -3
    assert term(points(16) + pan + noise) < -3
    assert term(points(16)) < term(points(16) + walking(noise, step=0.05))


def test_a_flow_is_steep_where_things_move_past_each_other() -> None:
    assert flow_steepness(passing(2.0)) == flow_steepness(passing(2.0).flip(1)) == pytest.approx(1.0)
    assert flow_steepness(passing(2.0, num_pairs=1)) == pytest.approx(1.0)
    rows, columns = torch.meshgrid(torch.arange(90.0), torch.arange(160.0), indexing="ij")
    zoom = 0.005 * torch.stack([columns - 80, rows - 45]).expand(15, -1, -1, -1)
    assert flow_steepness(zoom + 3.0) == pytest.approx(0.01, abs=1e-4)
    failed = (zoom + 3.0).clone()
    failed[:, :, 40, 40:42] = 200.0  # a few pixels in every pair
    failed[:7, 0] += 100 * torch.randn(90, 160, generator=torch.Generator().manual_seed(0))  # and all of seven pairs
    assert flow_steepness(failed) < 0.02


def test_the_term_falls_with_the_steepness_below_its_limit_only() -> None:
    moving = walking(points(16))
    assert term(moving, passing(0.5)) == term(moving, passing(50.0)) == 0
    assert term(moving, passing(0.3)) == pytest.approx(-2 * math.log(0.2 / 0.15))
    assert term(moving, passing(0.0)) == pytest.approx(-2 * math.log(2))


def test_a_short_clip_has_a_term() -> None:
    assert term(points(2)) < -3


def held(clip: Clip, sigma: float) -> Clip:
    frames = np.repeat(clip.frames[:1], len(clip.frames), axis=0).astype(float)
    frames += np.random.default_rng(0).normal(0, sigma, frames.shape)
    return Clip(frames=frames.clip(0, 255).round().astype(np.uint8), fps=clip.fps)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_a_held_picture_is_still_under_noise(sigma: float) -> None:
    clip = Clip(frames=texture(16, 144, 256).transpose(0, 3, 1, 2).copy(), fps=12.0)
    still = PROFILE.motion(held(clip, sigma), query_seed=0, num_tracks=256)
    assert PROFILE.logit_terms(still, NO_PACE)[1] < -2
