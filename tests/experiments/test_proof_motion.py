"""Tests Level 3 of the proof: what it computes from the arms' rollouts, by hand and on planted differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.proof.arms import MEASURES
from experiments.proof.known_rewards import measures
from experiments.proof.motion import fresh_auc, motion_arms, motion_verdicts, samples_of, speed_distance
from experiments.proof.scenes import SceneMix, draw_scenes
from experiments.proof.size import FULL
from experiments.proof.sources import KnownRewards
from experiments.proof.watched import WatchedRewards
from protos.types import Clip
from trainer.rewards.source import ClipGroup


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_every_arm_but_base_and_sft_has_learned_rewards() -> None:
    arms = {arm.name: arm for arm in motion_arms(FULL)}
    assert {name for name, arm in arms.items() if arm.reward != "learned"} == {"base", "sft"}
    assert {name for name, arm in arms.items() if arm.refreshed} == {"shift-low", "shift-mid", "shift-high"}
    grid = [arms[name].objective["lambda_aw"] for name in ("shift-low", "shift-mid", "shift-high")]
    assert tuple(grid) == FULL.logit_lambdas
    middle = {arms[name].objective["lambda_aw"] for name in ("replay", "regression", "shift-fixed", "shift-mid")}
    assert middle == {FULL.logit_lambdas[1]}


def record(arm: str, stream: int, level: float) -> dict[str, object]:
    rows = [{name: [level, level + 2] for name in MEASURES} for _ in range(3)]
    return {"arm": arm, "stream": stream, "rows": rows}


def test_samples_keep_streams_in_order() -> None:
    samples = samples_of([record("sft", 1, 5.0), record("sft", 0, 1.0)])
    assert samples["sft"]["speed_px"].shape == (2, 3, 2)
    assert samples["sft"]["speed_px"][:, 0].tolist() == [[1, 3], [5, 7]]


def test_the_speed_distance_is_the_shift_of_a_distribution() -> None:
    speeds = np.linspace(0, 1, 24).reshape(2, 6, 2)
    assert speed_distance(speeds, speeds.ravel().tolist()).mean == pytest.approx(0)
    moved = speed_distance(speeds + 0.5, speeds.ravel().tolist())
    assert moved.mean == pytest.approx(0.5)
    assert moved.low <= moved.mean <= moved.high


def cues(num: int, shift: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(shift * (name == "speed_px"), 1, num) for name in MEASURES}


def test_a_fresh_discriminator_finds_only_real_differences() -> None:
    rollouts = {name: values.reshape(1, 60, 2) for name, values in cues(120, 0.0, 1).items()}
    assert fresh_auc(rollouts, cues(120, 0.0, 2)) == pytest.approx(0.5, abs=0.1)
    assert fresh_auc(rollouts, cues(120, 3.0, 2)) > 0.9
    assert fresh_auc(rollouts, cues(120, -3.0, 2)) > 0.9, "it works in either direction"


def speeds(**levels: float) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name.replace("_", "-"): {"speed_px": level + rng.normal(0, 0.05, (2, 24))} for name, level in levels.items()
    }


@pytest.mark.parametrize(
    ("base", "sft", "shift", "data", "wanted"),
    [
        (0.6, 0.4, 0.5, 0.55, (True, True, True)),
        (0.4, 0.4, 0.5, 0.55, (False, True, True)),
        (0.6, 0.4, 0.5, 0.40, (True, False, True)),
        (0.6, 0.4, 0.4, 0.55, (True, True, False)),
    ],
)
def test_each_part_of_the_claim_can_fail(
    base: float, sft: float, shift: float, data: float, wanted: tuple[bool, ...]
) -> None:
    found = motion_verdicts(speeds(base=base, sft=sft, shift_mid=shift), data)
    assert tuple(verdict.holds for verdict in found) == wanted


def test_a_claim_whose_arms_have_not_run_is_open() -> None:
    assert [verdict.holds for verdict in motion_verdicts(speeds(base=0.5), 0.5)] == [None, None, None]


def test_the_static_set_differs_only_in_what_stands_still() -> None:
    moving, static = (draw_scenes(100, seed=3, mix=SceneMix(static_share=share)) for share in (0.0, FULL.static_share))
    assert [scene.moves for scene in moving] == [True] * 100
    assert sum(scene.moves for scene in static) == pytest.approx(100 * (1 - FULL.static_share), abs=15)
    for one, other in zip(moving, static, strict=True):
        assert one == (other if other.moves else replace(other, velocity_px=one.velocity_px))


def watched(clips: list[Clip], sign: float) -> dict[str, float]:
    source = WatchedRewards(KnownRewards(lambda clip: sign * measures(clip).speed_px))
    keys = ["a", "b"]
    for key, half in zip(keys, (clips[:6], clips[6:12]), strict=True):
        group = ClipGroup(
            key=key, real=half[0], rollouts=tuple(half[1:]), policy_version="0", discriminator_version=source.pin()
        )
        source.submit(group)
    source.collect(keys, 6)
    (found,) = source.favours
    return found


def test_watched_rewards_record_what_advantages_favour() -> None:
    clips = [scene.clip() for scene in draw_scenes(12, seed=7)]
    assert watched(clips, 1.0)["speed_px"] == pytest.approx(1)
    assert watched(clips, -1.0)["speed_px"] == pytest.approx(-1)
