"""Tests Level 2 of the proof: the direction of rewards, by hand on small tables and with a running reward server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from experiments.proof import __main__ as command
from experiments.proof.discriminators import pretraining_clips
from experiments.proof.learned import (
    FAVOURS,
    SPEED_ALONE,
    ScoredGroups,
    advantage_correlation,
    direction,
    partial_correlation,
    score_groups,
)
from experiments.proof.scenes import draw_scenes
from experiments.proof.size import ProofSize
from protos.client import RewardClient
from protos.types import REWARDS, Outcome
from reward_server.serving.private_redis import PrivateRedis
from tests.reward_stack import RewardStack, calm_logits
from trainer.errors import MissingRewards


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def stack(redis_server: PrivateRedis) -> Iterator[RewardStack]:
    with RewardStack(redis_server.url) as running:
        yield running


def test_the_correlation_is_within_groups() -> None:
    values = np.array([[9.0, 0.0, 1.0, 2.0], [9.0, 0.0, 1.0, 2.0]])
    levels = np.array([[0.0], [100.0]])  # one group has far higher rewards, which advantages ignore
    assert advantage_correlation(values + levels, values) == pytest.approx(1)
    assert advantage_correlation(levels - values, values) == pytest.approx(-1)
    assert advantage_correlation(np.zeros_like(values), values) == 0


def scored(slope: float, edge: float) -> ScoredGroups:
    """Rewards that rise by `slope` with speed and are `edge` higher for real clips; 30 groups of 4 rollouts."""
    rng = np.random.default_rng(0)
    speeds, noise = rng.uniform(0, 1, (30, 5)), rng.normal(0, 0.2, (30, 5))
    rewards = slope * speeds + noise + edge * (np.arange(5) == 0)
    others = {name: rng.uniform(0, 1, (30, 5)) for name in FAVOURS}
    return ScoredGroups(rewards={"combined": rewards}, measures={**others, "speed_px": speeds})


@pytest.mark.parametrize(
    ("slope", "edge", "right"),
    [(1.0, 1.0, True), (0.0, 1.0, True), (-1.0, 1.0, False), (1.0, 0.0, False), (1.0, -1.0, False)],
)
def test_a_reward_points_right_by_its_auc_and_its_slope(slope: float, edge: float, right: bool) -> None:
    assert direction(scored(slope, edge))["combined"]["points_right"] is right


def test_the_partial_correlation_separates_speed_from_look() -> None:
    """Faster rollouts look worse. One reward depends on the look alone, the other on the speed alone."""
    rng = np.random.default_rng(0)
    speeds = rng.uniform(0, 2, (60, 7))
    looks = speeds + rng.normal(0, 0.6, speeds.shape)
    of_looks, of_speeds = (-of + rng.normal(0, 0.6, speeds.shape) for of in (looks, speeds))
    assert advantage_correlation(of_looks, speeds) < -0.4
    assert abs(partial_correlation(of_looks, speeds, looks)) < 0.2
    assert partial_correlation(of_speeds, speeds, looks) < -0.3
    assert partial_correlation(of_looks, looks, looks) == pytest.approx(0, abs=1e-6), "the look explains everything"


def test_rewards_and_measures_stay_in_order(stack: RewardStack) -> None:
    scenes = [scene.clip() for scene in draw_scenes(6, seed=5)]
    groups = [scenes[:3], scenes[3:]]
    with RewardClient(stack.url) as client:
        found = score_groups(groups, client, timeout_s=60)
    wanted = [[calm_logits(clip).instantaneous for clip in group] for group in groups]
    np.testing.assert_allclose(found.rewards["instantaneous"], wanted, rtol=1e-5)
    speeds = [scene.speed_px() for scene in draw_scenes(6, seed=5)]
    np.testing.assert_allclose(found.measures["speed_px"].ravel(), speeds, atol=0.1)


class Forgetful(RewardClient):
    """Loses the last outcome, like a server that stops for good."""

    def await_outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> Iterator[Outcome]:
        yield from super().await_outcomes(job_ids[:-1], timeout_s)


def test_a_clip_without_a_reward_ends_the_measurement(stack: RewardStack) -> None:
    clip = draw_scenes(1, seed=5)[0].clip()
    with Forgetful(stack.url) as client, pytest.raises(MissingRewards, match="1 of 2 clips"):
        score_groups([[clip, clip]], client, timeout_s=60)


def test_pretraining_clips_are_lossless_and_keep_their_rate(tmp_path: Path) -> None:
    groups = [[scene.clip() for scene in draw_scenes(2, seed=seed)] for seed in (5, 6)]
    pretraining_clips(groups, tmp_path)
    for number, group in enumerate(groups):
        for kind, clip in zip(("real", "generated"), group, strict=True):
            with av.open(str(tmp_path / kind / f"{number:05d}.mkv")) as container:
                assert container.streams.video[0].average_rate == clip.fps
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            assert np.array_equal(np.stack(frames).transpose(0, 3, 1, 2), clip.frames)


HOLDS_A_SERVER = """
import sys, time
from pathlib import Path
from experiments.proof.__main__ import end_on_sigterm
from experiments.proof.discriminators import served
from experiments.proof.size import SMOKE
end_on_sigterm()
with served(Path(sys.argv[1]), SMOKE.discriminators) as url:
    print(url, flush=True)
    time.sleep(600)
