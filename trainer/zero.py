"""Supports DeepSpeed's ZeRO stages 1 and 2: configures it, and converts optimizer state between shards and whole.

ZeRO lays out the trained parameters in one flat vector, of which the parameters are views. Each process holds an equal
part of the vector and AdamW's moments of that part. A parameter therefore has the same place in the moments as in the
vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, is_deepspeed_available
from torch import Tensor

from trainer.config import Config
from trainer.errors import ConfigError

STAGES = (1, 2)


def zero_plugin(config: Config) -> DeepSpeedPlugin:
    """The DeepSpeed plugin that Accelerate is configured for, with the run's batch size and gradient clipping.

    Raises ConfigError if DeepSpeed is not installed, or its configuration asks for what this trainer does not support.
    """
    if not is_deepspeed_available():
        raise ConfigError("accelerate is configured for DeepSpeed, which is not installed; pip install deepspeed")
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    if plugin.zero_stage not in STAGES:
        raise ConfigError(
            f"accelerate is configured for DeepSpeed's ZeRO stage {plugin.zero_stage}; this trainer supports stages 1 "
            "and 2. If the denoiser does not fit on a GPU, use FSDP (accelerate launch --use_fsdp --fsdp_version 2)"
        )
    if unwanted := {"optimizer", "scheduler", "fp16", "bf16"} & settings.keys():
        raise ConfigError(
            f"DeepSpeed's configuration file sets {', '.join(sorted(unwanted))}, which belongs to the run's own "
            "configuration (optimizer.*, policy.precision); remove it from the file"
        )
    if plugin.offload_optimizer_device not in (None, "none"):
        raise ConfigError(
            f"DeepSpeed is configured to offload the optimizer to {plugin.offload_optimizer_device}, which "
            "checkpoints here do not support; set offload_optimizer_device to none (a LoRA's moments take some MiB)"
        )
    settings["train_micro_batch_size_per_gpu"] = config.loop.batch_clips
    settings["gradient_accumulation_steps"] = 1  # step.py accumulates the chunks of a step itself
    settings["gradient_clipping"] = config.optimizer.max_grad_norm
    return plugin


def uses_zero(accelerator: Accelerator) -> bool:
    """Whether the run uses DeepSpeed."""
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def whole_state(accelerator: Accelerator, trained: Sequence[Tensor], optimizer: Any) -> dict[str, Any]:
    """The optimizer state that a single process training `trained` with the same AdamW would have.

    All processes must call it, because it gathers the shards.
    """
    adamw = optimizer.optimizer.optimizer
    (shard,) = adamw.param_groups[0]["params"]
    vectors = {
        name: accelerator.gather(value.to(accelerator.device)) if value.ndim else value
        for name, value in adamw.state[shard].items()
    }
    moments = {at: {name: _piece(v, parameter) for name, v in vectors.items()} for at, parameter in enumerate(trained)}
    group = {name: value for name, value in adamw.param_groups[0].items() if name != "params"}
    return {"state": moments if vectors else {}, "param_groups": [{**group, "params": list(range(len(trained)))}]}


def load_whole_state(
    accelerator: Accelerator, trained: Sequence[Tensor], optimizer: Any, state: Mapping[str, Any]
) -> None:
    """Load this process's part of a whole state, as `whole_state` makes it.

    Also copies the trained parameters again into the float32 vector that ZeRO keeps of them.
    """
    zero = optimizer.optimizer
    (shard,) = zero.optimizer.param_groups[0]["params"]
    zero.refresh_fp32_params()
    zero.optimizer.param_groups[0].update({k: v for k, v in state["param_groups"][0].items() if k != "params"})
    vectors: dict[str, Tensor] = {}
    for at, parameter in enumerate(trained):
        for name, value in state["state"].get(at, {}).items():
            if not value.ndim:
                vectors[name] = value.clone()
                continue
            vector = vectors.setdefault(name, value.new_zeros(len(shard) * accelerator.num_processes))
            _piece(vector, parameter).copy_(value)
    part = slice(accelerator.process_index * len(shard), (accelerator.process_index + 1) * len(shard))
    zero.optimizer.state[shard] = {n: v[part].to(shard, copy=True) if v.ndim else v for n, v in vectors.items()}


def _piece(vector: Tensor, parameter: Tensor) -> Tensor:
    """The view of a vector in ZeRO's layout that belongs to a parameter. Scalars belong to every parameter."""
    if not vector.ndim:
        return vector
    start = parameter.storage_offset()
    return vector[start : start + parameter.numel()].view(parameter.shape)
