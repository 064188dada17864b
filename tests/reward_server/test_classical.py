"""Tests the classical estimators on known motion. Textures are rendered exactly, so any error is the tracker's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protos.types import Clip
from reward_server.estimators.classical import ClassicalEstimators
from reward_server.estimators.patch_correlation import correlation_maps, resemblance, windows
from reward_server.motion import Motion, gray_levels, random_queries, residual_map

HEIGHT, WIDTH, NUM_FRAMES = 96, 128, 8
Grid = NDArray[np.float64]
Warp = Callable[[Grid, float], Grid]  # points [...,2] (x, y) of the first frame, t -> their positions in frame t


def _texture(seed: int, at: Grid, *, waves: int = 40, shortest_px: float = 8.0, longest_px: float = 40.0) -> Grid:
    """Gray levels of an infinite band-limited texture at points [...,2]: mean 128, standard deviation about 40."""
    rng = np.random.default_rng(seed)
    wavelength, heading, phase = rng.uniform([shortest_px, 0, 0], [longest_px, 2 * np.pi, 2 * np.pi], (waves, 3)).T
    wave = 2 * np.pi / wavelength * np.stack([np.cos(heading), np.sin(heading)])
    return 128 + 40 * np.sqrt(2 / waves) * np.cos(at @ wave + phase).sum(-1)


def _pixels(height: int = HEIGHT, width: int = WIDTH) -> Grid:
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float64)


def _clip(gray: Grid) -> Clip:
    frames = np.rint(gray.clip(0, 255)).astype(np.uint8)
    return Clip(frames=np.repeat(frames[:, None], 3, axis=1), fps=12.0)


def _moving(inverse: Warp, *, num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Clip:
    """Render a moving texture without interpolation: pixel p of frame t shows the texture at inverse(p, t)."""
    pixels = _pixels(height, width)
    return _clip(np.stack([_texture(1, inverse(pixels, t)) for t in range(num_frames)]))


def _drifting(speed: tuple[float, float], **shape: int) -> Clip:
    return _moving(lambda p, t: p - t * np.array(speed), **shape)


def _affine(step: Grid) -> tuple[Warp, Warp]:
    """The motion that applies a 2 x 2 matrix about the frame's centre in every frame, and its inverse."""
    centre = np.array([WIDTH - 1, HEIGHT - 1]) / 2

    def power(p: Grid, t: float) -> Grid:
        return (p - centre) @ np.linalg.matrix_power(step, int(t)).T + centre

    def inverse(p: Grid, t: float) -> Grid:
        return (p - centre) @ np.linalg.matrix_power(np.linalg.inv(step), int(t)).T + centre

    return power, inverse


def _truth(forward: Warp, queries: NDArray[np.int64], num_frames: int = NUM_FRAMES) -> Grid:
    return np.stack([forward(queries.astype(np.float64), t) for t in range(num_frames)])


def _so_far_within(places: Grid, margin_px: float) -> NDArray[np.bool_]:
    """Whether points [T,N] have kept a distance from the border in all frames so far."""
    inside = (places >= margin_px) & (places <= np.array([WIDTH - 1, HEIGHT - 1]) - margin_px)
    return np.logical_and.accumulate(inside.all(-1), axis=0)


def _errors_px(motion: Motion, truth: Grid) -> Grid:
    return np.linalg.norm(motion.tracks.numpy() - truth, axis=-1)


@pytest.fixture(scope="module")
def estimators() -> ClassicalEstimators:
    return ClassicalEstimators()


@pytest.fixture(scope="module")
def queries() -> NDArray[np.int64]:
    return random_queries(0, 256, HEIGHT, WIDTH)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run OpenCV with one thread, because more of them wait for each other on few cores. Restored afterwards."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    yield
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


