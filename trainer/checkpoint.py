"""Saves and loads checkpoints of a run: one folder per saved optimizer step, of which the latest few are kept.

    step-00000120/progress.json          where in Algorithm 1 the run is, and its configuration
                  trainable.safetensors  every trained parameter by name, bit for bit
                  optimizer.pt           read with weights_only
                  rng.safetensors        torch's generators of every process
                  versions/              the run's own discriminators, to give them back to a server that lost them
                  lora/                  for use elsewhere: load_lora_weights, or policies/lora.py's attach

A checkpoint is written completely or not at all. The learning rate, the order of the data and every random draw are
functions of the step and the seed (config.py, data.py, seeds.py), so they need no state of their own. Rollouts of the
current buffer have their own files (rollout.py). What FSDP or ZeRO shards is written whole, so DDP, FSDP, DeepSpeed
and a single process write the same checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import recursively_apply
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import CheckpointError
from trainer.policies.protocol import Policy
from trainer.processes import gathered, shard_like, whole
from trainer.zero import load_whole_state, uses_zero, whole_state

PREFIX = "step-"
VERSIONS = "versions"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: everything that a resumed run needs besides weights, optimizer and generators."""

    step: int = 0  # optimizer steps taken
    buffer: int = 0  # number of the current buffer
    position: int = 0  # optimizer steps taken on the current buffer
    buffer_version: str = ""  # discriminators that score the current buffer
    version: str = ""  # discriminators that score buffers started from now on
    sft_norm: float = 0.0  # smoothed gradient norms for objective.aw_dose (dose.py)
    aw_norm: float = 0.0
    rescored: bool = False  # the current buffer was scored again, after an early refresh (signal.on_weak)


