"""Tests properties of CoTracker3 at small sizes with random weights. `test_parity.py` compares it to stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.estimators.cotracker3 import (
    TOKEN_DIM,
    CoTracker3,
    CoTracker3Config,
    Tracking,
    resampled,
    support_grid,
    time_embedding,
)
from reward_server.estimators.feature_net import normalised
from reward_server.estimators.local_correlation import correlations, support_features
from reward_server.networks.track_transformer import TrackViTConfig

KEYS = Path(__file__).parents[1] / "golden" / "cotracker3_keys.txt"
TRUNK = TrackViTConfig(token_dim=TOKEN_DIM, dim=32, heads=2, depth=2, mlp_dim=64, num_virtual=4)
SMALL = CoTracker3Config(height_px=32, width_px=48, iters=2, trunk=TRUNK)


@pytest.fixture(scope="module")
def tracker() -> CoTracker3:
    return small_tracker(SMALL)


def small_tracker(config: CoTracker3Config) -> CoTracker3:
    torch.manual_seed(5)
    model = CoTracker3(config)
    model.updateformer.flow_head.weight.mul_(8)  # so that tracks move by whole cells...
    model.corr_mlp.fc1.weight.mul_(4)  # ...and the correlations count
    return model


def clip(num_frames: int, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, height, width), dtype=torch.uint8, generator=generator)


def queries(num: int, num_frames: int = 1, height: int = 40, width: int = 56, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.rand(num, 3, generator=generator) * torch.tensor([num_frames, width - 1, height - 1])


def fields(tracking: Tracking) -> list[Tensor]:
    return [tracking.tracks, tracking.visibility, tracking.confidence, tracking.tokens]


def test_keys_and_shapes_are_the_published_checkpoints() -> None:
    published = dict(line.split() for line in KEYS.read_text().splitlines())
    model = CoTracker3()
    ours = {name: "x".join(map(str, value.shape)) or "scalar" for name, value in model.state_dict().items()}
    assert ours == published
    assert len(published) == 188
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_385_700
    state = {name: torch.zeros([int(n) for n in shape.split("x")]) for name, shape in published.items()}
    model.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match="virual_tracks"):
        model.load_state_dict({n.replace("virual", "virtual"): v for n, v in state.items()}, strict=True)


def test_it_is_frozen(tracker: CoTracker3) -> None:
    assert not any(parameter.requires_grad for parameter in tracker.parameters())
    assert not tracker(clip(2)[None], queries(2)[None]).tokens.requires_grad


@pytest.mark.parametrize("num_frames", [1, 2, 60, 61, 75])
def test_clips_of_any_length(tracker: CoTracker3, num_frames: int) -> None:
    """tokens_only computes the tokens of the last iteration, without the support grid and without its update."""
    frames, points = clip(num_frames), queries(3, num_frames)
    steps = list(tracker.refinements(tracker.encode(frames), tracker.model_queries(points, 40, 56)))
    (_, before), (tokens, after) = steps
    short = tracker(frames[None], points[None], tokens_only=True)
    assert [list(field.shape) for field in fields(short)] == [
        [1, num_frames, 3, 2],
        [1, num_frames, 3],
        [1, num_frames, 3],
        [1, 3, num_frames, TOKEN_DIM],
    ]
    torch.testing.assert_close(short.tokens[0], tokens[:3], atol=1e-3, rtol=0)
    torch.testing.assert_close(short.tracks[0], 4 * before[:3, :, :2].transpose(0, 1), atol=1e-3, rtol=0)
    torch.testing.assert_close(short.visibility[0], before[:3, :, 2].sigmoid().T, atol=1e-5, rtol=0)
    torch.testing.assert_close(short.confidence[0], before[:3, :, 3].sigmoid().T, atol=1e-5, rtol=0)
    assert torch.isfinite(after).all()
    assert not torch.allclose(before[..., :2], after[..., :2], atol=0.1)


def test_a_full_run_ends_with_the_last_update(tracker: CoTracker3) -> None:
    frames, points = clip(4), queries(3, 4)
    *_, (tokens, state) = tracker.refinements(tracker.encode(frames), tracker.model_queries(points, 40, 56))
    full = tracker(frames[None], points[None])
    assert torch.equal(full.tokens[0], tokens[:3])
    assert torch.equal(full.tracks[0], 4 * state[:3, :, :2].transpose(0, 1))
    assert torch.equal(full.visibility[0], state[:3, :, 2].sigmoid().T)


@pytest.mark.parametrize("tokens_only", [False, True])
def test_a_batch_is_its_clips_one_by_one(tracker: CoTracker3, tokens_only: bool) -> None:
    frames = torch.stack([clip(4, seed=seed) for seed in range(3)])
    points = torch.stack([queries(5, 4, seed=seed) for seed in range(3)])
    batch = tracker(frames, points, tokens_only=tokens_only)
    for index in range(3):
        alone = tracker(frames[index, None], points[index, None], tokens_only=tokens_only)
        for together, single in zip(fields(batch), fields(alone), strict=True):
            assert torch.equal(together[index], single[0])


@pytest.mark.parametrize(("tracks", "frames"), [(1, 2), (7, 3), (1000, 1000)])
def test_passes_change_memory_not_results(tracker: CoTracker3, tracks: int, frames: int) -> None:
    config = CoTracker3Config(
        height_px=32, width_px=48, iters=2, trunk=TRUNK, tracks_per_pass=tracks, frames_per_pass=frames
    )
    given = clip(5)[None], queries(9, 5)[None]
    for tokens_only in (False, True):
        ours = small_tracker(config)(*given, tokens_only=tokens_only)
        for one, other in zip(fields(ours), fields(tracker(*given, tokens_only=tokens_only)), strict=True):
            torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_order_of_queries_is_order_of_tracks(tracker: CoTracker3) -> None:
    frames, points = clip(3)[None], queries(6, 3)[None]
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    straight, shuffled = tracker(frames, points), tracker(frames, points[:, order])
    torch.testing.assert_close(shuffled.tracks, straight.tracks[:, :, order], atol=2e-3, rtol=0)
    torch.testing.assert_close(shuffled.tokens, straight.tokens[:, order], atol=2e-3, rtol=0)


def test_support_grid_comes_last_and_only_if_asked(tracker: CoTracker3) -> None:
    frames, points = clip(3)[None], queries(4, 3)[None]
    trimmed, whole = tracker(frames, points), tracker(frames, points, keep_support=True)
    assert whole.tracks.shape[2] == 4 + 36
    assert torch.equal(whole.tracks[:, :, :4], trimmed.tracks)
    assert torch.equal(whole.tokens[:, :4], trimmed.tokens)


def test_support_grid_of_the_published_model() -> None:
    grid = support_grid(384, 512)
    assert grid.shape == (36, 3)
    assert grid[0].tolist() == [0, 8, 8]
    assert grid[5].tolist() == [0, 504, 8]  # x runs first
    assert grid[-1].tolist() == [0, 504, 376]
    torch.testing.assert_close(grid[7], torch.tensor([0, 8 + 496 / 5, 8 + 368 / 5]))


@pytest.mark.parametrize(("height", "width"), [(33, 47), (32, 48), (97, 31), (1, 1)])
def test_corners_of_any_frame_are_corners_of_the_model(tracker: CoTracker3, height: int, width: int) -> None:
    corners = torch.tensor([[0.0, 0, 0], [1.9, width - 1, height - 1]])
    ours = tracker.model_queries(corners, height, width)[:2]
    last = [47.0, 31.0] if height > 1 else [0.0, 0.0]
    torch.testing.assert_close(ours, torch.tensor([[0, 0, 0], [1.9, *last]]))
    frames = clip(2, height, width)[None]
    assert torch.isfinite(tracker(frames, corners[None]).tokens).all()


def test_frame_of_a_query_is_truncated(tracker: CoTracker3) -> None:
    frames, points = clip(3)[None], queries(2)[None]
    at = [tracker(frames, torch.cat([torch.full((1, 2, 1), t), points[..., 1:]], -1)).tokens for t in (1.0, 1.9, 2.0)]
    assert torch.equal(at[0], at[1])
    assert not torch.equal(at[1], at[2])


def test_a_still_clip_is_read_the_same_in_every_frame(tracker: CoTracker3) -> None:
    """Before any update, the tokens of equal frames differ only by the time embedding."""
    frames = clip(1).expand(4, -1, -1, -1)
    points = tracker.model_queries(queries(3), 40, 56)
    first, _ = next(tracker.refinements(tracker.encode(frames), points))
    plain = first - resampled(tracker.time_emb, 4)
    torch.testing.assert_close(plain, plain[:, :1].expand_as(plain), atol=2e-6, rtol=0)
    assert torch.equal(plain[..., :2], torch.zeros_like(plain[..., :2]))


def test_a_second_query_set_needs_no_second_encoding(tracker: CoTracker3) -> None:
    frames, points = clip(3), queries(4, 3)
    pyramid = tracker.encode(frames)
    ours = tracker.track(pyramid, tracker.model_queries(points, 40, 56), 4, tokens_only=True)
    assert torch.equal(ours.tokens, tracker(frames[None], points[None], tokens_only=True).tokens[0])
    assert [list(level.shape) for level in pyramid] == [[3, 8 >> k, 12 >> k, 128] for k in range(4)]
    torch.testing.assert_close(pyramid[0].square().sum(-1), torch.ones(3, 8, 12))


def test_correlations_are_products_of_bilinear_samples() -> None:
    """Compare with grid_sample at each offset separately, for centres inside, on and far outside the borders."""
    torch.manual_seed(3)
    pyramid = (torch.randn(4, 9, 13, 16), torch.randn(4, 4, 6, 16), torch.randn(4, 1, 1, 16))
    spots = [[0, 0], [12, 8], [12, 0], [5.25, 3.75], [-0.5, 8.5], [-40.3, 60.2], [1e4, -1e4]]
    centres_N2, frames_N = torch.tensor(spots), torch.tensor([0, 3, 1, 2, 0, 3, 2])
    centres_NT2 = centres_N2[:, None] + torch.randn(7, 4, 2) * 3
    volumes = correlations(pyramid, support_features(pyramid, centres_N2, frames_N), centres_NT2)
    for level, volume in enumerate(volumes):
        features = pyramid[level]
        query = sampled(features[frames_N], centres_N2[:, None] / 2**level)[:, 0]  # [N,49,C]
        target = sampled(features, centres_NT2.transpose(0, 1) / 2**level)  # [T,N,49,C]
        expected = torch.einsum("tnpc,nqc->ntpq", target, query).flatten(2)
        torch.testing.assert_close(volume, expected, atol=2e-4, rtol=1e-4)


def sampled(features_KhwC: Tensor, centres_KM2: Tensor) -> Tensor:
    """Border-clamped bilinear samples [K,M,49,C] at offsets -3..3, x slowest."""
    _, height, width, _ = features_KhwC.shape
    steps = torch.arange(-3.0, 4.0)
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    at = centres_KM2[:, :, None] + torch.stack([x, y], -1).flatten(0, 1)
    clamped = at.clamp(min=torch.zeros(2), max=torch.tensor([width - 1.0, height - 1.0]))
    grid = 2 * clamped / torch.tensor([max(width - 1, 1), max(height - 1, 1)]) - 1
    values = F.grid_sample(features_KhwC.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=True)
    return values.permute(0, 2, 3, 1)


@pytest.mark.parametrize("num_frames", [1, 2, 24, 60, 61, 75])
def test_time_embedding_is_stretched_linearly(num_frames: int) -> None:
    buffer = time_embedding(60, TOKEN_DIM)
    row, k = 17, 200
    assert buffer.shape == (1, 60, TOKEN_DIM)
    assert buffer[0, row, k].item() == pytest.approx(np.sin(row * 10000 ** (-k / 555)), abs=1e-7)
    assert buffer[0, row, 555 + k].item() == pytest.approx(np.cos(row * 10000 ** (-k / 555)), abs=1e-7)
    places = np.clip((np.arange(num_frames) + 0.5) * 60 / num_frames - 0.5, 0, 59)
    expected = np.stack([np.interp(places, np.arange(60), column) for column in buffer[0].numpy().T], axis=1)
    np.testing.assert_allclose(resampled(buffer, num_frames).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_normalised_is_instance_norm(num_frames: int) -> None:
    torch.manual_seed(1)
    x = 3 * torch.randn(num_frames, 6, 9, 7) + 5
    torch.testing.assert_close(normalised(x), F.instance_norm(x, eps=1e-5), atol=2e-6, rtol=1e-6)
    flat = torch.full((1, 2, 4, 4), 3.0) + 1e-3 * torch.randn(1, 2, 4, 4)  # where the epsilon matters
    torch.testing.assert_close(normalised(flat), F.instance_norm(flat, eps=1e-5), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("frames", "points", "words"),
    [
        (torch.zeros(2, 3, 32, 48), torch.zeros(1, 1, 3), r"frames must be \[B,T,3,H,W\], got \[2, 3, 32, 48\]"),
        (torch.zeros(1, 2, 1, 32, 48), torch.zeros(1, 1, 3), r"frames must be"),
        (torch.zeros(1, 2, 3, 32, 48), torch.zeros(1, 1, 2), r"queries must be \[1,N,3\].*got \[1, 1, 2\]"),
        (torch.zeros(1, 2, 3, 32, 48), torch.zeros(2, 1, 3), r"queries must be"),
        (torch.zeros(1, 2, 3, 32, 48), torch.zeros(1, 0, 3), r"queries must be"),
        (torch.zeros(1, 2, 3, 32, 48), torch.full((1, 1, 3), 2.0), r"query frames must be in 0..1, got 2..2"),
        (torch.zeros(1, 2, 3, 32, 48), torch.full((1, 1, 3), float("nan")), r"query frames must be in 0..1"),
    ],
)
def test_bad_inputs_are_named(tracker: CoTracker3, frames: Tensor, points: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tracker(frames, points)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="32x32 model pixels"):
        CoTracker3Config(height_px=24)
    with pytest.raises(ValueError, match="tokens of 1110, got 40"):
        CoTracker3Config(trunk=TrackViTConfig(token_dim=40))
