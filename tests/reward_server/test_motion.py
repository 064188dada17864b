"""Tests the formulas of the motion state against closed forms and slow references written from the formulas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from reward_server.motion import (
    DISPLACEMENT_FEATURES,
    GRAY,
    Motion,
    displacement_features,
    gray_levels,
    mixture_confidence,
    random_queries,
    residual_map,
    spread_queries,
)

GOLDEN_QUERIES = [[212, 99], [74, 80], [154, 62], [149, 23], [238, 109], [129, 136], [34, 114], [87, 3]]
GOLDEN_QUERIES_LAST_SEED = [[2, 0], [4, 4], [2, 5], [1, 4]]
GOLDEN_SPREAD = [[51, 133], [232, 2], [131, 52], [79, 12], [154, 134], [170, 110]]


def _random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _frames(*shape: int, seed: int = 0) -> Tensor:
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestRandomQueries:
    @pytest.mark.parametrize(("height", "width", "num"), [(144, 256, 1024), (7, 5, 35), (1, 9, 4)])
    def test_are_distinct_pixels_of_the_frame(self, height: int, width: int, num: int) -> None:
        queries = random_queries(3, num, height, width)
        assert queries.shape == (num, 2) and queries.dtype == np.int64
        assert len({tuple(q) for q in queries.tolist()}) == num
        assert queries.min() >= 0 and queries[:, 0].max() < width and queries[:, 1].max() < height

    def test_are_the_same_everywhere(self) -> None:
        """Golden values: print(random_queries(seed, num, height, width).tolist())."""
        assert random_queries(0, 8, 144, 256).tolist() == GOLDEN_QUERIES
        assert random_queries(2**64 - 1, 4, 7, 5).tolist() == GOLDEN_QUERIES_LAST_SEED

    def test_of_a_longer_draw_begin_with_the_shorter(self) -> None:
        np.testing.assert_array_equal(random_queries(5, 1024, 40, 60)[:256], random_queries(5, 256, 40, 60))

    def test_differ_between_seeds_and_cover_the_frame(self) -> None:
        first, second = (random_queries(seed, 400, 100, 100) for seed in (1, 2))
        assert len({tuple(q) for q in first.tolist()} & {tuple(q) for q in second.tolist()}) < 60
        counts = np.histogram2d(first[:, 0], first[:, 1], bins=2, range=[[0, 100], [0, 100]])[0]
        assert counts.min() > 65  # 100 expected per quarter, standard deviation under 9

    @pytest.mark.parametrize("num", [0, 36])
    def test_refuse_a_number_the_frame_does_not_have(self, num: int) -> None:
        with pytest.raises(ValueError, match=r"1\.\.35 .* got"):
            random_queries(0, num, 7, 5)


class TestSpreadQueries:
    @pytest.mark.parametrize(("height", "width", "num"), [(144, 256, 256), (192, 192, 1024), (7, 5, 35), (1, 9, 4)])
    def test_are_distinct_pixels_of_the_frame(self, height: int, width: int, num: int) -> None:
        queries = spread_queries(3, num, height, width)
        assert queries.shape == (num, 2) and queries.dtype == np.int64
        assert len({tuple(q) for q in queries.tolist()}) == num
        assert queries.min() >= 0 and queries[:, 0].max() < width and queries[:, 1].max() < height

    @pytest.mark.parametrize("seed", range(5))
    def test_leave_no_part_of_the_frame_empty(self, seed: int) -> None:
        x, y = spread_queries(seed, 256, 144, 256).T
        counts = np.histogram2d(y, x, bins=(6, 8), range=[[0, 144], [0, 256]])[0]
        assert counts.min() >= 2 and counts.max() <= 9  # 5.3 expected; a free draw leaves from 0 to 13

    def test_are_in_random_order(self) -> None:
        """Training reads tracks that lie next to each other in the draw; they must not lie so in the frame."""
        x, y = spread_queries(0, 256, 144, 256)[:64].T
        assert x.min() < 40 and x.max() > 215 and y.min() < 25 and y.max() > 118

    def test_are_the_same_everywhere(self) -> None:
        """Golden values: print(spread_queries(seed, num, height, width).tolist())."""
        assert spread_queries(0, 6, 144, 256).tolist() == GOLDEN_SPREAD
        assert not np.array_equal(spread_queries(1, 6, 144, 256), spread_queries(0, 6, 144, 256))

    @pytest.mark.parametrize("num", [0, 36])
    def test_refuse_a_number_the_frame_does_not_have(self, num: int) -> None:
        with pytest.raises(ValueError, match=r"1\.\.35 .* got"):
            spread_queries(0, num, 7, 5)


class TestDisplacementFeatures:
    def test_of_a_still_track_are_those_of_zero(self) -> None:
        features = displacement_features(torch.full((1, 4, 2, 2), 17.25), (64.0, 36.0))
        expected = torch.cat([torch.zeros(44), torch.ones(40)])
        torch.testing.assert_close(features, expected.expand(1, 4, 2, 84), rtol=0, atol=0)

    def test_carry_the_exact_drift_forward_negated_and_backward(self) -> None:
        tracks = torch.tensor([[1.0, 2.0], [3.0, 1.0], [3.5, 1.0]])[None, :, None]
        drift = displacement_features(tracks, (2.0, 4.0))[0, :, 0, :4]
        expected = torch.tensor([[-1.0, 0.25, 0.0, 0.0], [-0.25, 0.0, 1.0, -0.25], [0.0, 0.0, 0.25, 0.0]])
        torch.testing.assert_close(drift, expected, rtol=0, atol=0)

    def test_equal_a_loop_over_the_formula(self) -> None:
        tracks, scale = _random(2, 5, 3, 2, scale=2.0), (7.0, 11.0)
        features = displacement_features(tracks, scale).double().numpy()
        assert features.shape == (2, 5, 3, DISPLACEMENT_FEATURES) == (2, 5, 3, 84)
        c = tracks.double().numpy() / np.array(scale)
        for b, t, n in np.ndindex(2, 5, 3):
            forward = c[b, t, n] - c[b, t + 1, n] if t < 4 else np.zeros(2)
            backward = c[b, t, n] - c[b, t - 1, n] if t > 0 else np.zeros(2)
            p = [*forward, *backward]
            sines = [math.sin(2**k * value) for k in range(10) for value in p]
            cosines = [math.sin(2**k * value + math.pi / 2) for k in range(10) for value in p]
            np.testing.assert_allclose(features[b, t, n], [*p, *sines, *cosines], atol=1e-4)  # float32 times 2^9

    def test_refuse_other_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"\[B,T,N,2\], got \[4, 3, 2\]"):
            displacement_features(torch.zeros(4, 3, 2), (1.0, 1.0))


def _reference_residual(frames: Tensor, flow: Tensor) -> np.ndarray:
    """The formula of `residual_map`, pixel by pixel in float64."""
    rgb, uv = frames.double().numpy(), flow.double().numpy()
    batch, num_frames, _, height, width = rgb.shape
    out = np.zeros((batch, num_frames - 1, height, width))
    for b, t in np.ndindex(batch, num_frames - 1):
        one, two = (0.2989 * f[0] + 0.587 * f[1] + 0.114 * f[2] for f in rgb[b, t : t + 2])
        rms = (
            math.sqrt(
                sum(uv[b, t, 0, y, x] ** 2 + uv[b, t, 1, y, x] ** 2 for y, x in np.ndindex(height, width))
                / (height * width)
            )
            + 1e-6
        )
        for y, x in np.ndindex(height, width):
            on_side, on_top = x in (0, width - 1), y in (0, height - 1)
            slope_x = 0.0 if on_side else one[y, x + 1] - one[y, x - 1]
            slope_y = 0.0 if on_top else one[y + 1, x] - one[y - 1, x]
            change = 0.0 if on_side or on_top else two[y, x] - one[y, x]
            out[b, t, y, x] = slope_x * uv[b, t, 0, y, x] / rms + slope_y * uv[b, t, 1, y, x] / rms + change
    return out


def _wave(speed: float, *, wavelength: float = 24.0, contrast: float = 50.0) -> tuple[Tensor, Tensor, Tensor]:
    """Two frames of a sine that moves right by `speed` px, its exact flow, and the phase k x of every column."""
    phase = 2 * math.pi / wavelength * torch.arange(64, dtype=torch.float64)
    shift = 2 * math.pi / wavelength * speed
    rows = torch.stack([128 + contrast * phase.sin(), 128 + contrast * (phase - shift).sin()])
    frames = rows[None, :, None, None, :].expand(1, 2, 3, 9, 64)
    flow = torch.zeros(1, 1, 2, 9, 64, dtype=torch.float64)
    flow[:, :, 0] = speed
    return frames, flow, phase


class TestResidualMap:
    @pytest.mark.parametrize("speed", [-3.0, -0.4, 0.5, 1.0, 2.0, 3.7])
    def test_of_a_translating_wave_is_its_closed_form(self, speed: float) -> None:
        """With the normalised flow sign(s) it is 2 A cos(kx) sin(k) sign(s) + A sin(kx - ks) - A sin(kx)."""
        frames, flow, phase = _wave(speed)
        k = 2 * math.pi / 24.0
        slope = 2 * 50.0 * math.sin(k) * phase.cos() * math.copysign(1, speed)
        change = 50.0 * ((phase - k * speed).sin() - phase.sin())
        residual = residual_map(frames, flow)[0, 0]
        weight = sum(GRAY)  # 0.9999: the published weights do not add up to one
        torch.testing.assert_close(
            residual[1:-1, 1:-1], (weight * (slope + change))[1:-1].expand(7, -1), rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close(
            residual[0, 1:-1], weight * slope[1:-1], rtol=1e-5, atol=1e-4
        )  # no I_t on the border
        assert residual[:, [0, -1]].abs().max() == 0

    def test_is_zero_to_first_order_only_at_two_pixels_per_frame(self) -> None:
        """Without the factor 1/2 in the kernel [-1, 0, 1], a unit flow predicts the change of a motion by 2 px, so that
        (2 - s) dI/dx remains."""
        for speed in (0.5, 1.0, 2.0, 3.0):
            frames, flow, phase = _wave(speed, wavelength=400.0)
            slope = 50.0 * 2 * math.pi / 400.0 * phase.cos()
            residual = residual_map(frames, flow)[0, 0, 4, 1:-1]
            torch.testing.assert_close(residual, ((2 - speed) * slope)[1:-1], rtol=0, atol=0.08)
        frames, flow, _ = _wave(2.0)
        change, residual = (residual_map(frames, f)[0, 0, 1:-1] for f in (torch.zeros_like(flow), flow))
        assert residual.square().mean() < 0.08 * change.square().mean()

    @pytest.mark.parametrize("shape", [(2, 3, 3, 7, 9), (1, 2, 3, 3, 3), (1, 4, 3, 2, 6)])
    def test_equals_a_loop_over_the_formula(self, shape: tuple[int, int, int, int, int]) -> None:
        batch, num_frames, _, height, width = shape
        frames, flow = _frames(*shape), _random(batch, num_frames - 1, 2, height, width, seed=1, scale=3.0)
        np.testing.assert_allclose(residual_map(frames, flow).numpy(), _reference_residual(frames, flow), atol=2e-3)

    @pytest.mark.parametrize("motion", ["rotation", "zoom"])
    def test_equals_the_loop_on_turning_and_growing_textures(self, motion: str) -> None:
        y, x = torch.meshgrid(torch.arange(20.0), torch.arange(26.0), indexing="ij")
        dx, dy = x - 12.5, y - 9.5
        flow = torch.stack([-0.05 * dy, 0.05 * dx] if motion == "rotation" else [0.04 * dx, 0.04 * dy])

        def texture(x: Tensor, y: Tensor) -> Tensor:
            return (128 + 60 * torch.sin(0.5 * x + 0.2 * y) * torch.cos(0.3 * y - 0.1 * x)).expand(3, -1, -1)

        frames = torch.stack([texture(x, y), texture(x - flow[0], y - flow[1])])[None]
        expected = _reference_residual(frames, flow[None, None])
        np.testing.assert_allclose(residual_map(frames, flow[None, None]).numpy(), expected, atol=1e-3)

    def test_does_not_depend_on_the_scale_of_the_flow(self) -> None:
        frames, flow = _frames(1, 3, 3, 8, 10), _random(1, 2, 2, 8, 10)
        torch.testing.assert_close(residual_map(frames, 40 * flow), residual_map(frames, flow), rtol=1e-4, atol=1e-3)

    def test_of_no_flow_is_the_change_alone(self) -> None:
        frames = _frames(1, 2, 3, 6, 6)
        residual = residual_map(frames, torch.zeros(1, 1, 2, 6, 6))[0, 0]
        gray = gray_levels(frames)[0]
        torch.testing.assert_close(residual[1:-1, 1:-1], (gray[1] - gray[0])[1:-1, 1:-1], rtol=0, atol=0)
        assert residual[[0, -1]].abs().max() == residual[:, [0, -1]].abs().max() == 0

    @pytest.mark.parametrize("bad", [(1, 3, 2, 6, 6), (1, 2, 2, 6, 5), (2, 2, 2, 6, 6)])
    def test_refuses_a_flow_of_other_frames(self, bad: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"need frames \[B,T,3,H,W\]"):
            residual_map(torch.zeros(1, 3, 3, 6, 6), torch.zeros(*bad))


def _info(*rows: tuple[float, float, float, float]) -> Tensor:
    """An info map [4,1,W] from a tuple (w0, w1, b0, b1) per pixel."""
    return torch.tensor(rows, dtype=torch.float64).T[:, None]


class TestMixtureConfidence:
    def test_compares_each_uncertainty_with_the_lower_median(self) -> None:
        """With equal weights and b1 = 0, uncertainty is (exp(b0) + 1) / 2. The lower median of four is the second."""
        scales = [0.0, math.log(3), math.log(7), math.log(19)]  # uncertainties 1, 2, 4, 10
        confidence = mixture_confidence(_info(*((0.0, 0.0, b, 0.0) for b in scales)), 0.0, 10.0)
        expected = [math.exp(-u / 2) for u in (1, 2, 4, 10)]
        torch.testing.assert_close(confidence[0], torch.tensor(expected, dtype=torch.float64))

    def test_clamps_each_scale_to_its_own_range(self) -> None:
        rows = [(0.0, 0.0, -5.0, 4.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 50.0, -50.0), (0.0, 0.0, 2.0, -1.0)]
        wide = [1.0, 1.0, math.exp(2), math.exp(2)]
        narrow = [1.0, 1.0, math.exp(-1), math.exp(-1)]
        confidence = mixture_confidence(_info(*rows), -1.0, 2.0)
        expected = [math.exp(-(a + b) / 2) for a, b in zip(wide, narrow, strict=True)]  # the lower median is 1
        torch.testing.assert_close(confidence[0], torch.tensor(expected, dtype=torch.float64))

    def test_weighs_the_scales_by_softmax(self) -> None:
        rows = [(math.log(3), 0.0, math.log(5), 0.0), (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)]
        confidence = mixture_confidence(_info(*rows), 0.0, 10.0)
        assert confidence[0, 0].item() == pytest.approx(math.exp(-(0.75 * 5 + 0.25)))

    def test_stays_in_range(self) -> None:
        confidence = mixture_confidence(_random(2, 3, 4, 6, 5, scale=20.0), 0.0, 10.0)
        assert confidence.shape == (2, 3, 6, 5)
        assert confidence.min() == pytest.approx(1e-6) and confidence.max() <= 1

    def test_refuses_other_channels(self) -> None:
        with pytest.raises(ValueError, match=r"\[...,4,H,W\], got \[6, 8, 8\]"):
            mixture_confidence(torch.zeros(6, 8, 8), 0.0, 10.0)


@pytest.mark.parametrize(
    ("formula", "inputs"),
    [
        (lambda tracks: displacement_features(tracks, (96.0, 96.0)), (_random(3, 6, 10, 2, scale=9.0),)),
        (residual_map, (_frames(3, 4, 3, 33, 47), _random(3, 3, 2, 33, 47))),
        (lambda info: mixture_confidence(info, 0.0, 10.0), (_random(3, 2, 4, 33, 47),)),
    ],
    ids=["displacement_features", "residual_map", "mixture_confidence"],
)
def test_a_clip_has_the_same_values_alone_and_in_a_batch(
    formula: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> None:
    together = formula(*inputs)
    alone = torch.cat([formula(*(value[b : b + 1] for value in inputs)) for b in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-5)


def _motion(**changes: Tensor | float) -> Motion:
    parts: dict[str, Tensor] = {
        "tracks": torch.zeros(4, 5, 2),
        "visibility": torch.ones(4, 5),
        "confidence": torch.ones(4, 5),
        "correlation": torch.zeros(4, 5, 3, 5, 5),
        "flow": torch.zeros(3, 2, 8, 9),
        "residual": torch.zeros(3, 8, 9),
        "flow_confidence": torch.ones(3, 8, 9),
    }
    return Motion(**{**parts, "fps": 12.0, **changes})  # type: ignore[arg-type]


class TestMotion:
    def test_is_frozen_and_shows_shapes(self) -> None:
        motion = _motion()
        assert "tracks=[4, 5, 2]" in repr(motion) and "fps=12.0" in repr(motion)
        with pytest.raises(dataclasses.FrozenInstanceError):
            motion.fps = 24.0  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("visibility", torch.ones(4, 6)),
            ("confidence", torch.ones(4, 5, dtype=torch.float64)),
            ("correlation", torch.zeros(4, 5, 3, 5, 4)),
            ("flow", torch.zeros(4, 2, 8, 9)),
            ("residual", torch.zeros(3, 9, 8)),
            ("flow_confidence", torch.zeros(2, 8, 9)),
        ],
    )
    def test_names_the_part_that_does_not_fit(self, name: str, value: Tensor) -> None:
        with pytest.raises(ValueError, match=f"^{name} must be float32"):
            _motion(**{name: value})

    @pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, math.inf])
    def test_refuses_a_rate_that_is_none(self, fps: float) -> None:
        with pytest.raises(ValueError, match="fps must be"):
            _motion(fps=fps)
