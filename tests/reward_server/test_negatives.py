"""Tests how the faulty twins of a view are chosen: balanced in motion, and none that a still clip cannot show."""

from __future__ import annotations

from collections import Counter

import numpy as np

from protos.types import Clip
from reward_server.faults import HELD_OUT, NAMES
from reward_server.faults.still_clips import HOLDING, STILL, fastest_motion, is_still
from reward_server.training.negatives import ALIKE, LESS, MORE, draw_faults
from reward_server.training.samples import TRAINED_FAULTS
from tests.media import texture


def test_every_trained_fault_is_in_one_group_and_no_held_out_fault_is_trained() -> None:
    assert sorted((*LESS, *ALIKE, *MORE)) == sorted(TRAINED_FAULTS)
    assert not set(TRAINED_FAULTS) & {*HELD_OUT, "fps_relabelled"}
    assert len(HELD_OUT) >= 3
    assert set(HOLDING) < set(NAMES)


def test_a_view_gets_as_many_twins_that_move_more_as_twins_that_move_less() -> None:
    for seed in range(20):
        drawn = draw_faults(TRAINED_FAULTS, 6, False, np.random.default_rng(seed))
        counts = Counter("less" if name in LESS else "more" if name in MORE else "alike" for name in drawn)
        assert counts == {"less": 2, "alike": 2, "more": 2}
        assert len(set(drawn)) == 6


def test_a_still_view_gets_no_fault_that_only_holds_it() -> None:
    for seed in range(20):
        assert not set(draw_faults(TRAINED_FAULTS, 6, True, np.random.default_rng(seed))) & set(HOLDING)


def test_fewer_faults_than_wanted_are_all_drawn() -> None:
    assert sorted(draw_faults(("static", "wobbled"), 6, False, np.random.default_rng(0))) == ["static", "wobbled"]
    assert draw_faults((), 6, False, np.random.default_rng(0)) == []


def test_motion_is_measured_in_frame_heights_per_second() -> None:
    frames = texture(16, 96, 160, step=2).transpose(0, 3, 1, 2).copy()
    speed = fastest_motion(Clip(frames=frames, fps=12.0))
    assert 0.8 < speed / (2 * 12 / 96) < 1.25
    rng = np.random.default_rng(0)
    held = np.repeat(frames[:1], 16, axis=0) + rng.normal(0, 1, frames.shape)
    still = Clip(frames=held.clip(0, 255).round().astype(np.uint8), fps=12.0)
    assert fastest_motion(still) < STILL
    assert is_still(still)
