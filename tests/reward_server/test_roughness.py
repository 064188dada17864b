"""Tests the roughness term: jerks and turns lower it, and nothing raises it: no stillness, no stall, no glide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.types import Clip
from reward_server.faults import with_fault
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.roughness import STATISTICS, roughness_statistics, roughness_term
from tests.media import texture

PROFILE = EmbeddedProfile()
WEIGHTS = PROFILE.roughness
SURE = torch.ones(16, 80)


def courses(speed_px: float = 2.0, num_frames: int = 16) -> Tensor:
    """Tracks [T,80,2] of five bodies that swing smoothly, each at its own pace, before a panning camera."""
    time = torch.arange(float(num_frames))[:, None]
    start = 190 * torch.rand(80, 2, generator=torch.Generator().manual_seed(0))
    body = torch.arange(80) % 5
    angle = 0.25 * time * (0.6 + 0.1 * body) + body
    swing = torch.stack([angle.sin(), angle.cos()], dim=-1) * (body > 1)[:, None]
    pan = torch.stack([0.5 * speed_px * time, torch.zeros_like(time)], dim=-1)
    return start + speed_px / 0.2 * (swing - swing[:1]) + pan


def shaken(tracks: Tensor, sigma_px: float) -> Tensor:
    return tracks + sigma_px * torch.randn(tracks.shape, generator=torch.Generator().manual_seed(1))


def statistic(name: str, tracks: Tensor) -> float:
    return float(roughness_statistics(tracks, SURE[: len(tracks)])[STATISTICS.index(name)])


def term(tracks: Tensor) -> float:
    return roughness_term(tracks, SURE[: len(tracks)], WEIGHTS)


def test_each_statistic_sees_its_fault() -> None:
    assert statistic("jerkiness", shaken(courses(), 1.0)) > statistic("jerkiness", courses()) + 0.5
    assert statistic("turning", shaken(courses(), 2.0)) < statistic("turning", courses()) - 0.5


def test_both_lower_the_term() -> None:
    jerkiness, turning = WEIGHTS.weight
    assert jerkiness < 0 < turning
    assert term(shaken(courses(), 2.0)) < term(shaken(courses(), 0.5)) < term(courses()) == 0


def test_the_speed_says_nothing() -> None:
    """Where motion is well above what counts as none."""
    slow, fast = (roughness_statistics(courses(speed), SURE) for speed in (3.0, 12.0))
    assert torch.allclose(slow, fast, atol=0.1)


def stalled(tracks: Tensor) -> Tensor:
    held = tracks.clone()
    held[7] = held[6]
    return held


def easing(tracks: Tensor) -> Tensor:
    """The same courses, slowing to a stop."""
    place = 15 * (1 - torch.exp(-torch.linspace(0, 4, 16)))
    low = place.long().clamp_max(14)
    part = (place - low)[:, None, None]
    return tracks[low] * (1 - part) + tracks[low + 1] * part


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.3])
def test_smoothness_earns_nothing(sigma: float) -> None:
    """A held picture, a stalled frame, an easing stop and a glide get at most 0, as smooth motion does."""
    still = courses()[:1].expand(16, -1, -1)
    glide = still + torch.tensor([2.0, 0.0]) * torch.arange(16.0)[:, None, None]
    for tracks in (still, glide, stalled(courses()), easing(courses())):
        assert term(shaken(tracks, sigma)) <= 0 == term(courses())
    for tracks in (still, stalled(courses())):
        assert term(shaken(tracks, sigma)) <= term(shaken(courses(), sigma))


def test_the_term_is_bounded_and_needs_four_frames() -> None:
    bounded = replace(WEIGHTS, lowest=-0.5)
    assert roughness_term(shaken(courses(), 30.0), SURE, bounded) == -0.5 * WEIGHTS.scale
    assert term(shaken(courses(), 30.0)) < -0.5 * WEIGHTS.scale
    assert term(courses(num_frames=3)) == 0
    assert term(shaken(courses(num_frames=4), 2.0)) < 0


def test_tracks_without_confidence_have_a_term() -> None:
    assert np.isfinite(roughness_term(shaken(courses(), 1.0), torch.zeros(16, 80), WEIGHTS))


@pytest.mark.parametrize("fault", ["jittered", "shuffled"])
def test_a_fault_lowers_the_term(fault: str) -> None:
    clip = Clip(frames=texture(16, 144, 256).transpose(0, 3, 1, 2).copy(), fps=12.0)
    real, faulty = (
        roughness_term(motion.tracks, motion.confidence, WEIGHTS)
        for motion in (
            PROFILE.motion(one, query_seed=0, num_tracks=256) for one in (clip, with_fault(clip, fault, 1.0, seed=0))
        )
    )
    assert faulty < real
