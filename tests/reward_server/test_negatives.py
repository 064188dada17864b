"""Tests how the faulty twins of a view are chosen: balanced in motion, and none that a still clip cannot show."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from protos.reader import open_source
from protos.types import Clip
from reward_server.capture.chain import Capture
from reward_server.data.shots import SourceClip
from reward_server.faults import HELD_OUT, NAMES
from reward_server.faults.still_clips import HOLDING, STILL, fastest_motion, is_still
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.training import samples
from reward_server.training.negatives import ALIKE, LESS, MORE, draw_faults
from reward_server.training.samples import TRAINED_FAULTS
from tests.media import texture, video


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


def test_a_view_and_each_of_its_twins_pass_through_a_chain_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.mp4").write_bytes(video(texture(24, 160, 256, step=4), fps=12.0))
    drawn: list[Capture] = []
    draw = Capture.draw

    def kept(rng: np.random.Generator) -> Capture:
        drawn.append(draw(rng))
        return drawn[-1]

    monkeypatch.setattr(samples.Capture, "draw", kept)
    clip = SourceClip(source="clip", path=tmp_path / "clip.mp4", real=True)
    with open_source(clip.path) as source:
        found = list(samples.clip_samples(source, clip, EmbeddedProfile(), samples.CacheConfig(frames_per_view=100)))
    assert [sample.real for sample, _ in found].count(True) == 1
    assert len(drawn) == len(found) > 3
    assert len({capture.seed for capture in drawn}) == len(drawn)