class Checkpoints:
    """The checkpoints in `folder`: the latest `keep`, and the one at the start of the current buffer."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def latest(self) -> Path | None:
        """The checkpoint of the highest step; None if there is none."""
        return max(self._folder.glob(f"{PREFIX}*"), default=None)

    def save(
        self,
        progress: Progress,
        *,
        policy: Policy,
        optimizer: Any,
        accelerator: Accelerator,
        config: Mapping[str, Any],
        versions: Sequence[Path] = (),
    ) -> None:
        """Write a checkpoint. Call it in every process: the main one writes, the others wait until it is done."""
        generators = _generators(accelerator)
        module = accelerator.unwrap_model(policy.module)
        trained = {name: whole(parameter.detach()).cpu() for name, parameter in trainable(module)}
        state = _whole_state(accelerator, module, optimizer)
        if accelerator.is_main_process:
            partial = self._folder / f".{PREFIX}{progress.step:08d}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(trained, partial / "trainable.safetensors")
            torch.save(state, partial / "optimizer.pt")
            save_file(generators, partial / "rng.safetensors")
            for folder in versions:
                link_folder(folder, partial / VERSIONS / folder.name)
            if hasattr(module, "peft_config"):
                policy.save_lora(partial / "lora", trained)
            about = {"progress": asdict(progress), "num_processes": accelerator.num_processes, "config": config}
            (partial / "progress.json").write_text(json.dumps(about, indent=1))
            self._publish(partial, self._folder / f"{PREFIX}{progress.step:08d}")
        accelerator.wait_for_everyone()

    def _publish(self, partial: Path, final: Path) -> None:
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        if final.exists():  # this step was saved already, before its refresh or before a resume
            final.rename(_gone(final))
        partial.rename(final)
        _sync(self._folder)
        for stale in [*self._folder.glob(f".{PREFIX}*.partial"), *self._folder.glob(f".{PREFIX}*.removed")]:
            shutil.rmtree(stale)
        begun = self.begun()
        for old in sorted(self._folder.glob(f"{PREFIX}*"))[: -self._keep]:
            if old != begun:
                old.rename(_gone(old))  # rename first: a half-removed folder must not look like a checkpoint
                shutil.rmtree(_gone(old))

    def begun(self) -> Path | None:
        """The latest checkpoint at the start of a buffer. A run with another number of processes can resume there."""
        found = sorted(self._folder.glob(f"{PREFIX}*"), reverse=True)
        return next((path for path in found if read_about(path)["progress"]["position"] == 0), None)

    def mend(self) -> None:
        """Finish a replacement that was killed between its two renames. Call it in the main process only."""
        for gone in self._folder.glob(f".{PREFIX}*.removed"):
            final = gone.with_name(gone.stem.removeprefix("."))
            partial = gone.with_suffix(".partial")
            if partial.exists() and not final.exists():  # partial is complete: it was written before the old one moved
                partial.rename(final)

    def load(self, folder: Path, *, policy: Policy, optimizer: Any, accelerator: Accelerator) -> Progress:
        """Restore policy, optimizer and generators. Raises CheckpointError if they do not fit the checkpoint.

        Generators are restored only if the run has as many processes as the one that saved them.
        """
        about = read_about(folder)
        module = accelerator.unwrap_model(policy.module)
        load_trainable(module, folder)
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        if uses_zero(accelerator):
            load_whole_state(accelerator, [parameter for _, parameter in trainable(module)], optimizer, state)
        else:
            optimizer.load_state_dict(_sharded(state, optimizer))
        if about["num_processes"] == accelerator.num_processes:
            _set_generators(load_file(folder / "rng.safetensors"), accelerator)
        return Progress(**about["progress"])


def read_about(folder: Path) -> dict[str, Any]:
    """The contents of a checkpoint's progress.json. Raises CheckpointError if `folder` is not a checkpoint."""
    path = folder / "progress.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no progress.json; give a run's {PREFIX}* folder")
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, with their names."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def load_trainable(module: nn.Module, folder: Path) -> None:
    """Set the trained parameters to a checkpoint's values. Raises CheckpointError if names or shapes differ."""
    saved, ours = load_file(folder / "trainable.safetensors"), dict(trainable(module))
    have = {name: list(tensor.shape) for name, tensor in ours.items()}
    given = {name: list(tensor.shape) for name, tensor in saved.items()}
    differ = sorted(name for name in have.keys() | given.keys() if have.get(name) != given.get(name))
    if differ:
        raise CheckpointError(
            f"{folder} was saved from another policy: {len(differ)} parameters differ. The first is {differ[0]}: "
            f"{given.get(differ[0])} for {have.get(differ[0])}; use the same base and LoRA"
        )
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(shard_like(saved[name], parameter))


def _whole_state(accelerator: Accelerator, module: nn.Module, optimizer: Any) -> Any:
    if uses_zero(accelerator):
        return whole_state(accelerator, [parameter for _, parameter in trainable(module)], optimizer)
    return recursively_apply(whole, optimizer.state_dict())


def _sharded(state: Mapping[str, Any], optimizer: Any) -> dict[str, Any]:
    """A whole optimizer state, sharded as its parameters are. Step counts are scalars, which each process keeps."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        at: {name: shard_like(value, parameters[at]) if value.ndim else value for name, value in values.items()}
        for at, values in state["state"].items()
    }
    return {**state, "state": moments}


def _generators(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of torch's generators in all processes, [processes, bytes] each."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return {name: gathered(accelerator, state[None]) for name, state in states.items()}


def _set_generators(states: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    # Clone: torch 2.14 misreads a state that is a view, because it ignores where the row starts in its storage.
    own = {name: rows[accelerator.process_index].clone() for name, rows in states.items()}
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], accelerator.device)


def _gone(folder: Path) -> Path:
    """The name of a checkpoint that is being removed."""
    return folder.with_name(f".{folder.name}.removed")


def link_folder(source: Path, target: Path) -> None:
    """Copy a folder of files by hard links, or by their contents where the file system has none."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
