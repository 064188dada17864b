"""Tests the pace level, which follows how fast the picture moves on, and the weights of the pace terms."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protos.types import Clip
from reward_server.errors import NotReady
from reward_server.pipeline import Pipeline
from reward_server.profiles.discriminators import (
    NO_PACE,
    load_discriminators,
    new_discriminators,
    pack_discriminators,
    read_discriminators,
    save_reference,
)
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.pace import pace_level, pace_px
from reward_server.settings import Settings
from tests.media import texture
from tests.reference import TABLE

PROFILE = EmbeddedProfile()


def moving(step: float, num_pairs: int = 15) -> Tensor:
    """Flow [P,2,8,8] of a picture that moves to the right."""
    return torch.tensor([step, 0.0])[:, None, None].expand(num_pairs, 2, 8, 8).clone()


def shaking(step: float) -> Tensor:
    return moving(step) * (-1.0) ** torch.arange(15)[:, None, None, None]


def test_the_pace_is_what_the_picture_moves_on_by() -> None:
    assert pace_px(moving(2.0)) == pytest.approx(2.0)
    assert pace_px(moving(2.0, num_pairs=2)) == pytest.approx(2.0)
    half = moving(2.0)
    half[..., 4:] = 0
    assert pace_px(half) == pytest.approx(1.0)


def test_shaking_is_not_moving_on() -> None:
    assert pace_px(shaking(3.0)) < 0.25 * pace_px(moving(3.0))
    assert pace_px(moving(1.0) + shaking(3.0)) < 1.3


def test_the_level_is_logarithmic_up_to_its_limits() -> None:
    def level(pace: float) -> float:
        return pace_level(pace, middle_px=1.0, between_px=(0.25, 4.0))

    assert level(1.0) == 0
    assert level(2.0) == pytest.approx(math.log(2))
    assert level(0.0) == level(0.2) == pytest.approx(-math.log(4))
    assert level(100.0) == pytest.approx(math.log(4))


# --- the weights of the terms -------------------------------------------------------------------


@pytest.fixture(scope="module")
def paced() -> bytes:
    """A file of untrained discriminators with pace terms."""
    instantaneous, long_term = (network.state_dict() for network in new_discriminators(PROFILE))
    return pack_discriminators(
        profile=PROFILE, version="paced", instantaneous=instantaneous, long_term=long_term, pace_weights=(0.5, -1.0)
    )


def without_pace(paced: bytes) -> bytes:
    """The same weights without pace terms."""
    parent = read_discriminators(PROFILE, paced, source="paced")
    return pack_discriminators(
        profile=PROFILE,
        version="plain",
        instantaneous=parent.instantaneous.state_dict(),
        long_term=parent.long_term.state_dict(),
    )


def test_the_weights_are_kept_in_the_file_and_in_its_digest(paced: bytes) -> None:
    found, plain = (read_discriminators(PROFILE, data, source="x") for data in (paced, without_pace(paced)))
    assert (found.pace_weights, plain.pace_weights) == ((0.5, -1.0), NO_PACE)
    assert found.weights_digest != plain.weights_digest


def test_a_reference_table_leaves_them_as_they_are(paced: bytes, tmp_path: Path) -> None:
    save_reference(tmp_path / "with.safetensors", paced, TABLE)
    assert load_discriminators(PROFILE, tmp_path / "with.safetensors").pace_weights == (0.5, -1.0)


def test_the_shipped_discriminators_have_pace_terms_and_saved_ones_have_none(discriminators_file) -> None:
    assert all(weight > 0 for weight in load_discriminators(PROFILE).pace_weights)
    assert load_discriminators(PROFILE, discriminators_file).pace_weights == NO_PACE


@pytest.mark.parametrize("value", ["[NaN, 0.1]", "[0.1]", "[null, 1]", "{}", "12.5", "[1, 2, 3]", "null"])
def test_weights_that_are_no_two_numbers_are_refused(paced: bytes, value: str) -> None:
    kept, other = b'"[0.5, -1.0]"', json.dumps(value.ljust(11)).encode()
    assert len(kept) == len(other) and kept in paced
    with pytest.raises(NotReady, match="pace_weights must be two finite numbers"):
        read_discriminators(PROFILE, paced.replace(kept, other), source="x")


def test_a_reward_has_the_terms_of_its_discriminators(paced: bytes) -> None:
    pipeline = Pipeline.load(Settings(num_tracks=16, threads=1, decode_isolation=False))
    clip = Clip(frames=texture(16, 144, 256).transpose(0, 3, 1, 2).copy(), fps=12.0)
    motion = PROFILE.motion(clip, query_seed=0, num_tracks=16)
    with_pace, plain = (read_discriminators(PROFILE, data, source="x") for data in (paced, without_pace(paced)))
    level = pace_level(pace_px(motion.flow), middle_px=PROFILE.pace_middle_px, between_px=PROFILE.pace_between_px)
    apart = pipeline._logits(with_pace, [motion]) - pipeline._logits(plain, [motion])
    assert np.allclose(apart, level * np.array([0.5, -1.0])) and abs(apart).min() > 0.1
