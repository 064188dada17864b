"""Checkpoints of a run: a folder per optimizer step, written whole or not at all, the latest few kept.

    step-00000120/progress.json          where in Algorithm 1 the run is; the configuration it has
                  trainable.safetensors  what is trained, by name, exactly
                  optimizer.pt           read with weights_only
                  rng.safetensors        torch's generators of every process
                  lora/                  for people: load_lora_weights, or policies/lora.py's attach

The learning rate, the order of the data and every draw are functions of the step and the seed (config.py, data.py,
seeds.py), so the step is their state. Rollouts of the current buffer have files of their own (rollout.py). What FSDP
or ZeRO keeps in shards is written whole: a checkpoint is the same for DDP, FSDP, DeepSpeed and one process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
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


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: all that a resumed run must know besides weights, optimizer and generators."""

    step: int = 0  # optimizer steps taken
    buffer: int = 0  # number of the current buffer
    position: int = 0  # optimizer steps taken on it
    buffer_version: str = ""  # discriminators that score the current buffer
    version: str = ""  # discriminators that score buffers begun from now on


class Checkpoints:
    """In `folder`: the latest `keep`, and the one that the current buffer began with."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def latest(self) -> Path | None:
        return max(self._folder.glob(f"{PREFIX}*"), default=None)

    def save(
        self,
        progress: Progress,
        *,
        policy: Policy,
        optimizer: Any,
        accelerator: Accelerator,
        config: Mapping[str, Any],
    ) -> None:
        """Call it in every process; the main one writes. Afterwards all go on."""
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
            if hasattr(module, "peft_config"):
                policy.save_lora(partial / "lora", trained)
            about = {"progress": asdict(progress), "num_processes": accelerator.num_processes, "config": config}
            (partial / "progress.json").write_text(json.dumps(about, indent=1))
            self._publish(partial, self._folder / f"{PREFIX}{progress.step:08d}")
        accelerator.wait_for_everyone()

    def _publish(self, partial: Path, final: Path) -> None:
        for path in [*partial.rglob("*"), partial]:
            _sync(path)
        if final.exists():  # the same step again: after a refresh, or after a resume
            final.rename(_gone(final))
        partial.rename(final)
        _sync(self._folder)
        for stale in [*self._folder.glob(f".{PREFIX}*.partial"), *self._folder.glob(f".{PREFIX}*.removed")]:
            shutil.rmtree(stale)
        for old in self._stale():
            old.rename(_gone(old))  # out of sight first: a folder that is half removed is no checkpoint
            shutil.rmtree(_gone(old))

    def begun(self) -> Path | None:
        """The latest at a buffer's beginning: from there another number of processes can go on."""
        found = sorted(self._folder.glob(f"{PREFIX}*"), reverse=True)
        return next((path for path in found if read_about(path)["progress"]["position"] == 0), None)

    def _stale(self) -> list[Path]:
        begun = self.begun()
        return [path for path in sorted(self._folder.glob(f"{PREFIX}*"))[: -self._keep] if path != begun]

    def mend(self) -> None:
        """Finish what a kill interrupted between the two renames of a replacement. For the run's main process alone."""
        for gone in self._folder.glob(f".{PREFIX}*.removed"):
            final = gone.with_name(gone.stem.removeprefix("."))
            partial = gone.with_suffix(".partial")
            if partial.exists() and not final.exists():  # whole: the old one goes only once the new one is on disk
                partial.rename(final)

    def load(self, folder: Path, *, policy: Policy, optimizer: Any, accelerator: Accelerator) -> Progress:
        """Set policy, optimizer and generators to a checkpoint's. Raises CheckpointError where they do not fit."""
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
    """Raises CheckpointError."""
    path = folder / "progress.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no progress.json; give one of its run's {PREFIX}*")
    about: dict[str, Any] = json.loads(path.read_text())
    return about


def trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is trained, by name."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def load_trainable(module: nn.Module, folder: Path) -> None:
    """Set what is trained to a checkpoint's values. Raises CheckpointError where names or shapes differ."""
    saved, ours = load_file(folder / "trainable.safetensors"), dict(trainable(module))
    have = {name: list(tensor.shape) for name, tensor in ours.items()}
    given = {name: list(tensor.shape) for name, tensor in saved.items()}
    differ = sorted(name for name in have.keys() | given.keys() if have.get(name) != given.get(name))
    if differ:
        raise CheckpointError(
            f"{folder} is of another policy: {len(differ)} parameters differ, first {differ[0]}: "
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
    """A whole optimizer's state in shards as its parameters are; step counts are scalars, and every process's own."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        at: {name: shard_like(value, parameters[at]) if value.ndim else value for name, value in values.items()}
        for at, values in state["state"].items()
    }
    return {**state, "state": moments}


def _generators(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of torch's own generators, [processes, bytes]."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return {name: gathered(accelerator, state[None]) for name, state in states.items()}


def _set_generators(states: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    # Copies: torch 2.14 reads the state of a row, which begins within its storage, from beyond it.
    own = {name: rows[accelerator.process_index].clone() for name, rows in states.items()}
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], accelerator.device)


def _gone(folder: Path) -> Path:
    """Where a checkpoint is on its way out."""
    return folder.with_name(f".{folder.name}.removed")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
