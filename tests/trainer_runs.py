"""Runs the real trainer on toy bases, for the trainer's tests: clips, configurations, and reading of the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from protos.types import Clip
from trainer.config import Config, load, to_yaml
from trainer.video import write_clip

ROOT = Path(__file__).parents[1]
SVD = ("policy.model=svd", "policy.num_frames=4", "policy.height_px=32", "policy.width_px=32")
WAN = ("policy.model=wan", "policy.num_frames=5", "policy.height_px=32", "policy.width_px=32")
TINY = (
    "device=cpu",
    "policy.fps=8",
    "policy.num_steps=2",
    "policy.lora={rank: 2, alpha: 2}",
    "loop.num_buffers=2",
    "loop.buffer_clips=2",
    "loop.num_rollouts=2",
    "loop.passes=2",
    "objective.lambda_aw=0.5",
    "checkpoint.every_steps=1",
    "checkpoint.keep=100",
    "rewards.patience_s=20",
    "signal.noise_share=0",
)


WITHOUT_SERVER = ("rewards.server=''", "objective.weighting=uniform", "logs.samples_every_buffers=0")


def write_clips(folder: Path, num: int = 4) -> Path:
    """Write lossless clips of squares that drift over a texture, 8 frames of 32x32 each. Returns `folder`."""
    for index in range(num):
        rng = np.random.default_rng(index)
        frames = np.repeat(rng.integers(0, 100, (1, 3, 32, 32)), 8, axis=0).astype(np.uint8)
        (x, y), (u, v) = rng.integers(4, 20, 2), rng.integers(-1, 2, 2)
        for t in range(8):
            frames[t, :, y + v * t // 2 :, x + u * t // 2 :][:, :8, :8] = 200
        write_clip(folder / f"{index}.safetensors", Clip(frames=frames, fps=8.0))
    return folder


def tiny_config(out: Path, base: Path, clips: Path, *overrides: str, kind: tuple[str, ...] = SVD) -> Config:
    """The configuration of a run of a few steps on the toy base in `base`, with its files in `out`."""
    where = (f"out={out}", f"policy.base={base}", f"data.train=[{clips}]", f"data.held_out=[{clips}]")
    return load("tiny", [*kind, *TINY, *where, *overrides])


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, parsed."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def figures(out: Path, name: str) -> list[float]:
    """All values of one figure, in the order of the run."""
    return [line[name] for line in metrics(out) if name in line]


def trained_bytes(out: Path, step: int) -> dict[str, bytes]:
    """The files of a checkpoint that hold weights, optimizer state and generators, as bytes."""
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {name: (folder / name).read_bytes() for name in ("trainable.safetensors", "optimizer.pt", "rng.safetensors")}


def shard_cpu_processes(plugin_name: str, kind: DistributedType, take: Callable[[AcceleratorState, Any], None]) -> None:
    """Make Accelerate shard on its CPU processes, which it supports on GPUs only.

    `plugin_name` is the argument with the sharding plugin, `kind` the distributed type to pretend. `take` sets up the
    state with the plugin.
    """
    plain = AcceleratorState.__init__

    def init(self: Any, *given: Any, **named: Any) -> None:
        plain(self, *given, **named)
        if (plugin := named.get(plugin_name)) is not None:
            take(self, plugin)
            self.distributed_type = PartialState._shared_state["distributed_type"] = kind

    AcceleratorState.__init__ = init


def launch(config: Config, num: int, *, module: str = "trainer", **environment: str) -> int:
    """Train on `num` CPU processes with torchrun; Accelerate uses gloo. Returns the exit status."""
    path = config.out.with_suffix(".yaml")
    path.write_text(to_yaml(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
    trained = [*command, "-m", module, "train", "--config", str(path)]
    return subprocess.run(trained, cwd=ROOT, check=False, env=environment).returncode
