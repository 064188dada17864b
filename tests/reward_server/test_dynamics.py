"""Tests a clip's dynamics on flow of known size: camera and object motion, the dynamic degree, surviving tracks."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from protos.client import submission
from protos.types import DYNAMICS, Clip, ContractError, Dynamics
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.estimators.dynamics import dynamics, mean_dynamics
from reward_server.motion import Motion, NetworkMotion, random_queries
from reward_server.pipeline import Pipeline
from tests.media import texture

HEIGHT, WIDTH, PAIRS, FPS = 144, 256, 15, 12.0
Places = tuple[np.ndarray, np.ndarray]


def motion_of(flow: Tensor, *, confidence: Tensor | None = None, alive: float = 1.0, fps: float = FPS) -> Motion:
    """A Motion with this flow [P,2,H,W]. A share `alive` of its 8 tracks is visible in the last frame."""
    num_pairs, _, height, width = flow.shape
    visibility = torch.ones(num_pairs + 1, 8)
    visibility[-1, round(8 * alive) :] = 0.0
    maps = torch.ones(num_pairs, height, width)
    return Motion(
        tracks=torch.zeros(num_pairs + 1, 8, 2),
        visibility=visibility,
        confidence=torch.ones(num_pairs + 1, 8),
        correlation=torch.zeros(num_pairs + 1, 8, 1, 3, 3),
        flow=flow.float(),
        residual=maps,
        flow_confidence=maps if confidence is None else confidence,
        fps=fps,
    )


def flow_of(field: Callable[[np.ndarray, np.ndarray], Places], pairs: int = PAIRS) -> Tensor:
    """The same flow [P,2,H,W] px in every pair: `field` gives (u, v) at (x, y)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    u, v = field(x, y)
    return torch.from_numpy(np.stack(np.broadcast_arrays(u, v))).float().expand(pairs, 2, HEIGHT, WIDTH).clone()


def pan(u_px: float, v_px: float = 0.0, pairs: int = PAIRS) -> Tensor:
    return flow_of(lambda x, y: (x * 0 + u_px, y * 0 + v_px), pairs)


