"""Tests the cues of tracks on known motion: rigid motion, a track that leaves its neighbours, and ghosting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.types import Clip
from reward_server.discriminators.statistics_logit import BOUND, StatisticsLogit, statistics
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.faults import with_fault
from reward_server.motion import SLOWEST_PX, Motion, random_queries
from reward_server.profiles.cues import (
    KINEMATICS,
    TRAIL_CUES,
    gradients,
    nearest_tracks,
    num_cues,
    own_motion,
    ratios,
    relative_motion,
    track_cues,
    track_speed,
    trail_fits,
    trails,
)

ALL = slice(None)


def grid(num_frames: int, step: tuple[float, float]) -> Tensor:
    """Tracks [T,64,2] of an 8x8 grid of points, 10 px apart, that moves rigidly by `step` px per frame."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    points = 10 * torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    return points + torch.arange(num_frames)[:, None, None] * torch.tensor(step)


def cues_of(motion: Motion, chosen: slice = ALL) -> Tensor:
    return track_cues(motion.tracks, motion.visibility, motion.confidence, motion.correlation, chosen)


@pytest.fixture(scope="module")
def moving_texture() -> Clip:
    """A smooth random texture that moves to the right by 3 px per frame."""
    rng = np.random.default_rng(5)
    spectrum = np.fft.rfft2(rng.normal(size=(144, 320)))
    frequency = np.hypot(np.fft.fftfreq(144)[:, None], np.fft.rfftfreq(320)[None])
    texture = np.fft.irfft2(spectrum * np.exp(-((frequency / 0.12) ** 2)), s=(144, 320))
    texture = 127 + 50 * texture / texture.std()
    frames = [np.roll(texture, 3 * t, axis=1)[:, 32:288] for t in range(12)]
    gray = np.stack(frames).clip(0, 255).round().astype(np.uint8)
    return Clip(frames=np.repeat(gray[:, None], 3, axis=1), fps=12.0)


def drift_of(tracks: Tensor) -> Tensor:
    """Drift [T,N,2] in typical speeds."""
    steps = torch.cat([torch.zeros_like(tracks[:1]), tracks.diff(dim=0)])
    return steps / track_speed(tracks, torch.ones(tracks.shape[:2])).clamp_min(SLOWEST_PX)


def moved(tracks: Tensor) -> Tensor:
    return relative_motion(drift_of(tracks), nearest_tracks(tracks[0]))


def test_a_rigid_drift_has_no_motion_relative_to_neighbours() -> None:
    motion = moved(grid(5, (3.0, -4.0)))
    assert motion.shape == (5, 64, KINEMATICS)
    assert torch.equal(motion[0, :, :2], torch.zeros(64, 2))
    torch.testing.assert_close(motion[1:, :, :2], torch.tensor([0.6, -0.8]).expand(4, 64, 2))  # the typical speed is 5
    torch.testing.assert_close(motion[1:, :, 4:6], torch.zeros(4, 64, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(motion[1:-1, :, 2:4], torch.zeros(3, 64, 2), atol=1e-5, rtol=0)


def test_a_track_that_leaves_its_neighbours_stands_out() -> None:
    tracks = grid(3, (1.0, 0.0))
    tracks[2, 27] += torch.tensor([0.0, 4.0])
    relative = moved(tracks)[2, :, 4:6]
    torch.testing.assert_close(relative[27], torch.tensor([0.0, 4.0]), atol=1e-4, rtol=0)
    assert relative[0].norm() < 1e-4  # not its neighbour


def test_cues_do_not_change_with_the_amount_of_motion() -> None:
    """The same motion three times as large gives the same numbers, so no cue can be a measure of the amount."""
    torch.manual_seed(0)
    steps = torch.randn(7, 64, 2).cumsum(dim=0)
    start = grid(1, (0.0, 0.0))
    small, large = (torch.cat([start, start + scale * steps]) for scale in (1.0, 3.0))
    torch.testing.assert_close(moved(small), moved(large), atol=1e-4, rtol=0)
    nearest = nearest_tracks(start[0])
    turned = [gradients(drift_of(tracks), start.expand_as(tracks), nearest) for tracks in (small, large)]
    torch.testing.assert_close(*turned, atol=1e-4, rtol=0)


def test_a_still_picture_under_noise_stays_small() -> None:
    tracks = grid(12, (0.0, 0.0)) + 0.02 * torch.randn(12, 64, 2, generator=torch.Generator().manual_seed(0))
    assert moved(tracks)[1:, :, :2].norm(dim=-1).mean() < 0.3


def test_steady_motion_keeps_its_direction_and_trembling_turns_back() -> None:
    steady = grid(8, (2.0, 0.0))
    trembling = steady + 2.0 * (torch.arange(8) % 2)[:, None, None] * torch.tensor([0.0, 1.0])
    turn, again = ratios(moved(steady))[3, 0, 3:], ratios(moved(trembling))[3, 0, 3:]
    assert turn[0] > 0.99
    assert again[1] < -0.9


def test_own_motion_is_what_the_camera_does_not_explain() -> None:
    start = grid(1, (0.0, 0.0))[0]
    panned = torch.stack([(start - 35) * 1.01**t + 35 + torch.tensor([2.0, 1.0]) * t for t in range(9)])
    sure = torch.ones(panned.shape[:2])
    assert own_motion(panned, sure).max() < 0.02
    walked = panned.clone()
    walked[:, :6] += torch.arange(9.0)[:, None, None] * torch.tensor([0.0, 3.0])
    own = own_motion(walked, sure)[-1]
    torch.testing.assert_close(own[:6], torch.full((6,), 3.0), atol=0.2, rtol=0)
    assert own[6:].max() < 0.3


def test_trembling_does_not_get_on() -> None:
    noise = torch.randn(16, 64, 2, generator=torch.Generator().manual_seed(0))
    sure = torch.ones(16, 64)
    still, moving = grid(16, (0.0, 0.0)), grid(16, (1.0, 0.0))
    assert track_speed(still + 0.05 * noise, sure) < 0.04
    assert track_speed(moving + 0.05 * noise, sure) == pytest.approx(1.0, abs=0.05)


def test_a_zoom_is_divergence_and_a_turn_is_curl() -> None:
    start = grid(1, (0.0, 0.0))[0] - 35.0
    nearest = nearest_tracks(start)
    zoom = torch.stack([start * 1.02**t for t in range(4)])
    angles = 0.02 * torch.arange(4)
    turn = torch.stack([start @ torch.tensor([[a.cos(), a.sin()], [-a.sin(), a.cos()]]) for a in angles])
    zoomed, turned = (gradients(drift_of(tracks), tracks, nearest)[2].mean(dim=0) for tracks in (zoom, turn))
    assert zoomed[0] > 10 * max(abs(float(zoomed[1])), float(zoomed[2]))
    assert turned[1] > 10 * max(abs(float(turned[0])), float(turned[2]))


def test_the_chosen_tracks_have_the_cues_they_have_among_all(moving_texture: Clip) -> None:
    motion = ClassicalEstimators().estimate(moving_texture, random_queries(0, 96, 144, 256))
    whole = cues_of(motion)
    assert whole.shape == (12, 96, num_cues(3))
    assert torch.equal(cues_of(motion, slice(40, 60)), whole[:, 40:60])


def test_trails_are_read_where_the_map_says() -> None:
    maps = torch.zeros(2, 1, 1, 5, 5)
    maps[0, 0, 0, 2, 2] = 1.0  # the clean first frame: a peak and nothing round it
    maps[1, 0, 0, 2, 2] = 0.6
    maps[1, 0, 0, 2, 0] = 0.5  # 2 px left of the tracked place: behind a track that moves right by 2 px
    drift = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]])
    assert trail_fits(drift, maps)[:, 0, 0].tolist() == [0, 1]
    behind, ahead, difference, along = trails(drift, maps)[1, 0]
    torch.testing.assert_close(behind, torch.tensor(0.5 + 0.4))
    torch.testing.assert_close(ahead, torch.tensor(0.4))
    torch.testing.assert_close(difference, torch.tensor(0.5))
    torch.testing.assert_close(along, torch.tensor(0.25))
    assert torch.equal(trails(drift, maps)[0, 0], torch.zeros(TRAIL_CUES))