class TestTranslation:
    @pytest.mark.parametrize("speed", [(0.0, 0.0), (0.3, 0.2), (-1.3, 0.7), (4.2, -2.1), (7.5, 3.0)])
    def test_tracks_and_drift_are_exact_to_a_twentieth_of_a_pixel(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64], speed: tuple[float, float]
    ) -> None:
        motion = estimators.estimate(_drifting(speed), queries)
        truth = _truth(lambda p, t: p + t * np.array(speed), queries)
        clear = _so_far_within(truth, 12)
        assert motion.visibility.numpy()[clear].mean() == 1
        errors = _errors_px(motion, truth)[clear]
        assert np.quantile(errors, 0.99) < 0.04 and errors.max() < 0.06
        drift = np.diff(motion.tracks.numpy(), axis=0)[clear[1:]]
        np.testing.assert_allclose(drift, np.broadcast_to(speed, drift.shape), atol=0.05)
        assert motion.confidence.numpy()[clear].mean() > 0.9

    def test_first_row_is_the_queries_seen_with_certainty(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        motion = estimators.estimate(_drifting((1.3, 0.7)), queries)
        np.testing.assert_array_equal(motion.tracks[0].numpy(), queries)
        assert motion.visibility[0].min() == 1 and motion.confidence[0].min() > 0.6

    def test_points_that_leave_the_frame_stay_lost_and_move_on(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        motion = estimators.estimate(_drifting((5.3, 0.0)), queries)
        truth = _truth(lambda p, t: p + t * np.array([5.3, 0.0]), queries)
        gone = truth[..., 0] > WIDTH
        assert gone[-1].sum() > 50
        visible = motion.visibility.numpy() > 0
        assert visible[gone].mean() < 0.02
        assert not (np.diff(visible.astype(int), axis=0) > 0).any()
        assert np.median(np.diff(motion.tracks.numpy()[..., 0], axis=0)[gone[1:]]) > 2  # no sudden stop at the border
        assert motion.correlation.numpy()[motion.tracks.numpy()[..., 0] > WIDTH - 1].max() == 0

    def test_correlation_peaks_at_the_centre_near_one(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        motion = estimators.estimate(_drifting((-1.3, 0.7)), queries)
        clear = _so_far_within(_truth(lambda p, t: p + t * np.array([-1.3, 0.7]), queries), 24)
        maps = motion.correlation.numpy()[clear]
        assert len(maps) > 400
        assert maps[:, 0, 2, 2].min() > 0.97 and maps[..., 2, 2].mean(0).min() > 0.985  # bilinear blur is the loss
        assert (maps[:, 0].reshape(len(maps), -1).argmax(1) == 12).mean() > 0.99
        assert maps.min() >= -1 and maps.max() <= 1 and maps[:, 0].min() < 0  # and is not one everywhere

    def test_flow_residual_and_confidence_match_the_motion(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        clip, speed = _drifting((2.0, 0.0)), np.array([2.0, 0.0], np.float32)
        motion = estimators.estimate(clip, queries)
        inner = (..., slice(12, -12), slice(12, -12))
        exact = torch.from_numpy(np.broadcast_to(speed[:, None, None], motion.flow.shape).copy())
        assert (motion.flow - exact).square().sum(1).sqrt()[inner].mean() < 0.05
        frames = torch.from_numpy(clip.frames).float()
        difference = motion.residual - residual_map(frames[None], exact[None])[0]
        change = residual_map(frames[None], torch.zeros_like(exact)[None])[0]
        assert difference[inner].square().mean() < 0.01 * change[inner].square().mean()
        assert motion.residual[inner].square().mean() < 0.3 * change[inner].square().mean()  # short waves: 2nd order
        assert motion.flow_confidence[inner].mean() > 0.9
        assert motion.flow_confidence[:, 12:-12, -1].max() == 0  # two pixels further is outside


STEPS = {
    "rotation": np.array([[np.cos(0.035), -np.sin(0.035)], [np.sin(0.035), np.cos(0.035)]]),
    "zoom in": np.eye(2) * 1.02,
    "zoom out": np.eye(2) / 1.02,
    "shear": np.array([[1.0, 0.03], [0.0, 1.0]]),
    "affine": np.array([[1.02, -0.02], [0.03, 0.985]]),
}


@pytest.mark.parametrize("name", STEPS)
def test_tracks_follow_affine_motion(name: str, estimators: ClassicalEstimators, queries: NDArray[np.int64]) -> None:
    forward, inverse = _affine(STEPS[name])
    motion = estimators.estimate(_moving(inverse), queries)
    truth = _truth(forward, queries)
    clear = _so_far_within(truth, 12)
    errors, visible = _errors_px(motion, truth), motion.visibility.numpy() > 0
    kept = clear & visible
    assert visible[clear].mean() > 0.99
    # Lucas-Kanade takes its window to move as one, which biases each step by up to a quarter of a pixel here
    steps = np.linalg.norm(np.diff(motion.tracks.numpy() - truth, axis=0), axis=-1)[kept[1:]]
    assert np.median(steps) < 0.1 and np.quantile(steps, 0.99) < 0.25
    assert np.median(errors[kept]) < 0.25 and np.quantile(errors[kept], 0.99) < 1.3
    exact = forward(_pixels(), 1) - _pixels()
    flow = motion.flow.permute(0, 2, 3, 1).numpy() - exact
    assert np.median(np.linalg.norm(flow, axis=-1)[:, 12:-12, 12:-12]) < 0.1


SPEED_PX, LEFT_PX, BREADTH_PX = 6.0, 10.0, 30.0
Scene = tuple[Motion, Grid, NDArray[np.bool_]]


@pytest.fixture(scope="module")
def scene(estimators: ClassicalEstimators) -> Scene:
    return _crossing_bar(estimators, SPEED_PX)


def _crossing_bar(estimators: ClassicalEstimators, speed_px: float) -> Scene:
    """A textured bar crosses a still texture: the motion, its left edge per frame, and the points it covers [T,N]."""
    queries, pixels = random_queries(0, 512, HEIGHT, WIDTH), _pixels()
    edge = LEFT_PX + speed_px * np.arange(NUM_FRAMES)
    frames = []
    for t, left in enumerate(edge):
        bar = (pixels[..., :1] >= left) & (pixels[..., :1] < left + BREADTH_PX)
        frames.append(np.where(bar[..., 0], _texture(2, pixels - [speed_px * t, 0]), _texture(1, pixels)))
    covered = (queries[:, 0] >= edge[:, None]) & (queries[:, 0] < edge[:, None] + BREADTH_PX)
    return estimators.estimate(_clip(np.stack(frames)), queries), edge, covered


class TestOcclusion:
    def _never_near(self, motion: Motion, edge: Grid, covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Background points [T,N] that have stayed 12 px or more away from the bar and from the border."""
        x, y = motion.tracks[0].numpy().T
        near = (x > edge[:, None] - 12) & (x < edge[:, None] + BREADTH_PX + 12)
        inner = (x >= 12) & (x <= WIDTH - 13) & (y >= 12) & (y <= HEIGHT - 13)
        return ~np.logical_or.accumulate(near, axis=0) & inner & ~covered[0]

    def test_covered_points_are_lost_and_only_they(self, scene: Scene) -> None:
        motion, edge, covered = scene
        lost = motion.visibility.numpy() == 0
        behind = np.logical_or.accumulate(covered & ~covered[0], axis=0)  # now or before: lost points stay lost
        x = motion.tracks[0].numpy()[:, 0]
        deep = behind & (x < edge[:, None] + BREADTH_PX - 4)
        clear = self._never_near(motion, edge, covered)
        assert deep.sum() > 500 and clear.sum() > 500
        assert lost[deep].mean() > 0.95  # recall
        assert lost[clear].sum() == 0  # precision, away from the edge
        inner = (motion.tracks[0].numpy()[:, 1] >= 12) & (motion.tracks[0].numpy()[:, 1] <= HEIGHT - 13)
        ahead = ~covered[0] & inner & (x > LEFT_PX + BREADTH_PX) & (x <= WIDTH - 13)
        assert behind[:, ahead][lost[:, ahead]].mean() > 0.6  # the others are within the patch of an edge

    def test_slow_covering_is_noticed_by_the_changed_patch(self) -> None:
        """A slow edge drags a point along. Forward and backward tracking agree, although the position is wrong."""
        trusting = ClassicalEstimators(least_resemblance=-1.0)
        seen = {}
        for estimators in (ClassicalEstimators(), trusting):
            motion, edge, covered = _crossing_bar(estimators, 3.0)
            hidden = np.logical_or.accumulate(covered & ~covered[0], axis=0)
            deep = hidden & (motion.tracks[0].numpy()[:, 0] < edge[:, None] + BREADTH_PX - 4)
            seen[estimators] = (motion.visibility.numpy()[deep] > 0).mean()
        assert seen[ClassicalEstimators()] < min(0.4, 0.65 * seen[trusting])

    def test_points_of_the_bar_ride_on_it_and_the_background_stays(self, scene: Scene) -> None:
        motion, edge, covered = scene
        x, y = motion.tracks[0].numpy().T
        on_bar = covered[0] & (np.minimum(x - edge[0], edge[0] + BREADTH_PX - x) > 9) & (y >= 12) & (y <= HEIGHT - 13)
        truth = motion.tracks[:1].numpy() + SPEED_PX * np.arange(NUM_FRAMES)[:, None, None] * np.array([1.0, 0.0])
        assert on_bar.sum() > 30 and motion.visibility.numpy()[:, on_bar].min() == 1
        assert _errors_px(motion, truth)[:, on_bar].max() < 0.1
        clear = self._never_near(motion, edge, covered)
        assert _errors_px(motion, motion.tracks[:1].numpy())[clear].max() < 0.05

    def test_lost_points_are_carried_by_the_flow(self, scene: Scene) -> None:
        motion, _, _ = scene
        tracks, lost = motion.tracks.numpy(), motion.visibility.numpy() == 0
        for t in range(NUM_FRAMES - 1):
            flow = motion.flow[t].double().numpy()
            for here, there in zip(tracks[t, lost[t]], tracks[t + 1, lost[t]], strict=True):
                carried = [_bilinear(channel, *here.clip(0, [WIDTH - 1, HEIGHT - 1])) for channel in flow]
                np.testing.assert_allclose(there - here, carried, atol=0.2)  # OpenCV samples at 1/32 px
        assert lost[:-1].sum() > 500

    def test_covered_points_and_uncovered_pixels_are_not_trusted(self, scene: Scene) -> None:
        motion, edge, covered = scene
        now = covered & ~covered[0]
        clear = self._never_near(motion, edge, covered)
        confidence = motion.confidence.numpy()
        assert confidence[now].mean() < 0.4 and confidence[clear].mean() > 0.9
        peak = motion.correlation.numpy()[:, :, 0].max((-2, -1)).clip(0, 1)
        assert (confidence <= peak).all()  # something else seen at the place is not the query
        ahead = int(edge[3] + BREADTH_PX)  # what the bar is about to cover has no match in the next frame
        about_to_vanish = motion.flow_confidence[3, 12:-12, ahead + 1 : ahead + 5].mean()
        assert about_to_vanish < 0.7 * motion.flow_confidence[3, 12:-12, ahead + 20 : ahead + 30].mean()


class TestConfidence:
    def test_is_near_zero_on_a_flat_ground_and_high_on_texture(self, estimators: ClassicalEstimators) -> None:
        pixels = _pixels()
        gray = np.where(pixels[..., 0] < WIDTH // 2, 90.0, _texture(1, pixels))
        queries = random_queries(0, 256, HEIGHT, WIDTH)
        motion = estimators.estimate(_clip(np.stack([gray] * 4)), queries)
        flat, textured = queries[:, 0] < WIDTH // 2 - 16, queries[:, 0] > WIDTH // 2 + 8
        assert motion.confidence[:, flat].max() < 1e-3 and motion.confidence[:, textured].min() > 0.7
        assert motion.correlation[:, flat, 0].abs().max() < 1e-3
        assert motion.visibility[:, flat].min() == 1  # in sight, though nothing says where
        assert (motion.tracks[:, flat] - motion.tracks[:1, flat]).abs().max() < 0.05

    def test_is_near_zero_on_an_edge_that_hides_motion_along_it(self, estimators: ClassicalEstimators) -> None:
        """The aperture problem: the slopes are strong in one direction only."""
        stripes = 128 + 60 * np.sin(0.4 * _pixels()[..., 0])
        motion = estimators.estimate(_clip(np.stack([stripes] * 3)), random_queries(0, 64, HEIGHT, WIDTH))
        assert motion.confidence.max() < 0.05

    def test_of_the_flow_falls_with_noise_all_over_the_frame(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        rng = np.random.default_rng(0)
        clean = _drifting((0.5, 0.0), num_frames=4)
        noise = rng.normal(0, 40, (4, 1, HEIGHT, WIDTH))
        noisy = Clip(frames=(clean.frames + noise).clip(0, 255).astype(np.uint8), fps=12.0)
        sure, unsure = (estimators.estimate(clip, queries).flow_confidence for clip in (clean, noisy))
        assert unsure.median() < sure.median() - 0.05  # over the map's own median both would be exp(-1)


def _bilinear(image: Grid, x: float, y: float) -> float:
    """Bilinear sampling written out by hand; coordinates beyond the border are clamped to it."""
    height, width = image.shape
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    total = 0.0
    for cx, cy in ((x0, y0), (x0 + 1, y0), (x0, y0 + 1), (x0 + 1, y0 + 1)):
        weight = (1 - abs(x - cx)) * (1 - abs(y - cy))
        total += weight * image[min(max(cy, 0), height - 1), min(max(cx, 0), width - 1)]
    return total


def _patch(image: Grid, x: float, y: float, side: int) -> Grid:
    span = range(-(side // 2), side // 2 + 1)
    return np.array([[_bilinear(image, x + dx, y + dy) for dx in span] for dy in span])


class TestPatchCorrelation:
    @pytest.mark.parametrize(("window", "patch"), [(5, 7), (3, 3)])
    def test_equals_a_loop_over_the_definition(self, window: int, patch: int) -> None:
        rng = np.random.default_rng(4)
        gray = np.stack([_texture(s, _pixels(23, 31)) for s in range(3)]).astype(np.float32)
        places = rng.uniform([-2, -2], [32, 24], (3, 6, 2)).astype(np.float32)
        maps = correlation_maps(gray, places, scales=2, window=window, patch=patch, floor=1.0)
        assert maps.shape == (3, 6, 2, window, window) and maps.dtype == np.float32
        half = window // 2
        pyramid = [gray.astype(np.float64), np.stack([cv2.pyrDown(g) for g in gray]).astype(np.float64)]
        for t, n, level, i, j in np.ndindex(maps.shape):
            x, y = places[t, n].astype(np.float64) / 2**level
            query = _patch(pyramid[level][0], *(places[0, n].astype(np.float64) / 2**level), patch)
            other = _patch(pyramid[level][t], x + j - half, y + i - half, patch)
            covariance = ((query - query.mean()) * (other - other.mean())).mean()
            expected = covariance / np.sqrt((query.var() + 1) * (other.var() + 1))
            assert maps[t, n, level, i, j] == pytest.approx(expected, abs=2e-4)

    def test_windows_at_whole_pixels_are_clamped_copies(self) -> None:
        gray = np.arange(35, dtype=np.float32).reshape(5, 7)
        cut = windows(gray, np.array([[3, 2], [0, 4]], np.float32), 3)
        np.testing.assert_array_equal(cut[..., 0], gray[1:4, 2:5])
        np.testing.assert_array_equal(cut[..., 1], [[21, 21, 22], [28, 28, 29], [28, 28, 29]])

    def test_resemblance_of_equal_flat_and_opposite_patches(self) -> None:
        patch = np.random.default_rng(0).normal(100, 30, (7, 7, 3)).astype(np.float32)
        flat = np.full_like(patch, 60.0)
        np.testing.assert_allclose(resemblance(patch, patch + 20, 1.0), 1, atol=1e-5)
        np.testing.assert_allclose(resemblance(flat, flat + 90, 1.0), 1, atol=1e-6)
        np.testing.assert_allclose(resemblance(patch, -patch, 1e-6), -1, atol=1e-5)
        assert resemblance(patch, flat, 32.0).max() < 0.1


class TestEveryClip:
    @pytest.mark.parametrize(
        ("num_frames", "height", "width", "num"), [(2, 96, 128, 16), (3, 37, 53, 1), (5, 32, 200, 40), (16, 48, 48, 64)]
    )
    def test_gets_finite_motion_of_the_promised_shapes_and_ranges(
        self, estimators: ClassicalEstimators, num_frames: int, height: int, width: int, num: int
    ) -> None:
        clip = _drifting((1.1, -0.6), num_frames=num_frames, height=height, width=width)
        motion = estimators.estimate(clip, random_queries(1, num, height, width))
        assert motion.tracks.shape == (num_frames, num, 2) and motion.flow.shape == (num_frames - 1, 2, height, width)
        assert motion.correlation.shape == (num_frames, num, 3, 5, 5) and motion.fps == clip.fps
        values = {f.name: getattr(motion, f.name) for f in fields(motion) if f.name != "fps"}
        assert all(torch.isfinite(value).all() for value in values.values())
        for name in ("visibility", "confidence", "flow_confidence"):
            assert values[name].min() >= 0 and values[name].max() <= 1

    @pytest.mark.parametrize("level", [0, 255])
    def test_may_be_black_or_white(self, estimators: ClassicalEstimators, level: int) -> None:
        clip = _clip(np.full((3, HEIGHT, WIDTH), float(level)))
        motion = estimators.estimate(clip, random_queries(0, 32, HEIGHT, WIDTH))
        assert motion.residual.abs().max() == motion.confidence.max() == 0
        assert motion.correlation.abs().max() < 1e-6
        assert torch.equal(motion.tracks, motion.tracks[:1].expand_as(motion.tracks))

    def test_may_be_queried_in_its_corners(self, estimators: ClassicalEstimators) -> None:
        corners = np.array([[0, 0], [WIDTH - 1, 0], [0, HEIGHT - 1], [WIDTH - 1, HEIGHT - 1]])
        motion = estimators.estimate(_drifting((0.0, 0.0), num_frames=3), corners)
        assert motion.visibility.min() == 1
        assert (motion.tracks - torch.from_numpy(corners)).abs().max() < 0.05

    def test_same_bits_with_other_threads_and_concurrent_clips(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        clips = [_drifting((speed, 0.4), num_frames=4) for speed in (0.8, 3.0)]
        alone = [estimators.estimate(clip, queries) for clip in clips]
        cv2.setNumThreads(2)
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda clip: estimators.estimate(clip, queries), clips * 2))
        for expected, got in zip(alone * 2, together, strict=True):
            assert all(
                torch.equal(getattr(expected, f.name), getattr(got, f.name)) for f in fields(Motion) if f.name != "fps"
            )

    def test_tracks_each_point_independently_of_the_others(
        self, estimators: ClassicalEstimators, queries: NDArray[np.int64]
    ) -> None:
        clip = _drifting((2.4, 0.4), num_frames=4)
        many, few = (estimators.estimate(clip, queries[:num]) for num in (256, 37))
        for name in ("tracks", "visibility", "confidence", "correlation"):
            torch.testing.assert_close(getattr(many, name)[:, :37], getattr(few, name), rtol=0, atol=1e-5)

    def test_gray_is_the_published_weighting_of_its_colours(self) -> None:
        frames = torch.tensor([100.0, 50.0, 200.0]).reshape(3, 1, 1)
        assert gray_levels(frames).item() == pytest.approx(0.2989 * 100 + 0.587 * 50 + 0.114 * 200, abs=1e-4)


class TestRefusals:
    @pytest.mark.parametrize("point", [(-1, 5), (5, -1), (WIDTH, 5), (5, HEIGHT), (np.nan, 5)])
    def test_a_query_outside_the_frame(self, estimators: ClassicalEstimators, point: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="queries"):
            estimators.estimate(_drifting((0.0, 0.0), num_frames=2), np.array([(3, 3), point]))

    @pytest.mark.parametrize(("num_frames", "shape"), [(1, (4, 2)), (2, (4, 3)), (2, (0, 2)), (2, (2,))])
    def test_too_few_frames_or_no_points(
        self, estimators: ClassicalEstimators, num_frames: int, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match="at least 2 frames and queries"):
            estimators.estimate(_drifting((0.0, 0.0), num_frames=num_frames), np.zeros(shape))

    @pytest.mark.parametrize("settings", [{"window": 4}, {"patch": 6}, {"num_scales": 0}])
    def test_settings_without_a_centre(self, settings: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="odd"):
            ClassicalEstimators(**settings)