"""


def test_a_terminated_proof_stops_its_server(discriminators_file: Path) -> None:
    command_line = [sys.executable, "-c", HOLDS_A_SERVER, str(discriminators_file)]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("grpc://")
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert started
    assert not psutil.wait_procs(started, timeout=60)[1]


@pytest.mark.long
def test_the_commands_pretrain_serve_and_fine_tune(tmp_path: Path, smallest: ProofSize) -> None:
    place = ["--size", "smoke", "--out", str(tmp_path), "--seed", "0", "--jobs", "1"]
    run = CliRunner().invoke(command.app, ["rewards", *place])
    assert run.exit_code == 0, run.output
    last = json.loads(run.stdout.splitlines()[-1])
    assert set(last["discriminators"]) == set(REWARDS)
    assert set(last["discriminators"]["combined"]) == {"auc", "points_right", *FAVOURS, SPEED_ALONE}
    assert json.loads((tmp_path / "smoke-0" / "rewards.json").read_text()) == last

    run = CliRunner().invoke(command.app, ["rewards", *place, "--negatives", "faults"])
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "smoke-0" / "rewards-faults.json").read_text())["negatives"] == "faults"
    made = [
        (tmp_path / "smoke-0" / name).read_bytes()
        for name in ("discriminators.safetensors", "discriminators-faults.safetensors")
    ]
    assert made[0] != made[1]
    assert (tmp_path / "smoke-0" / "pretrain" / "generated").exists()
    assert not (tmp_path / "smoke-0" / "pretrain-faults" / "generated").exists()

    discriminators = (tmp_path / "smoke-0" / "discriminators.safetensors").stat()
    asked = ["motion", *place, "--on", "static"]
    run = CliRunner().invoke(command.app, [*asked, *(f"--only={name}" for name in ("base", "sft", "shift-mid"))])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "smoke-0" / "discriminators.safetensors").stat() == discriminators, "they are pretrained once"
    found = json.loads(run.stdout.splitlines()[-1])["sets"]["static"]
    assert set(found["arms"]) == {"base", "sft", "shift-mid"}
    assert set(found["verdicts"]) == {"sft slower than base", "sft slower than data", "shift faster than sft"}
    record = json.loads((tmp_path / "smoke-0" / "motion-static" / "arms" / "shift-mid-0.json").read_text())
    assert len(record["history"]["reward_rollouts/combined"]) == len(record["favours"]) == smallest.num_buffers
    journal = tmp_path / "smoke-0" / "motion-static" / "arms" / "shift-mid-0" / "rewards" / "rewards-0.jsonl"
    versions = {json.loads(line)["scored"]["version"] for line in journal.read_text().splitlines()}
    assert len(versions) == smallest.num_buffers, "each buffer has its own version"