def test_a_drift_that_leaves_the_map_gives_no_trail() -> None:
    maps = torch.rand(2, 1, 1, 5, 5)
    assert torch.equal(trails(torch.tensor([[[0.0, 0.0]], [[2.1, 0.0]]]), maps)[1], torch.zeros(1, TRAIL_CUES))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ghosting_leaves_a_trail_along_the_motion(moving_texture: Clip, seed: int) -> None:
    estimators, queries = ClassicalEstimators(), random_queries(seed, 128, 144, 256)

    def along(clip: Clip) -> float:
        motion = estimators.estimate(clip, queries)
        cue = cues_of(motion)[..., -2 * TRAIL_CUES :].unflatten(-1, (2, TRAIL_CUES))[..., 0, :]  # of the middle scale
        return float(cue[..., 3][cue[..., 3] != 0].mean())

    assert along(with_fault(moving_texture, "ghosted", 0.75, seed)) > along(moving_texture) + 0.02


def test_statistics_are_taken_over_tracks_and_then_frames() -> None:
    cues = torch.zeros(1, 3, 3, 1)
    cues[0, :, :, 0] = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 6.0], [4.0, 2.0, 9.0]])
    found = statistics(cues)[0]
    assert found.shape == (17,)
    medians = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(found[1], medians.mean())
    torch.testing.assert_close(found[4 + 1], medians.std(correction=0))
    torch.testing.assert_close(found[[8 + 1, 12 + 1]], torch.tensor([1.0, 6.0]))
    torch.testing.assert_close(found[3], cues[0].mean())
    deviations = cues[0, :, :, 0].std(dim=1, correction=0)
    torch.testing.assert_close(found[16], deviations.median())


def test_statistics_do_not_depend_on_the_order_of_tracks() -> None:
    torch.manual_seed(0)
    logit, cues = StatisticsLogit(4).eval(), torch.rand(2, 16, 8, 4)
    torch.testing.assert_close(logit(cues), logit(cues[:, torch.randperm(16)]), atol=1e-6, rtol=0)


def test_statistics_logits_are_bounded_only_in_eval_mode() -> None:
    torch.manual_seed(0)
    opinion, cues = StatisticsLogit(4), torch.rand(8, 16, 8, 4)
    final = opinion.classifier[-1]
    torch.nn.init.constant_(final.weight, 5.0)
    assert opinion.train()(cues).abs().max() > BOUND
    assert opinion.eval()(cues).abs().max() <= BOUND
