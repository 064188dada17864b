"""Tests the third plan of the proof: its arms, the reference set, and its verdicts on planted differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from experiments.proof import __main__ as command
from experiments.proof import restored
from experiments.proof.heads import pretrained, recipes
from experiments.proof.learned import FAVOURS, ScoredGroups
from experiments.proof.reference import ReferenceRewards
from experiments.proof.restored import SHIFT, SeedRuns, mean_minus, over_seeds, restored_verdicts, share_of
from experiments.proof.restoring import PARTS, PartName, restoring_arms
from experiments.proof.scenes import SceneMix, draw_scenes
from experiments.proof.size import THIRD, ProofSize
from experiments.proof.sources import KnownRewards
from protos.types import REWARDS
from trainer.rewards.source import ClipGroup

SPEEDS = {
    "base": 0.4,
    "sft": 0.5,
    "replay": 0.45,
    "known": 0.7,
    SHIFT: 0.6,
    "shift-fixed": 0.55,
    "shift-own": 0.5,
    "fixed-noise": 0.6,
    "fixed-pixels": 0.5,
}
DATA_PX = 0.7


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restored, "RESAMPLES", 40)


def test_at_half_pace_bodies_take_the_same_paths_at_half_the_speed() -> None:
    full, half = (draw_scenes(20, seed=3, mix=SceneMix(pace=pace)) for pace in (1.0, 0.5))
    for fast, slow in zip(full, half, strict=True):
        assert replace(slow, pace=1.0) == fast
        assert slow.path()[-2] == pytest.approx(fast.path()[3], abs=0.25), "half the way, half the time"
    assert sum(scene.speed_px() for scene in half) == pytest.approx(sum(s.speed_px() for s in full) / 2, rel=0.15)


@pytest.mark.parametrize("part", PARTS)
def test_arms_that_train_on_rollouts_have_the_same_dose(part: PartName) -> None:
    trained = [arm for arm in restoring_arms(part, THIRD) if arm.reward != "none"]
    assert {arm.objective["aw_dose"] for arm in trained} == {THIRD.dose}
    assert {arm.objective["lambda_aw"] for arm in trained} == {0.0}
    assert {arm.heads for arm in trained if arm.heads} <= recipes(part, THIRD).keys()
    assert {arm.name for arm in trained if arm.referenced} == ({SHIFT, "shift-fixed"} if part == "static" else set())


def test_the_shipped_discriminators_are_measured_without_a_pretraining(tmp_path: Path) -> None:
    nothing: Any = None
    found = pretrained(tmp_path, "shipped", recipes("damped", THIRD)["shipped"], nothing, THIRD, seed=0)
    assert found.name == "embedded.safetensors" and found.is_file() and not list(tmp_path.iterdir())


def test_reference_rewards_give_the_discriminators_other_positives() -> None:
    clips = [scene.clip() for scene in draw_scenes(5, seed=0)]
    inner = KnownRewards(lambda clip: float(clip.frames.mean()))
    source = ReferenceRewards(inner, clips[3:])
    for key in ("a", "b", "c"):
        source.submit(
            ClipGroup(key=key, real=clips[0], rollouts=(clips[1],), policy_version="0", discriminator_version="known")
        )
    groups = source.collect(["a", "b", "c"], 2).groups
    reals = [group.real.reward for group in groups if group.real]
    assert reals == [float(clips[at].frames.mean()) for at in (3, 4, 3)]
    assert {group.rollouts[0].reward for group in groups if group.rollouts[0]} == {float(clips[1].frames.mean())}


def planted(seed: int, speeds: Mapping[str, float], *, noisy_follows: float = 0.9) -> SeedRuns:
    rng = np.random.default_rng(seed)
    samples = {
        arm: {"speed_px": rng.normal(speed, 0.05, (4, 12, 2)), "look_error": rng.normal(0.1, 0.005, (4, 12, 2))}
        for arm, speed in speeds.items()
    }
    heads = {
        name: scored(rng, follows) for name, follows in (("plain", 0.2), ("noise", noisy_follows), ("pixels", -0.5))
    }
    data_px = rng.normal(DATA_PX, 0.05, 64)
    return SeedRuns(seed=seed, folder=Path(), records=[], samples=samples, data_px=data_px, heads=heads)


def scored(rng: np.random.Generator, follows: float) -> ScoredGroups:
    """Rewards that rise with speed to a degree from -1 to 1."""
    measures = {name: rng.normal(size=(30, 5)) for name in FAVOURS}
    rewards = follows * measures["speed_px"] + (1 - abs(follows)) * rng.normal(size=(30, 5))
    return ScoredGroups(rewards=dict.fromkeys(REWARDS, rewards), measures=measures)


def verdicts_of(part: PartName, speeds: Mapping[str, float]) -> dict[str, bool | None]:
    found = restored_verdicts(part, [planted(seed, speeds) for seed in range(3)])
    return {verdict.name: verdict.holds for verdict in found}


def test_planted_restoration_is_found() -> None:
    found = verdicts_of("damped", SPEEDS)
    assert len(found) == 9
    assert all(found.values()), found


def test_the_static_part_needs_sft_to_lose_motion() -> None:
    assert all(verdicts_of("static", {**SPEEDS, "base": 0.7}).values())
    without = verdicts_of("static", {**SPEEDS, "base": 0.4})
    assert without.pop("premise") is False
    assert set(without.values()) == {None}, "a claim whose premise fails is not judged"


def test_speed_without_the_right_distribution_is_not_enough() -> None:
    found = verdicts_of("damped", {**SPEEDS, SHIFT: 1.2})
    assert found["more speed"] is True
    assert found["nearer to the data"] is False


def test_one_seed_against_the_others_spoils_the_claim() -> None:
    runs = [planted(seed, {**SPEEDS, SHIFT: speed}) for seed, speed in enumerate((0.9, 0.9, 0.9, 0.48))]
    verdict = next(v for v in restored_verdicts("damped", runs) if v.name == "more speed")
    assert verdict.interval is not None
    assert verdict.interval.low > 0, "the mean over seeds alone would hold"
    assert verdict.holds is False


def test_arms_are_drawn_together() -> None:
    shared = np.random.default_rng(0).normal(0.5, 1.0, (4, 12, 2))
    of = {arm: {"speed_px": shared + gain, "look_error": shared} for arm, gain in (("sft", 0.0), (SHIFT, 0.1))}
    run = replace(planted(0, SPEEDS), samples=of)
    found = over_seeds([run], mean_minus(SHIFT, "sft", "speed_px"))
    assert (found.low, found.mean, found.high) == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize(("whole", "share"), [("base", 0.25), ("data", 0.1 / (DATA_PX - 0.4))])
def test_a_share_is_of_what_supervised_fine_tuning_lacks(whole: str, share: float) -> None:
    speeds = {"base": 0.8, "sft": 0.4, SHIFT: 0.5}
    samples = {arm: {"speed_px": np.full((4, 12, 2), speed)} for arm, speed in speeds.items()}
    assert share_of(SHIFT, whole)(samples, np.full(8, DATA_PX)) == pytest.approx(share)
    assert share_of("sft", whole)(samples, np.full(8, DATA_PX)) == 0


@pytest.mark.long
def test_a_part_of_the_third_plan_runs_at_smoke_size(tmp_path: Path, smallest: ProofSize) -> None:
    asked = ["restore", "--size", "smoke", "--on", "static", "--out", str(tmp_path), "--seed", "0"]
    run = CliRunner().invoke(command.app, asked)
    assert run.exit_code == 0, run.output
    (found,) = json.loads(run.stdout.splitlines()[-1])["parts"].values()
    assert set(found["arms"]) == {arm.name for arm in restoring_arms("static", smallest)}
    report = tmp_path / "smoke-restored" / "0" / "static"
    assert {path.name for path in report.iterdir()} >= {"report.txt", "histograms.png", "gains.png", "clips.gif"}
    scored_by = {path.stem for path in (tmp_path / "smoke-0" / "static" / "heads").glob("*.json")}
    assert scored_by == recipes("static", smallest).keys()
    again = CliRunner().invoke(command.app, asked)
    assert again.stdout.splitlines()[-1] == run.stdout.splitlines()[-1], "what has run is only reported"
