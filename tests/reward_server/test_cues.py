"""Tests the cues of tracks on known motion: rigid motion, a track that leaves its neighbours, and ghosting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.types import Clip
from reward_server.discriminators.track_statistics import BOUND, StatisticsLogit, statistics
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.faults import with_fault
from reward_server.motion import Motion, random_queries
from reward_server.profiles.cues import KINEMATICS, TRAIL_CUES, kinematics, num_cues, track_cues, trails

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


def test_a_rigid_drift_has_no_motion_relative_to_neighbours() -> None:
    moving = kinematics(grid(5, (3.0, -1.0)))
    assert moving.shape == (5, 64, KINEMATICS)
    assert torch.equal(moving[0, :, :2], torch.zeros(64, 2))
    expected = torch.asinh(torch.tensor([3.0, -1.0]) / 0.1).expand(4, 64, 2)
    torch.testing.assert_close(moving[1:, :, :2], expected)
    torch.testing.assert_close(moving[1:, :, 4:6], torch.zeros(4, 64, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(moving[1:-1, :, 2:4], torch.zeros(3, 64, 2), atol=1e-3, rtol=0)


def test_a_track_that_leaves_its_neighbours_stands_out() -> None:
    tracks = grid(3, (1.0, 0.0))
    tracks[2, 27] += torch.tensor([0.0, 4.0])
    relative = kinematics(tracks)[2, :, 4:6].sinh() * 0.1
    torch.testing.assert_close(relative[27], torch.tensor([0.0, 4.0]), atol=1e-4, rtol=0)
    assert relative[0].norm() < 1e-4  # not its neighbour


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
    behind, ahead, difference, along, fits = trails(drift, maps)[1, 0]
    torch.testing.assert_close(behind, torch.tensor(0.5 + 0.4))
    torch.testing.assert_close(ahead, torch.tensor(0.4))
    torch.testing.assert_close(difference, torch.tensor(0.5))
    torch.testing.assert_close(along, torch.tensor(0.25))
    assert fits == 1
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
        return float(cue[..., 3].sum() / cue[..., 4].sum())

    assert along(with_fault(moving_texture, "ghosted", 0.75, seed)) > along(moving_texture) + 0.02


def test_statistics_are_taken_over_tracks_and_then_frames() -> None:
    cues = torch.zeros(1, 3, 4, 1)
    cues[0, :, 0] = 99.0  # the first frame is left out
    cues[0, :, 1:, 0] = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 6.0], [4.0, 2.0, 9.0]])
    found = statistics(cues)[0]
    assert found.shape == (17,)
    medians = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(found[1], medians.mean())
    torch.testing.assert_close(found[4 + 1], medians.std(correction=0))
    torch.testing.assert_close(found[[8 + 1, 12 + 1]], torch.tensor([1.0, 6.0]))
    torch.testing.assert_close(found[3], cues[0, :, 1:].mean())
    deviations = cues[0, :, 1:, 0].std(dim=1, correction=0)
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
