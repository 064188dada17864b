"""DeepSpeed's ZeRO, stages 1 and 2: how it is configured, and whole optimizer states out of its shards and back.

ZeRO lays what is trained into one long vector, of which parameters are views, and gives every process an even part
of it with AdamW's moments. So a parameter's place in the vector is its place in the moments too.
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
    """The DeepSpeed that Accelerate is configured for, with the run's batch and clipping. Raises ConfigError."""
    if not is_deepspeed_available():
        raise ConfigError("accelerate is configured for DeepSpeed, which is not installed; pip install deepspeed")
    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config
    if plugin.zero_stage not in STAGES:
        raise ConfigError(
            f"accelerate is configured for DeepSpeed's ZeRO stage {plugin.zero_stage}; this trainer takes stages 1 and "
            "2. Where the denoiser does not fit a GPU, take FSDP (accelerate launch --use_fsdp --fsdp_version 2)"
        )
    if unwanted := {"optimizer", "scheduler", "fp16", "bf16"} & settings.keys():
        raise ConfigError(
            f"DeepSpeed's file has {', '.join(sorted(unwanted))}, which the run's own configuration decides "
            "(optimizer.*, policy.precision); take it out"
        )
    if plugin.offload_optimizer_device not in (None, "none"):
        raise ConfigError(
            f"DeepSpeed is to keep the optimizer on {plugin.offload_optimizer_device}, which checkpoints here do not "
            "know; set offload_optimizer_device to none (a LoRA's moments take some MiB)"
        )
    settings["train_micro_batch_size_per_gpu"] = config.loop.batch_clips
    settings["gradient_accumulation_steps"] = 1  # a step's chunks are accumulated here (step.py)
    settings["gradient_clipping"] = config.optimizer.max_grad_norm
    return plugin


def uses_zero(accelerator: Accelerator) -> bool:
    return bool(accelerator.distributed_type == DistributedType.DEEPSPEED)


def whole_state(accelerator: Accelerator, trained: Sequence[Tensor], optimizer: Any) -> dict[str, Any]:
    """The state that one process with the same AdamW of `trained` would have: every process must ask."""
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
    """This process's part of a whole state; the shard's own copy of what is trained is made anew too."""
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
    """The part of a vector, laid out as ZeRO's, that is a parameter's; scalars are everyone's."""
    if not vector.ndim:
        return vector
    start = parameter.storage_offset()
    return vector[start : start + parameter.numel()].view(parameter.shape)
