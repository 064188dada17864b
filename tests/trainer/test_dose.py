"""Tests objective.aw_dose: the ratio of the two gradients is held, whatever the scale of the rewards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer_runs import WITHOUT_SERVER, figures, launch, metrics, tiny_config, trained_bytes
from trainer.checkpoint import read_about
from trainer.config import Config, load, to_yaml
from trainer.dose import DECAY, MOST, Norms, SplitGradients
from trainer.errors import ConfigError
from trainer.objective import ClipReward, GroupRewards, Objective
from trainer.rewards.source import Collected, NoRewards
from trainer.run import open_run
from trainer.train import run_training, train

QUIET = ("logs.samples_every_buffers=0",)

# --- the rule -----------------------------------------------------------------------------------


def test_the_first_step_has_the_dose_exactly() -> None:
    norms = Norms().after(4.0, 0.5)
    assert norms == Norms(sft=4.0, aw=0.5)
    assert norms.lambda_aw(0.25, 4.0, 0.5) * 0.5 / 4.0 == 0.25


def test_norms_are_smoothed_and_steps_that_tell_nothing_left_out() -> None:
    norms = Norms(sft=4.0, aw=0.5)
    for nothing in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        assert norms.after(*nothing) == norms
    assert norms.after(2.0, 1.5) == Norms(sft=DECAY * 4 + (1 - DECAY) * 2, aw=DECAY * 0.5 + (1 - DECAY) * 1.5)


def test_a_step_has_at_most_twice_the_dose_and_a_quiet_one_less() -> None:
    """lambda_aw follows the smoothed norms: a group whose rewards hardly differ is not blown up to the dose."""
    norms = Norms(sft=1.0, aw=1.0)
    assert norms.lambda_aw(0.3, 1.0, 100.0) * 100 == pytest.approx(MOST * 0.3)
    assert norms.lambda_aw(0.3, 1.0, 0.01) * 0.01 == pytest.approx(0.003)


def test_without_a_gradient_of_rollouts_lambda_is_0() -> None:
    assert Norms().lambda_aw(0.3, 1.0, 0.0) == 0
    assert Norms(sft=1.0, aw=1.0).lambda_aw(0.3, 1.0, 0.0) == 0


def test_split_gradients_are_joined_as_the_formula_says() -> None:
    module = nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    split = SplitGradients(module)
    split.after_real_clips()
    module.weight.grad += torch.tensor([[0.0, -2.0]])
    assert split.norms() == (5.0, 2.0)
    split.join(0.5)
    assert torch.equal(module.weight.grad, torch.tensor([[3.0, 3.0]]))


def test_the_dose_rises_linearly() -> None:
    ramped = Objective(aw_dose=0.2, lambda_aw=0.0, lambda_aw_ramp_steps=4)
    assert [ramped.aw_dose_at(step) for step in (0, 1, 4, 9)] == pytest.approx([0, 0.05, 0.2, 0.2])


# --- the configuration --------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["svd", "wan", "tiny", None])
def test_a_dose_takes_the_place_of_the_presets_lambda(preset: str | None) -> None:
    found = load(preset, ["objective.aw_dose=0.3"]).objective
    assert (found.aw_dose, found.lambda_aw) == (0.3, 0.0)
    assert load(preset, ["objective.lambda_aw=0.5"]).objective.aw_dose == 0


def test_a_file_on_a_preset_may_set_the_dose_and_survives_its_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: svd\nobjective: {aw_dose: 0.3}\n")
    found = load(str(path))
    assert (found.objective.aw_dose, found.objective.lambda_aw) == (0.3, 0.0)
    path.write_text(to_yaml(found))
    assert load(str(path)) == found


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("objective: {aw_dose: 0.3, lambda_aw: 0.01}\n", "seed=1"),
        ("preset: svd\nobjective: {lambda_aw: 0.01}\n", "objective.aw_dose=0.3"),
        ("preset: wan\nobjective: {aw_dose: 0.3}\n", "objective.lambda_aw=0.01"),
    ],
)
def test_a_dose_and_a_lambda_set_by_hand_are_refused(tmp_path: Path, text: str, override: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"aw_dose is 0.3 and objective.lambda_aw is 0.01, .* leave one of them out"):
        load(str(path), [override])


def test_a_dose_needs_a_supervised_gradient() -> None:
    with pytest.raises(ConfigError, match=r"aw_dose is 0.3 times the supervised gradient, but .*lambda_sft is 0"):
        load("svd", ["objective.aw_dose=0.3", "objective.lambda_sft=0"])


# --- runs ---------------------------------------------------------------------------------------


class ScaledRewards(NoRewards):
    """Known rewards in 0..0.06 that depend on the clip's place alone, times `scale`."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def pin(self) -> str:
        return "scaled"

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        groups = [[self._reward(key.partition("-")[0], at) for at in range(num_clips)] for key in keys]
        scored = tuple(GroupRewards(real=real, rollouts=tuple(rollouts)) for real, *rollouts in groups)
        return Collected(groups=scored, latencies_s=(), errors={})

    def _reward(self, slot: str, at: int) -> ClipReward:
        drawn = hashlib.sha256(f"{slot}/{at}".encode()).digest()[0] / 4096
        return ClipReward(reward=self._scale * drawn, version="scaled")


