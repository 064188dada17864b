"""Tests that mirrored features equal the features of the mirrored clip, for all eight symmetries."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from protos.types import Clip
from reward_server.motion import random_queries
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.training.feature_cache import (
    CHANNEL_SCALE,
    FeatureCache,
    Sample,
    pack,
    unpack_maps,
    unpack_tokens,
)
from reward_server.training.symmetry import PLAIN, Symmetry
from tests.media import texture

PROFILE = EmbeddedProfile()
SIZE, NUM_TRACKS = 96, 64
SAMPLE = Sample(key="k0", source="s", view="v", real=True, fault="", strength=0.0, shape=(8, SIZE, SIZE))
EIGHT = [
    Symmetry(mirror_x=x, mirror_y=y, transpose=turned) for x, y, turned in itertools.product((False, True), repeat=3)
]


def mirrored_clip(frames_TCHW: NDArray[np.uint8], symmetry: Symmetry) -> Clip:
    frames = frames_TCHW[..., ::-1] if symmetry.mirror_x else frames_TCHW
    frames = frames[..., ::-1, :] if symmetry.mirror_y else frames
    frames = frames.swapaxes(-1, -2) if symmetry.transpose else frames
    return Clip(frames=np.ascontiguousarray(frames), fps=12.0)


def mirrored_queries(queries_N2: NDArray[np.float32], symmetry: Symmetry) -> NDArray[np.float32]:
    x, y = queries_N2.T
    x = SIZE - 1 - x if symmetry.mirror_x else x
    y = SIZE - 1 - y if symmetry.mirror_y else y
    return np.stack([y, x] if symmetry.transpose else [x, y], axis=-1)


def features_of(symmetry: Symmetry) -> dict[str, Tensor]:
    """Features of a texture that moves to the left, mirrored before the estimators see it."""
    frames = texture(8, SIZE, SIZE, seed=3).transpose(0, 3, 1, 2)
    queries = np.asarray(random_queries(0, NUM_TRACKS, SIZE, SIZE), dtype=np.float32)
    motion = PROFILE.estimators.estimate(mirrored_clip(frames, symmetry), mirrored_queries(queries, symmetry))
    return pack(motion, num_pairs=7)


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    return features_of(PLAIN)


def apart(some: Tensor, others: Tensor) -> float:
    """Median distance, because a few tracks at the border are lost in one mirrored clip and not in another."""
    return float((some - others).abs().median())


@pytest.mark.parametrize("symmetry", EIGHT, ids=str)
def test_mirrored_maps_are_those_of_the_mirrored_clip(symmetry: Symmetry, plain: dict[str, Tensor]) -> None:
    expected, found = unpack_maps(features_of(symmetry)["maps"]), symmetry.seen(unpack_maps(plain["maps"]))
    assert found.shape == expected.shape
    for channel, tolerance in enumerate((2.0, 0.05)):
        assert apart(found[:, channel], expected[:, channel]) < tolerance


@pytest.mark.parametrize("symmetry", EIGHT, ids=str)
def test_mirrored_features_are_those_of_the_mirrored_clip(symmetry: Symmetry, plain: dict[str, Tensor]) -> None:
    seen, made = features_of(symmetry), symmetry.packed(plain)
    tokens, expected = (unpack_tokens(packed, PROFILE, 0, NUM_TRACKS) for packed in (made, seen))
    correlation, drift = slice(2, 77), slice(77, 81)  # of the displacement features only what is linear in pixels
    assert apart(tokens[..., correlation], expected[..., correlation]) < 0.02
    assert apart(tokens[..., drift], expected[..., drift]) < 1e-3
    if symmetry != PLAIN:
        unlike = unpack_tokens(plain, PROFILE, 0, NUM_TRACKS)[..., correlation]
        assert apart(unlike, expected[..., correlation]) > 0.04


def test_every_symmetry_is_drawn_and_all_differ(plain: dict[str, Tensor]) -> None:
    rng = np.random.default_rng(0)
    assert {Symmetry.draw(rng) for _ in range(100)} == set(EIGHT)
    made = {symmetry.packed(plain)["correlation"].numpy().tobytes() for symmetry in EIGHT}
    assert len(made) == len(EIGHT)


def test_a_cache_mirrors_what_it_reads(plain: dict[str, Tensor], tmp_path: Path) -> None:
    cache, symmetry = FeatureCache(tmp_path), Symmetry(mirror_y=True, transpose=True)
    (tmp_path / SAMPLE.key[:2]).mkdir()
    save_file(plain, tmp_path / SAMPLE.key[:2] / f"{SAMPLE.key}.safetensors")
    made = unpack_tokens(symmetry.packed(plain), PROFILE, 3, 8)
    assert torch.equal(cache.tokens(SAMPLE, PROFILE, 3, 8, symmetry), made)


def test_features_of_networks_are_not_mirrored(plain: dict[str, Tensor], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    (tmp_path / SAMPLE.key[:2]).mkdir()
    embedding = plain | {CHANNEL_SCALE: torch.ones(75)}
    save_file(embedding, tmp_path / SAMPLE.key[:2] / f"{SAMPLE.key}.safetensors")
    with pytest.raises(ValueError, match="cannot be mirrored"):
        cache.tokens(SAMPLE, PROFILE, 0, 4, Symmetry(mirror_x=True))