def with_object(flow: Tensor, u_px: float) -> Tensor:
    """The same flow, but a quarter of the frame (the middle half of rows and columns) moves by `u_px` to the right."""
    moved = flow.clone()
    inside = (slice(None), slice(None), slice(HEIGHT // 4, 3 * HEIGHT // 4), slice(WIDTH // 4, 3 * WIDTH // 4))
    moved[inside] = torch.tensor([u_px, 0.0])[None, :, None, None]
    return moved


# --- camera and object motion -------------------------------------------------------------------


def test_a_pan_is_camera_motion_in_frame_heights_per_second() -> None:
    found = dynamics(motion_of(pan(3.0, 4.0)))
    assert found.total_motion == pytest.approx(5 * FPS / HEIGHT, rel=1e-5)
    assert found.camera_motion == pytest.approx(5 * FPS / HEIGHT, rel=1e-3)
    assert found.object_motion < 1e-3


def test_an_object_before_a_still_camera_is_object_motion() -> None:
    found = dynamics(motion_of(with_object(pan(0.0), 6.0)))
    quarter = 6 * FPS / HEIGHT / 4
    assert found.object_motion == pytest.approx(quarter, rel=0.1)
    assert found.total_motion == pytest.approx(quarter, rel=0.1)
    assert found.camera_motion < 1e-3


def test_an_object_that_follows_the_camera_has_motion_of_its_own() -> None:
    """The camera pans by 4 px and the object stands still in the picture."""
    found = dynamics(motion_of(with_object(pan(4.0), 0.0)))
    assert found.camera_motion == pytest.approx(4 * FPS / HEIGHT, rel=0.01)
    assert found.object_motion == pytest.approx(4 * FPS / HEIGHT / 4, rel=0.1)
    assert found.total_motion == pytest.approx(4 * FPS / HEIGHT * 3 / 4, rel=0.1)


def turn(x: np.ndarray, y: np.ndarray) -> Places:
    """The camera tilts sideways about the frame's centre and zooms in."""
    across, down = x - WIDTH / 2, y - HEIGHT / 2
    return 0.03 * across - 0.02 * down, 0.02 * across + 0.03 * down


def keystone(x: np.ndarray, y: np.ndarray) -> Places:
    """A homography with perspective: the far side of the picture shrinks."""
    matrix = np.array([[1.0, 0.02, 1.0], [0.0, 1.0, -2.0], [2e-4, 1e-4, 1.0]])
    points = np.stack([x, y], -1).reshape(1, -1, 2)
    moved = cv2.perspectiveTransform(points, matrix).reshape(*x.shape, 2)
    return moved[..., 0] - x, moved[..., 1] - y


@pytest.mark.parametrize("field", [turn, keystone])
def test_a_homography_explains_turns_zooms_and_perspective(field: Callable[..., Places]) -> None:
    flow = flow_of(field)
    length = flow.square().sum(1).sqrt().mean().item()
    found = dynamics(motion_of(flow))
    assert found.total_motion == pytest.approx(length * FPS / HEIGHT, rel=0.05)  # a grid, not every pixel
    assert found.camera_motion == pytest.approx(found.total_motion, rel=0.01)
    assert found.object_motion < 0.02 * found.total_motion


def test_without_one_camera_motion_the_camera_is_the_median() -> None:
    """Random flow has no homography. It does not become a camera motion as large as the flow."""
    flow = 8 * torch.randn(PAIRS, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    found = dynamics(motion_of(flow))
    assert found.camera_motion < 0.2 * found.total_motion
    assert found.object_motion == pytest.approx(found.total_motion, rel=0.05)


def test_uncertain_flow_does_not_count() -> None:
    flow, confidence = pan(2.0), torch.ones(PAIRS, HEIGHT, WIDTH)
    flow[..., : WIDTH // 3] = 50.0
    confidence[..., : WIDTH // 3] = 0.05
    found = dynamics(motion_of(flow, confidence=confidence))
    assert found.total_motion == pytest.approx(2 * FPS / HEIGHT, rel=1e-5)
    assert found.object_motion < 1e-3


def test_a_pair_without_any_certain_flow_counts_as_it_is() -> None:
    found = dynamics(motion_of(pan(2.0), confidence=torch.zeros(PAIRS, HEIGHT, WIDTH)))
    assert found.total_motion == pytest.approx(2 * FPS / HEIGHT, rel=1e-5)


def test_motion_is_per_second_and_per_height() -> None:
    """Twice the rate with half the step, and twice the size with twice the step, are the same motion."""
    reference = dynamics(motion_of(pan(4.0)))
    faster = dynamics(motion_of(pan(2.0), fps=2 * FPS))
    large = torch.nn.functional.interpolate(pan(4.0), scale_factor=2) * 2
    for other in (faster, dynamics(motion_of(large))):
        assert other.total_motion == pytest.approx(reference.total_motion, rel=1e-5)
        assert other.camera_motion == pytest.approx(reference.camera_motion, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 2, 1, 9), (2, 2, 9, 1), (1, 2, 2, 2), (3, 2, 8, 8)])
def test_tiny_frames_have_dynamics_too(shape: tuple[int, ...]) -> None:
    found = dynamics(motion_of(torch.ones(shape)))
    assert found.total_motion == pytest.approx(math.sqrt(2) * FPS / shape[2], rel=1e-5)


# --- dynamic degree and tracks ------------------------------------------------------------------


def threshold_px(fps: float) -> float:
    """VBench's threshold for one step of the clip: 6 px at a shorter side of 256 px, over round(fps / 8) frames."""
    return 6 * HEIGHT / 256 / max(1, round(fps / 8)) * max(1.0, 8 / fps)


@pytest.mark.parametrize("fps", [4.0, 8.0, 12.0, 14.0, 24.0])
def test_a_clip_is_dynamic_above_vbenchs_threshold(fps: float) -> None:
    below, above = (dynamics(motion_of(pan(factor * threshold_px(fps)), fps=fps)) for factor in (0.98, 1.02))
    assert (below.dynamic_degree, above.dynamic_degree) == (0.0, 1.0)


def test_only_the_fastest_twentieth_of_the_frame_has_to_move() -> None:
    flow, fast = pan(0.0), 2 * threshold_px(FPS)
    flow[..., : WIDTH // 12] = fast  # 8 % of the frame
    assert dynamics(motion_of(flow)).dynamic_degree == 1.0
    flow[..., WIDTH // 48 :] = 0.0  # 2 %: the fastest 5 % move by less than the threshold on average
    assert dynamics(motion_of(flow)).dynamic_degree == 0.0


def test_a_quarter_of_the_sampled_frames_has_to_move() -> None:
    """16 frames at 8 per second: at least round(4 * 16 / 16) = 4 pairs."""
    flow = pan(0.0)
    fast = 1.1 * threshold_px(8.0)
    for num, expected in ((3, 0.0), (4, 1.0)):
        flow[:num] = fast
        assert dynamics(motion_of(flow, fps=8.0)).dynamic_degree == expected


def test_swaying_between_sampled_frames_is_no_motion() -> None:
    """At 12 frames per second every second frame counts, and the clip is back by then."""
    sway = pan(5.0) * torch.tensor([1.0, -1.0]).repeat(8)[:PAIRS, None, None, None]
    assert dynamics(motion_of(sway)).dynamic_degree == 0.0
    assert dynamics(motion_of(sway)).total_motion > 0.3


def test_tracks_that_live_to_the_end_are_counted() -> None:
    assert dynamics(motion_of(pan(1.0), alive=0.75)).tracks_alive == 0.75


def test_windows_are_averaged() -> None:
    found = mean_dynamics([motion_of(pan(0.0), alive=0.5), motion_of(pan(6.0))])
    assert found.total_motion == pytest.approx(3 * FPS / HEIGHT, rel=1e-5)
    assert (found.dynamic_degree, found.tracks_alive) == (0.5, 0.75)


# --- the profiles' motion -----------------------------------------------------------------------


def test_a_networks_motion_is_read_alike() -> None:
    """A profile of networks has its tracks in other pixels and an embedding for correlation. Neither is read."""
    plain = motion_of(pan(2.0), alive=0.5)
    parts = {name: getattr(plain, name) for name in ("visibility", "confidence", "flow", "residual", "flow_confidence")}
    network = NetworkMotion(
        **parts,
        tracks=100 * torch.randn(PAIRS + 1, 8, 2),
        correlation=torch.zeros(PAIRS + 1, 8, 5),
        logits=torch.zeros(PAIRS + 1, 8, 2),
        fps=FPS,
    )
    assert dynamics(network) == dynamics(plain)


def estimated(frames: np.ndarray) -> Motion:
    clip = Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=FPS)
    return ClassicalEstimators().estimate(clip, random_queries(0, 64, *clip.frames.shape[2:]))


def test_a_textured_pan_and_a_still_are_measured_from_their_frames() -> None:
    moving = dynamics(estimated(texture(8, HEIGHT, WIDTH, step=2)))
    assert moving.total_motion == pytest.approx(2 * FPS / HEIGHT, rel=0.02)
    assert moving.camera_motion == pytest.approx(2 * FPS / HEIGHT, rel=0.02)
    assert moving.object_motion < 0.1 * moving.camera_motion
    still = dynamics(estimated(np.repeat(texture(1, HEIGHT, WIDTH), 8, axis=0)))
    assert still == Dynamics(
        total_motion=0.0, camera_motion=0.0, object_motion=0.0, dynamic_degree=0.0, tracks_alive=1.0
    )


def test_the_same_motion_gives_the_same_bits() -> None:
    motion = estimated(np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3), dtype=np.uint8))
    assert dynamics(motion) == dynamics(motion)


def test_the_pipeline_sends_the_mean_over_windows(small_pipeline: Pipeline) -> None:
    frames = texture(32, HEIGHT, WIDTH, step=2).transpose(0, 3, 1, 2).copy()
    (outcome,) = small_pipeline.score_submissions([submission(frames, fps=FPS)])
    assert outcome.reward and outcome.reward.dynamics
    assert len(outcome.reward.windows) > 1
    assert outcome.reward.dynamics.camera_motion == pytest.approx(2 * FPS / HEIGHT, rel=0.05)
    assert all(getattr(outcome.reward.dynamics, name) >= 0 for name in DYNAMICS)


@pytest.mark.parametrize(
    ("name", "value"), [("total_motion", -0.1), ("object_motion", math.nan), ("dynamic_degree", 1.1)]
)
def test_dynamics_outside_their_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ContractError, match=f"dynamics.{name} must be finite"):
        Dynamics(**{**dict.fromkeys(DYNAMICS, 0.0), name: value})