def trained_with(config: Config, scale: float) -> dict[str, bytes]:
    with open_run(config, rewards=ScaledRewards(scale)) as run:
        step = train(run).step
    return trained_bytes(config.out, step)


DOSE = ("objective.lambda_aw=0", "objective.aw_dose=0.3333", "checkpoint.every_steps=2", *QUIET)


def test_the_result_is_the_same_when_a_reward_is_multiplied(svd: Path, clips: Path, tmp_path: Path) -> None:
    """To the bit for a power of 2, up to rounding for 100. With lambda_aw the scale of the reward matters."""
    one, many, hundred = (tiny_config(tmp_path / name, svd, clips, *DOSE) for name in ("one", "many", "hundred"))
    assert trained_with(one, 1.0) == trained_with(many, 128.0)
    trained_with(hundred, 100.0)
    for name in ("loss/total", "gradient/aw_over_sft", "gradient/norm"):
        assert figures(hundred.out, name) == pytest.approx(figures(one.out, name), rel=1e-3), name
    ratios = figures(one.out, "gradient/aw_over_sft")
    assert ratios[0] == pytest.approx(0.3333)
    assert all(0 < ratio <= MOST * 0.3334 for ratio in ratios)
    assert len(set(ratios)) > 4
    lambdas = [figures(config.out, "loss/lambda_aw") for config in (one, hundred)]
    assert lambdas[0] == pytest.approx([100 * value for value in lambdas[1]], rel=1e-3)


def test_a_run_with_a_dose_resumes_exactly(svd: Path, clips: Path, tmp_path: Path) -> None:
    """The smoothed norms are in the checkpoint; without them the ratio would start anew."""
    whole, cut = (tiny_config(tmp_path / name, svd, clips, *DOSE) for name in ("whole", "cut"))
    expected = trained_with(whole, 1.0)

    class Stopped(Exception):
        pass

    with open_run(cut, rewards=ScaledRewards(1.0)) as run, pytest.raises(Stopped):
        steps = iter(range(1, 9))

        def advance(_: int) -> None:
            if next(steps) == 3:
                raise Stopped

        run.board.advance = advance  # type: ignore[assignment,method-assign]
        train(run)
    saved = read_about(cut.out / "checkpoints" / "step-00000002")["progress"]
    assert saved["sft_norm"] > 0 < saved["aw_norm"]
    assert trained_with(cut, 1.0) == expected


def test_rollouts_that_hardly_count_are_warned_of_after_each_buffer(
    svd: Path, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for scale, lambda_aw, buffers in ((1e-4, 0.01, [0, 1]), (100.0, 1.0, []), (1e-4, 0.0, [])):
        caplog.clear()
        given = f"objective.lambda_aw={lambda_aw}"
        trained_with(tiny_config(tmp_path / f"{scale}-{lambda_aw}", svd, clips, given, *QUIET), scale)
        lines = [line for line in caplog.messages if "objective.aw_dose, for instance to 0.33" in line]
        assert [line.split(":")[0] for line in lines] == [f"buffer {number}" for number in buffers]


@pytest.mark.slow
def test_two_processes_measure_the_dose_like_one_with_twice_the_batch(svd: Path, clips: Path, tmp_path: Path) -> None:
    common = ("loop.buffer_clips=4", "loop.passes=1", "loop.num_rollouts=2", *WITHOUT_SERVER, *DOSE)
    one = tiny_config(tmp_path / "one", svd, clips, "loop.batch_clips=2", *common)
    two = tiny_config(tmp_path / "two", svd, clips, "loop.batch_clips=1", *common)
    run_training(one)
    assert launch(two, 2) == 0
    for name in ("loss/total", "gradient/norm", "gradient/aw_over_sft", "loss/lambda_aw"):
        assert figures(two.out, name) == pytest.approx(figures(one.out, name), rel=1e-3), name
    assert len(metrics(two.out)) == len(metrics(one.out))
