"""Tests the parts of the proof: scenes, measures, the flawed discriminator, verdicts that can fail, resumable arms."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.proof.arms import Arm, Task, arms, run_arm, run_config
from experiments.proof.base_training import BasePlan
from experiments.proof.known_rewards import measures, speed_reward, track
from experiments.proof.report import write_report
from experiments.proof.running import prepare
from experiments.proof.scenes import NUM_FRAMES, SIDE_PX, Scene, SceneMix, draw_scenes
from experiments.proof.size import FULL, SMOKE
from experiments.proof.sources import CueDiscriminator, DiscriminatorRewards, KnownRewards, cues, train_discriminator
from experiments.proof.verdicts import GRID, difference, interval, slope, verdicts
from protos.types import Clip
from trainer.rewards.source import ClipGroup

STILL = Scene(
    kind="bounce",
    radius_px=3.0,
    start_px=(6.0, 7.0),
    velocity_px=(0.0, 0.0),
    angle=0.3,
    colours=((255.0, 85.0, 85.0), (200.0, 66.0, 66.0)),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_longer_set_of_scenes_begins_with_the_shorter() -> None:
    assert draw_scenes(3, seed=1) == draw_scenes(5, seed=1)[:3]
    assert draw_scenes(3, seed=1) != draw_scenes(3, seed=2)


def test_the_first_frame_does_not_tell_the_velocity() -> None:
    fast = replace(STILL, velocity_px=(1.0, 0.5))
    assert np.array_equal(STILL.clip().frames[0], fast.clip().frames[0])
    assert not np.array_equal(STILL.clip().frames[1], fast.clip().frames[1])


def test_paths_obey_mechanics() -> None:
    steady = replace(STILL, velocity_px=(0.5, 0.25)).path()
    np.testing.assert_allclose(steady, [(6 + 0.5 * t, 7 + 0.25 * t) for t in range(NUM_FRAMES)])
    assert STILL.speed_px() == 0
    assert replace(STILL, kind="fall").speed_px() == 0, "a body at rest stays there"
    rebound = replace(STILL, start_px=(12.0, 7.0), velocity_px=(1.0, 0.0)).path()
    assert rebound[:, 0].max() == pytest.approx(SIDE_PX - 3)
    assert rebound[-1, 0] < 12


def test_measured_speed_and_glow_are_the_simulators() -> None:
    scenes = draw_scenes(40, seed=3, mix=SceneMix(glow_share=0.5, static_share=0.2))
    found = [measures(scene.clip()) for scene in scenes]
    np.testing.assert_allclose([m.speed_px for m in found], [s.speed_px() for s in scenes], atol=0.08)
    np.testing.assert_allclose([m.glow for m in found], [s.glow for s in scenes], atol=1.0)
    clean = [m for m, s in zip(found, scenes, strict=True) if not s.glow]
    assert max(m.wall_error for m in clean) < 0.01 < min(m.wall_error for m in found if m not in clean)


def test_the_reward_is_best_at_the_target() -> None:
    rewards = [speed_reward(0.8)(replace(STILL, velocity_px=(speed, 0.0)).clip()) for speed in (0.0, 0.4, 0.8, 1.2)]
    assert max(rewards) == rewards[2] == pytest.approx(0, abs=0.05)
    assert rewards[0] == pytest.approx(-0.8, abs=0.01)


def test_a_body_that_vanishes_drifts_in_size_and_does_not_move() -> None:
    frames = replace(STILL, velocity_px=(0.5, 0.0)).clip().frames.copy()
    frames[3:] = 40
    gone = Clip(frames=frames, fps=8.0)
    centres, areas = track(gone)
    assert areas[3:].max() == 0
    assert np.array_equal(centres[3:], np.broadcast_to(centres[2], (NUM_FRAMES - 3, 2)))
    assert measures(gone).size_drift > 0.6


def group(key: str, clips: list[Clip]) -> ClipGroup:
    return ClipGroup(key=key, real=clips[0], rollouts=tuple(clips[1:]), policy_version="0", discriminator_version="v")


def test_known_rewards_are_those_of_the_submitted_groups() -> None:
    source = KnownRewards(lambda clip: float(clip.frames.max()))
    clips = [Clip(frames=np.full((2, 3, 16, 16), level, np.uint8), fps=8.0) for level in (9, 5, 7)]
    assert not source.knows("a", 3)
    source.submit(group("a", clips))
    (collected,) = source.collect(["a"], 3).groups
    assert source.knows("a", 3)
    assert [one.reward for one in (collected.real, *collected.rollouts) if one] == [9, 5, 7]


def glowing(share: float, seed: int) -> list[Clip]:
    return [scene.clip() for scene in draw_scenes(48, seed=seed, mix=SceneMix(glow_share=share))]


def test_a_planted_flaw_rewards_glow_until_a_refresh() -> None:
    steady, bright = glowing(0.0, 1), glowing(1.0, 2)
    flawed_real, negatives = (torch.stack([cues(measures(clip)) for clip in clips]) for clips in (bright, steady))
    torch.manual_seed(0)
    discriminator = CueDiscriminator(torch.cat([flawed_real, negatives]))
    train = torch.Generator().manual_seed(0)
    train_discriminator(discriminator, flawed_real, negatives, steps=200, lr=5e-3, generator=train)
    source = DiscriminatorRewards(discriminator, lr=5e-3, ema=0.9)

    def gap(key: str) -> float:
        """Mean reward of glowing rollouts minus that of steady real clips."""
        for at, (real, rollout) in enumerate(zip(glowing(0.0, 3), glowing(1.0, 4), strict=True)):
            source.submit(group(f"{key}{at}", [real, rollout]))
        found = source.collect([f"{key}{at}" for at in range(48)], 2).groups
        return float(
            np.mean([one.rollouts[0].reward - one.real.reward for one in found if one.real and one.rollouts[0]])
        )

    assert gap("before") > 1
    before = source.pin()
    assert source.refresh(300, seed=0, key="r") != before
    assert gap("after") < -1


def planted(**changes: float) -> dict[str, dict[str, np.ndarray]]:
    """A table of noise of standard deviation 0.1. `arm__measure=x` adds x to a measure of an arm."""
    rng = np.random.default_rng(0)
    names = [arm.name for arm in arms(FULL)]
    table = {n: {m: rng.normal(0, 0.1, (2, 24)) for m in ("reward", "look_error", "glow")} for n in names}
    for name in names:
        table[name]["look_error"] += 1
    for key, shift in changes.items():
        arm, measure = key.split("__")
        table[arm.replace("_", "-")][measure] += shift
    return table


def test_verdicts_of_noise_claim_no_effect() -> None:
    holds = {verdict.name: verdict.holds for verdict in verdicts(planted())}
    assert holds.pop("anchor holds the look"), "no difference counts as no worse"
    assert not any(holds.values())


def test_verdicts_of_planted_effects_hold() -> None:
    table = planted(
        shift_low__reward=0.1, shift_mid__reward=0.2, shift_high__reward=0.3, no_anchor__look_error=0.3,
        fixed__glow=1.0, refreshed__glow=0.1,
    )  # fmt: skip
    assert {verdict.name: verdict.holds for verdict in verdicts(table)} == dict.fromkeys(
        [verdict.name for verdict in verdicts(table)], True
    )


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("reward rises", {"shift_mid__reward": -0.2}),
        ("dose response", {"sft__reward": 0.5}),
        ("not replay", {"shift_mid__reward": 0.2, "replay__reward": 0.2}),
        ("anchor holds the look", {"shift_mid__look_error": 0.5}),
        ("refresh closes it", {"fixed__glow": 1.0, "refreshed__glow": 0.7}),
    ],
)
def test_a_verdict_fails_if_its_claim_is_wrong(name: str, changes: dict[str, float]) -> None:
    assert {verdict.name: verdict.holds for verdict in verdicts(planted(**changes))}[name] is False


def test_one_bad_stream_fails_the_first_verdict() -> None:
    table = planted(shift_mid__reward=1.0)
    table["shift-mid"]["reward"][1] = table["sft"]["reward"][1] - 0.01
    assert verdicts(table)[0].holds is False


def test_arms_that_have_not_run_leave_their_verdicts_open() -> None:
    table = {name: values for name, values in planted().items() if name in GRID}
    holds = {verdict.name: verdict.holds for verdict in verdicts(table)}
    assert holds["not replay"] is holds["refresh closes it"] is None
    assert holds["dose response"] is not None


def test_intervals_are_wider_between_streams_than_within_them() -> None:
    rng = np.random.default_rng(1)
    within = rng.normal(0, 0.1, (3, 50))
    between = within + np.array([[-1.0], [0.0], [1.0]])
    narrow, wide = interval(within), interval(between)
    assert narrow.low < narrow.mean < narrow.high
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)


def test_slope_is_per_step_of_the_grid_and_pairs_streams() -> None:
    levels = [np.full((2, 3), 0.5 * rank) for rank in range(4)]
    np.testing.assert_allclose(slope(levels), 0.5)
    table = {"a": {"m": np.ones((2, 3))}, "b": {"m": np.zeros((1, 3))}}
    assert difference(table, "a", "b", "m").shape == (1, 3)


TOY = replace(
    SMOKE,
    base=replace(
        SMOKE.base,
        num_scenes=4,
        sampler_steps=2,
        plan=BasePlan(autoencoder_steps=2, autoencoder_batch=2, denoiser_steps=2, denoiser_batch=2),
    ),
    num_train=4,
    num_held_out=2,
    num_rollouts=2,
    pretrain_steps=2,
)
RUN = ("base", "sft", "shift-mid", "refreshed")


def test_every_arm_takes_the_same_steps_on_the_same_data() -> None:
    configs = [run_config(Task(arm=a, seed=0, stream=1, size=FULL, folder=Path("f")), Path("o")) for a in arms(FULL)]
    same = {(c.seed, c.data, c.loop.num_buffers, c.loop.buffer_clips, c.loop.passes, c.optimizer) for c in configs}
    assert len(same) == 1
    assert FULL.num_steps == configs[0].loop.num_buffers * configs[0].loop.passes * configs[0].steps_per_pass(1)


@pytest.mark.slow
def test_arms_train_and_report_and_are_not_run_twice(tmp_path: Path) -> None:
    prepare(tmp_path, TOY, seed=0)
    chosen = [arm for arm in arms(TOY) if arm.name in RUN]
    paths = [run_arm(Task(arm=arm, seed=0, stream=0, size=TOY, folder=tmp_path)) for arm in chosen]
    records = [json.loads(path.read_text()) for path in paths]
    summary = write_report(records, tmp_path / "report", {"seed": 0})
    json.dumps(summary, allow_nan=False)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.txt", "reward.png", "loophole.png", "clips.mp4", "clips.gif", "clips.png",
    }  # fmt: skip
    assert set(summary["arms"]) == set(RUN)
    rewards = {record["arm"]: [row["reward"] for row in record["rows"]] for record in records}
    assert rewards["base"] != rewards["sft"] != rewards["shift-mid"]
    assert [len(r["history"]["reward_rollouts/combined"]) for r in records] == [0, 0, 2, 2]

    times = [path.stat().st_mtime_ns for path in paths]
    for arm in chosen:
        run_arm(Task(arm=arm, seed=0, stream=0, size=TOY, folder=tmp_path))
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_an_arm_is_the_same_when_run_again(tmp_path: Path) -> None:
    prepare(tmp_path, TOY, seed=0)
    task = Task(arm=Arm(name="again"), seed=0, stream=0, size=TOY, folder=tmp_path)
    first = json.loads(run_arm(task).read_text())["rows"]
    task.result.unlink()
    assert json.loads(run_arm(task).read_text())["rows"] == first


@pytest.mark.long
def test_the_smoke_run_has_every_arm_and_verdict(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "experiments.proof",
        "mechanism",
        "--size",
        "smoke",
        "--jobs",
        "1",
        "--out",
        str(tmp_path),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    last = json.loads(run.stdout.splitlines()[-1])
    assert set(last) == {
        "proof", "seed", "size", "steps", "streams", "arms", "verdicts", "time_over_sft", "holds", "seconds",
    }  # fmt: skip
    assert set(last["arms"]) == {arm.name for arm in arms(SMOKE)} == {arm.name for arm in arms(FULL)}
    assert set(last["verdicts"]) == {verdict.name for verdict in verdicts(planted())}
    assert all(verdict["holds"] is not None for verdict in last["verdicts"].values()), "every verdict's arms have run"
