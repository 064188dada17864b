"""Tests FSDP (a sharded denoiser) on two processes with gloo. Run as a module, this file is the tests' trainer."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.trainer_runs import WITHOUT_SERVER, figures, launch, shard_cpu_processes, tiny_config, trained_bytes
from trainer.config import Config, load
from trainer.errors import ConfigError
from trainer.rollout import Group
from trainer.run import open_accelerator, open_run
from trainer.train import resume, run_training, save

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "TransformerSpatioTemporalModel,ResnetBlock2D,TemporalResnetBlock",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # the default of `accelerate launch`
}
RUN = (
    "loop.buffer_clips=4",
    "loop.passes=1",
    "loop.num_rollouts=2",
    "policy.gradient_checkpointing=true",
    *WITHOUT_SERVER,
)
LAST = Path("checkpoints/step-00000004")


@pytest.fixture(scope="module")
def sharded(svd: Path, clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run."""
    config = tiny_config(tmp_path_factory.mktemp("runs") / "sharded", svd, clips, *RUN)
    assert launch_sharded(config) == 0
    return config


def launch_sharded(config: Config, **environment: str) -> int:
    return launch(config, 2, module="tests.trainer.test_trainer_fsdp", **FSDP | environment)


@pytest.mark.slow
def test_two_shards_train_like_one_process_with_twice_the_batch(
    sharded: Config, svd: Path, clips: Path, tmp_path: Path
) -> None:
    one = tiny_config(tmp_path / "one", svd, clips, *RUN, "loop.batch_clips=2")
    run_training(one)
    for name, rel in (("loss/total", 1e-5), ("gradient/norm", 1e-4), ("gradient/sft", 1e-4), ("gradient/aw", 1e-3)):
        assert figures(sharded.out, name) == pytest.approx(figures(one.out, name), rel=rel)
    ours, theirs = (load_file(run.out / LAST / "trainable.safetensors") for run in (sharded, one))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    lora = load_file(sharded.out / LAST / "lora" / "pytorch_lora_weights.safetensors")
    named = {f"unet.{name.replace('.default', '')}": tensor for name, tensor in ours.items()}
    torch.testing.assert_close(lora, named, rtol=0, atol=0)


@pytest.mark.slow
def test_shards_of_two_dtypes_train_like_whole_copies(svd: Path, clips: Path, tmp_path: Path) -> None:
    """A bfloat16 base with a float32 LoRA. Wrapping these blocks sums gradients in the order of whole copies."""
    options = (*RUN, "policy.precision=bf16", "loop.num_buffers=1")
    ours, theirs = (tiny_config(tmp_path / name, svd, clips, *options) for name in ("sharded", "whole"))
    blocks = "BasicTransformerBlock,TemporalBasicTransformerBlock"
    assert launch_sharded(ours, FSDP_TRANSFORMER_CLS_TO_WRAP=blocks) == 0
    assert launch(theirs, 2) == 0
    for name in ("loss/total", "gradient/norm", "gradient/sft", "gradient/aw"):
        assert figures(ours.out, name) == pytest.approx(figures(theirs.out, name), rel=1e-5)


@pytest.mark.slow
def test_a_sharded_run_resumes_exactly_after_one_process_died(
    sharded: Config, svd: Path, clips: Path, tmp_path: Path
) -> None:
    """One process has rollouts on disk that the other lacks. All sample again, because no process can sample alone."""
    killed = tiny_config(tmp_path / "killed", svd, clips, *RUN)
    assert launch_sharded(killed, DIE_AT_SLOT="5") != 0
    assert [path.stem for path in (killed.out / "buffers" / "000001").glob("*.safetensors")] == ["00000004"]
    assert launch_sharded(killed) == 0
    assert trained_bytes(killed.out, 4) == trained_bytes(sharded.out, 4)


@pytest.mark.slow
def test_a_single_process_reads_a_checkpoint_of_shards(sharded: Config, tmp_path: Path) -> None:
    """A single process can load the checkpoint, and saves the same again."""
    config = replace(sharded, out=tmp_path / "copy")
    shutil.copytree(sharded.out, config.out)
    with open_run(config) as run:
        save(run, resume(run))
    ours, theirs = trained_bytes(config.out, 4), trained_bytes(sharded.out, 4)
    assert ours["trainable.safetensors"] == theirs["trainable.safetensors"]
    assert ours["optimizer.pt"] == theirs["optimizer.pt"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1, .* set FSDP_VERSION=2"),
        (FSDP, "does not shard with distributed type NO; start processes on GPUs"),
    ],
)
def test_unsupported_sharding_is_refused(
    environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        open_accelerator(load("tiny", ["device=cpu", f"out={tmp_path}"]))


# --- the trainer of these tests -----------------------------------------------------------------


def shard_on_cpus() -> None:
    """Make Accelerate use FSDP on CPUs. torch supports them, but Accelerate does not use FSDP there."""

    def take(state: AcceleratorState, plugin: Any) -> None:
        state.fsdp_plugin = plugin

    shard_cpu_processes("fsdp_plugin", DistributedType.FSDP, take)


def die_at(slot: int) -> None:
    """Kill this process like a failing machine, when the other process's group is on disk but its own is not yet."""
    plain = Group.save

    def save_or_die(self: Group, path: Path) -> None:
        if self.slot == slot:
            while not path.with_stem(f"{slot - 1:08d}").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, path)

    Group.save = save_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    from trainer.__main__ import main

    shard_on_cpus()
    die_at(int(os.environ.get("DIE_AT_SLOT", "-1")))
    main()
