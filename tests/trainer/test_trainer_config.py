"""Tests the trainer's configuration: presets match SHIFT's reference code; bad keys and values are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from trainer import config
from trainer.__main__ import main
from trainer.config import Config, OptimizerConfig, differences, from_dict, load, to_dict, to_yaml
from trainer.errors import ConfigError
from trainer.run import open_accelerator


def test_the_svd_preset_has_the_values_of_the_reference_code() -> None:
    svd = load("svd")
    policy = to_dict(svd)["policy"]
    assert (policy["model"], policy["base"]) == ("svd", "stabilityai/stable-video-diffusion-img2vid-xt")
    assert (policy["num_frames"], policy["height_px"], policy["width_px"], policy["fps"]) == (24, 320, 576, 14.0)
    assert (policy["lora"], policy["num_steps"], policy["guidance"]) == ({"rank": 32, "alpha": 32}, 25, [1.0, 3.0])
    assert (svd.loop.num_rollouts, svd.loop.buffer_clips, svd.loop.passes) == (8, 640, 10)
    assert (svd.objective.lambda_sft, svd.objective.lambda_aw) == (1.0, 0.001)
    assert svd.optimizer == OptimizerConfig(
        lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=20, max_grad_norm=1.0
    )
    assert (svd.refresh.lr, svd.refresh.ema) == (1e-5, 0.99)


def test_the_wan_preset_has_the_values_of_the_reference_code() -> None:
    wan = load("wan")
    policy = to_dict(wan)["policy"]
    assert (policy["model"], policy["base"]) == ("wan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    assert (policy["num_frames"], policy["height_px"], policy["width_px"], policy["fps"]) == (49, 480, 832, 24.0)
    assert (policy["guidance"], policy["shift"], policy["num_steps"]) == (5.0, 5.0, 25)
    assert (wan.loop.num_rollouts, wan.loop.buffer_clips, wan.loop.passes) == (8, 512, 10)
    assert (wan.objective.lambda_sft, wan.objective.lambda_aw, wan.optimizer.weight_decay) == (1.0, 0.01, 0.0)


@pytest.mark.parametrize("preset", ["tiny", "svd", "wan"])
def test_a_configuration_survives_its_yaml(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load(preset, ["seed=7", "policy.sft_lora=some/folder"])))
    assert load(str(path)) == load(preset, ["seed=7", "policy.sft_lora=some/folder"])


def test_a_file_overrides_a_preset_and_the_command_line_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: svd\nloop: {passes: 3, num_rollouts: 4}\noptimizer: {lr: 2e-5}\n")
    found = load(str(path), ["loop.passes=5", "data.train=[a, b]", "policy.lora=null", "policy.precision=fp32"])
    assert (found.loop.passes, found.loop.num_rollouts, found.loop.buffer_clips) == (5, 4, 640)
    assert found.optimizer.lr == 2e-5
    assert found.data.train == ("a", "b")
    assert found.policy.lora is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loop.pases=3", r"'loop.pases'; did you mean loop.passes\?"),
        ("lop.passes=3", r"'lop'; did you mean loop"),
        ("policy.lora.rnk=3", r"did you mean policy.lora.rank\?"),
        ("loop.passes=many", r"loop.passes is 'many' \(str\); give int"),
        ("loop.passes=2.5", r"loop.passes is 2.5 \(float\); give int"),
        ("loop.passes=true", r"loop.passes is 'true' \(str\); give int"),
        ("loop.passes=0", r"loop.passes is 0; give 1 or more"),
        ("objective.weighting=cubic", r"give one of linear, exp, uniform"),
        ("objective.beta=0", r"objective.beta is 0.0; give more than 0"),
        ("rewards.max_outage_s=1", r"rewards.patience_s is 60 and rewards.max_outage_s 1"),
        ("policy.model=sora", r"policy.model is 'sora'; give one of svd, wan"),
        ("policy.lora=null", r"in bf16 most steps round to nothing; set precision=fp32"),
        ("policy.fps=0", r"fps must be above 0, got 0"),
        ("policy.decode_chunk=0", r"decode_chunk must be at least 1, got 0"),
        ("policy.condition_dropout=0.4", r"condition_dropout must be 0 to 1/3, .* got 0.4"),
        ("optimizer.max_grad_norm=0", r"optimizer.max_grad_norm is 0; give more than 0"),
        ("optimizer.betas=[2, 5]", r"optimizer.betas is \[2.*5.*\]; give two numbers from 0 to below 1"),
        ("rewards.max_missing_fraction=5", r"rewards.max_missing_fraction is 5; give a share"),
        ("rewards.min_dynamics=-1", r"rewards.min_dynamics is -1; give a share from 0 \(off\) to 1"),
        ("rewards.weights={instantaneous: -1}", r"rewards.weights.instantaneous is -1.0; give 0 or more"),
        ("rewards.weights={insta: 1}", r"did you mean rewards.weights.instantaneous"),
        ("objective.per_discriminator=true", r"rewards.weights, by which advantages are joined, is not set"),
        ("refresh.ema=7", r"refresh: ema must be in 0..1 and below 1, got 7"),
        ("refresh.lr=0", r"refresh: learning_rate must be above 0 and at most 1, got 0"),
        ("refresh.clips_per_step=2000", r"refresh: clips_per_step must be in 1..1024, got 2000"),
        ("refresh.max_rollouts=-3", r"refresh: max_rollouts must be in 0..4294967295, got -3"),
        ("device=cuda:1", r"device is 'cuda:1'; give cpu, .* CUDA_VISIBLE_DEVICES"),
        ("loop.passes", r"'loop.passes' is not key=value"),
        ("loop.passes=[", r"is not YAML"),
    ],
)
def test_wrong_keys_and_values_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, [override])


def test_one_folder_needs_no_brackets() -> None:
    assert load(None, ["data.train=clips"]).data.train == ("clips",)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'tniy' is neither a preset \(svd, tiny, wan\)"):
        load("tniy")


def test_a_buffer_must_divide_by_processes_and_batch() -> None:
    found = load(None, ["loop.buffer_clips=10", "loop.batch_clips=2"])
    assert found.steps_per_pass(1) == 5
    with pytest.raises(ConfigError, match=r"loop.buffer_clips is 10, not a multiple of 4"):
        found.steps_per_pass(2)


def test_the_learning_rate_warms_up_and_stays() -> None:
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=4)
    assert [optimizer.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert OptimizerConfig(lr=1.0, warmup_steps=0).rate(0) == 1.0


def test_differences_name_the_keys_and_both_values() -> None:
    old = to_dict(load(None, ["seed=1", "loop.passes=3"]))
    new = load(None, ["seed=2", "loop.passes=4", "logs.every_steps=7"])
    assert differences(new, old, ignore=["logs."]) == ["loop.passes: 4, was 3", "seed: 2, was 1"]


def test_a_key_that_an_older_checkpoint_lacks_had_its_default() -> None:
    old = to_dict(load(None, ["policy.lora=null", "policy.precision=fp32"]))
    del old["rewards"]["min_dynamics"]
    same = load(None, ["policy.lora=null", "policy.precision=fp32"])
    assert differences(same, old, ignore=[]) == []
    floored = load(None, ["policy.lora=null", "policy.precision=fp32", "rewards.min_dynamics=0.5"])
    assert differences(floored, old, ignore=[]) == ["rewards.min_dynamics: 0.5, was 0.0"]


@pytest.mark.parametrize("without", ["loop.num_rollouts=0", "objective.weighting=uniform"])
def test_a_floor_of_dynamics_needs_weighted_rollouts(without: str) -> None:
    assert load(None, ["rewards.min_dynamics=0.5"]).rewards.min_dynamics == 0.5
    with pytest.raises(ConfigError, match=r"rewards.min_dynamics is 0.5, but without rollouts"):
        load(None, ["rewards.min_dynamics=0.5", without])


def test_the_toy_preset_uses_one_thread_others_torchs_default(tmp_path: Path) -> None:
    """A toy's matrix products are too small to split. With another job running, its threads mostly wait."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        open_accelerator(load("tiny", ["device=cpu", f"out={tmp_path}", "threads=0"]))
        assert torch.get_num_threads() == 3
        open_accelerator(load("tiny", ["device=cpu", f"out={tmp_path}"]))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert (load("svd").threads, load("wan").threads) == (0, 0)
    with pytest.raises(ConfigError, match="threads is -1; give 0 or more"):
        load("tiny", ["threads=-1"])


def test_every_setting_is_read_by_code() -> None:
    root = Path(config.__file__).parent
    code = "\n".join(path.read_text() for path in root.rglob("*.py"))
    sections = [kind for kind in vars(config).values() if isinstance(kind, type) and kind.__name__.endswith("Config")]
    names = {name for kind in [Config, *sections] for name in getattr(kind, "__dataclass_fields__", {})}
    assert len(names) > 50
    assert [name for name in sorted(names) if f".{name}" not in code] == []


def test_a_printed_configuration_can_be_read_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", "train", "--config", "tiny", "seed=3", "--print-config"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert from_dict(yaml.safe_load(capsys.readouterr().out)) == load("tiny", ["seed=3"])


def test_the_command_line_prints_an_error_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", "train", "loop.pases=3", "--print-config"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.strip()
    assert said == "ConfigError: there is no key 'loop.pases'; did you mean loop.passes?"
