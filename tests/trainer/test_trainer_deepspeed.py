"""Tests DeepSpeed's ZeRO on two processes with gloo. Run as a module, this file is the tests' trainer."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, is_deepspeed_available
from safetensors.torch import load_file

from tests.trainer_runs import WITHOUT_SERVER, figures, launch, shard_cpu_processes, tiny_config, trained_bytes
from trainer import zero
from trainer.config import Config, load
from trainer.errors import ConfigError
from trainer.run import open_accelerator, open_run
from trainer.train import resume, run_training, save

RUN = (
    "loop.buffer_clips=4",
    "loop.passes=1",
    "loop.num_rollouts=2",
    *WITHOUT_SERVER,
)
LAST = Path("checkpoints/step-00000004")
ON = {"ACCELERATE_USE_DEEPSPEED": "true"}

needs_deepspeed = pytest.mark.skipif(not is_deepspeed_available(), reason="deepspeed is not installed")


@pytest.fixture(scope="module", params=[1, 2])
def sharded(request: pytest.FixtureRequest, svd: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run of each stage, which was stopped halfway and resumed."""
    config = tiny_config(tmp_path_factory.mktemp("runs") / "sharded", svd, clips, *RUN)
    half = replace(config, loop=replace(config.loop, num_buffers=1))
    assert [launch_sharded(part, request.param) for part in (half, config)] == [0, 0]
    return config


def launch_sharded(config: Config, stage: int) -> int:
    engine = ON | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), "DS_ACCELERATOR": "cpu"}
    return launch(config, 2, module="tests.trainer.test_trainer_deepspeed", **engine)


@pytest.mark.slow
@needs_deepspeed
def test_two_shards_train_like_one_process_with_twice_the_batch(
    sharded: Config, svd: Path, clips: Path, tmp_path: Path
) -> None:
    one = tiny_config(tmp_path / "one", svd, clips, *RUN, "loop.batch_clips=2")
    run_training(one)
    for name, rel in (("loss/total", 1e-5), ("gradient/norm", 1e-4)):
        assert figures(sharded.out, name) == pytest.approx(figures(one.out, name), rel=rel)
    ours, theirs = (load_file(run.out / LAST / "trainable.safetensors") for run in (sharded, one))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    states = [torch.load(run.out / LAST / "optimizer.pt", weights_only=True) for run in (sharded, one)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for at, moments in states[1]["state"].items():
        torch.testing.assert_close(states[0]["state"][at], moments, rtol=1e-2, atol=1e-7)


@pytest.mark.slow
@needs_deepspeed
def test_a_single_process_reads_a_checkpoint_of_shards(sharded: Config, tmp_path: Path) -> None:
    """A single process can load the checkpoint, and saves the same again."""
    config = replace(sharded, out=tmp_path / "copy")
    shutil.copytree(sharded.out, config.out)
    with open_run(config) as run:
        save(run, resume(run))
    ours, theirs = trained_bytes(config.out, 4), trained_bytes(sharded.out, 4)
    assert ours["trainable.safetensors"] == theirs["trainable.safetensors"]
    copy, original = (torch.load(run.out / LAST / "optimizer.pt", weights_only=True) for run in (config, sharded))
    torch.testing.assert_close(copy["state"], original["state"], rtol=0, atol=0)


@pytest.mark.slow
@needs_deepspeed
def test_shards_of_a_bfloat16_base_train_like_whole_copies(svd: Path, clips: Path, tmp_path: Path) -> None:
    options = (*RUN, "policy.precision=bf16", "loop.num_buffers=1", "policy.gradient_checkpointing=true")
    ours, theirs = (tiny_config(tmp_path / name, svd, clips, *options) for name in ("sharded", "whole"))
    assert [launch_sharded(ours, 2), launch(theirs, 2)] == [0, 0]
    for name in ("loss/total", "gradient/norm"):
        assert figures(ours.out, name) == pytest.approx(figures(theirs.out, name), rel=1e-5)


@needs_deepspeed
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3; this trainer supports stages 1 and 2"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision bf16: .*set it to no"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload the optimizer to cpu.*to none"),
        ({}, "does not shard with distributed type NO; start processes on GPUs"),
    ],
)
def test_unsupported_configurations_are_refused(
    environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (ON | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        open_accelerator(load("tiny", ["device=cpu", f"out={tmp_path}"]))


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "is_deepspeed_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="not installed; pip install deepspeed"):
        open_accelerator(load("tiny", ["device=cpu", f"out={tmp_path}"]))


# --- the trainer of these tests -----------------------------------------------------------------


def shard_on_cpus() -> None:
    """Make Accelerate use DeepSpeed on CPUs. DeepSpeed supports them, but Accelerate does not use it there."""

    def take(state: AcceleratorState, plugin: Any) -> None:
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        state.deepspeed_plugins = plugin

    shard_cpu_processes("deepspeed_plugin", DistributedType.DEEPSPEED, take)


if __name__ == "__main__":
    import deepspeed

    from trainer.__main__ import main

    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    shard_on_cpus()
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    main()
