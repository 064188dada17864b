"""Builds the parts of a run from its configuration.

The parts are the policy, data, rewards, optimizer, Accelerate, logs and checkpoints.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    is_wandb_available,
)

from protos.types import REFRESH_STEP_S, REFRESH_TIMEOUT_S
from trainer.board import Board
from trainer.checkpoint import Checkpoints, trainable
from trainer.config import Config, to_yaml
from trainer.data import Clips, find_sources
from trainer.errors import ConfigError
from trainer.policies.base import PolicyConfig
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Policy
from trainer.policies.shipped import toy_svd
from trainer.policies.tiny import tiny_svd, tiny_wan
from trainer.processes import from_main
from trainer.rewards.remote import RemoteRewards
from trainer.rewards.source import NoRewards, RewardSource
from trainer.seeds import derived_seed
from trainer.video import ClipForm
from trainer.zero import uses_zero, zero_plugin

log = logging.getLogger(__name__)

TINY: dict[str, Callable[[Path], Path]] = {"tiny-svd": tiny_svd, "tiny-wan": tiny_wan}
TOY = "toy-svd"  # trained, and in the package; those of TINY have random weights


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run, as made by `open_run`. `accelerator` has prepared `policy.module` and `optimizer`."""

    config: Config
    policy: Policy
    clips: Clips
    rewards: RewardSource
    accelerator: Accelerator
    optimizer: Any
    board: Board
    checkpoints: Checkpoints


@contextmanager
def open_run(config: Config, *, rewards: RewardSource | None = None, policy: Policy | None = None) -> Iterator[Run]:
    """Open everything that `train` needs, and close it afterwards. `rewards` and `policy` replace the configured ones.

    Raises ConfigError, DataError or PolicyError if the configuration, the data or the base cannot be used.
    """
    accelerator = open_accelerator(config)
    config.steps_per_pass(accelerator.num_processes)
    # The trainer draws from generators of its own (seeds.py). This is for code that uses the global one.
    torch.manual_seed(derived_seed(config.seed, "process", accelerator.process_index))
    run_id = from_main(accelerator, partial(_kept_run_id, config) if accelerator.is_main_process else None)
    policy = policy or open_policy(config, accelerator)
    clips = Clips(
        find_sources(config.data.train, "train", config.data.caption, config.data.fps),
        form_of(policy),
        seed=config.seed,
        data=config.data,
    )
    rewards = rewards or open_rewards(config, accelerator, run_id)
    optimizer = torch.optim.AdamW(
        [parameter for _, parameter in trainable(policy.module)],
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    policy.module, optimizer = accelerator.prepare(policy.module, optimizer)
    board = Board(config, policy, accelerator, run_id, clips.bad)
    try:
        yield Run(
            config=config,
            policy=policy,
            clips=clips,
            rewards=rewards,
            accelerator=accelerator,
            optimizer=optimizer,
            board=board,
            checkpoints=Checkpoints(config.out / "checkpoints", keep=config.checkpoint.keep),
        )
    finally:
        rewards.close()
        board.close()


def open_accelerator(config: Config) -> Accelerator:
    """Accelerate with `config.threads`, on the CPU if `config.device` says so.

    Otherwise `accelerate launch` chooses the devices and the number of processes. Raises ConfigError if Accelerate is
    configured for something that this trainer does not support, or if Weights & Biases is enabled but not installed.
    """
    if config.logs.wandb and not is_wandb_available():
        raise ConfigError("logs.wandb is on, but wandb is not installed; pip install wandb, or set logs.wandb=false")
    if (mixed := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        raise ConfigError(
            f"accelerate is configured for mixed precision {mixed}: losses and rollouts would be computed in it, and "
            "checkpoints do not save its loss scale; set it to no (policy.precision is for the frozen denoiser)"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    fsdp = _fsdp() if _engine("FSDP") else None
    zero = zero_plugin(config) if _engine("DEEPSPEED") else None
    # While one process waits for the reward server, the others wait for that process.
    steps = config.loop.passes * config.loop.buffer_clips * config.refresh.steps_per_step  # at most
    refresh_s = config.refresh.timeout_s or REFRESH_TIMEOUT_S + steps * REFRESH_STEP_S
    longest_wait_s = config.rewards.max_outage_s + refresh_s
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        fsdp_plugin=fsdp,
        deepspeed_plugin=zero,
        log_with=["tensorboard", *(["wandb"] if config.logs.wandb else [])],
        project_config=ProjectConfiguration(project_dir=str(config.out), logging_dir=str(config.out / "logs")),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=600 + longest_wait_s)),
        ],
    )
    if zero and config.objective.aw_dose:
        raise ConfigError(
            f"objective.aw_dose is {config.objective.aw_dose:g}, but DeepSpeed does not give the whole gradients that "
            "it is measured on; use FSDP, or set objective.lambda_aw instead"
        )
    if (fsdp and not accelerator.is_fsdp2) or (zero and not uses_zero(accelerator)):
        raise ConfigError(
            f"accelerate is configured for {'FSDP' if fsdp else 'DeepSpeed'}, but does not shard with distributed type "
            f"{accelerator.distributed_type.value}; start processes on GPUs with accelerate launch, or turn it off"
        )
    return accelerator


def _fsdp() -> FullyShardedDataParallelPlugin:
    """The FSDP plugin that Accelerate is configured for. Raises ConfigError for FSDP version 1."""
    if os.environ.get("FSDP_VERSION") != "2":
        raise ConfigError(
            "accelerate is configured for FSDP version 1, which cannot train a LoRA on frozen layers of another dtype; "
            "set FSDP_VERSION=2 (accelerate launch --fsdp_version 2)"
        )
    # policy.gradient_checkpointing already recomputes activations. cpu_ram_efficient_loading, the default of
    # `accelerate launch`, loads empty weights in all processes but the first. Only the denoiser is sharded and thereby
    # filled, so the encoders of these processes would stay empty.
    return FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False, activation_checkpointing=False)


def _engine(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"


def open_policy(config: Config, accelerator: Accelerator) -> Policy:
    """The policy on its configured base. A toy base with random weights is written into the run's folder first."""
    with accelerator.main_process_first():
        based = with_base(config.policy, config.out)
    return make_policy(based, accelerator.device)


def with_base(policy: PolicyConfig, folder: Path) -> PolicyConfig:
    """`policy` with the folder of its toy base: toy-svd of the package, tiny-svd and tiny-wan written below `folder`.

    Any other base is left as it is.
    """
    if policy.base == TOY:
        return replace(policy, base=str(toy_svd()))
    if policy.base not in TINY:
        return policy
    base = folder / policy.base
    if not (base / "model_index.json").is_file():
        log.info("writing the toy base %s", base)
        TINY[policy.base](base)
    return replace(policy, base=str(base))


def open_rewards(config: Config, accelerator: Accelerator, run_id: str) -> RewardSource:
    """The configured reward server, or `NoRewards` if no rollout is weighted by its reward.

    Raises ConfigError if rewards.server is empty although the run needs a server.
    """
    unweighted = config.loop.num_rollouts == 0 or config.objective.weighting == "uniform"
    if unweighted and not config.rewards.server:
        if config.refresh.enabled and config.loop.num_rollouts:
            raise ConfigError(
                "refresh.enabled is true, but rewards.server is empty, so there are no discriminators to refresh; set "
                "refresh.enabled=false, or set rewards.server to the reward server's grpc://HOST:PORT"
            )
        return NoRewards()
    if not config.rewards.server:
        raise ConfigError("rewards.server is empty; set it to the reward server's grpc://HOST:PORT")
    if config.loop.num_rollouts == 0:
        return NoRewards()
    rank = accelerator.process_index
    if rank == 0:
        warn_of_pixels(config)
    return RemoteRewards(config.rewards, config.refresh, run_id=run_id, folder=config.out / "rewards", rank=rank)


def warn_of_pixels(config: Config) -> None:
    """Warn if real clips stay as they were read, while rollouts come out of the policy's VAE."""
    if config.rewards.real_as == "pixels":
        log.warning(
            "rewards.real_as is pixels: real clips are not passed through the policy's VAE, as rollouts are, so "
            "discriminators can tell the two apart by the VAE's traces instead of their motion; set "
            "rewards.real_as=decoded unless this is meant"
        )


def form_of(policy: Policy) -> ClipForm:
    """The length, frame rate and size of the clips that the policy takes."""
    return ClipForm(num_frames=policy.num_frames, fps=policy.fps, height_px=policy.height_px, width_px=policy.width_px)


def _kept_run_id(config: Config) -> str:
    """The run's name on the server, chosen once. It is kept in the run's folder, as is the configuration."""
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.yaml").write_text(to_yaml(config))
    path = config.out / "run.json"
    if path.exists():
        return str(json.loads(path.read_text())["run_id"])
    run_id = config.run_id or f"{config.out.name}-{uuid.uuid4().hex[:8]}"
    path.write_text(json.dumps({"run_id": run_id}))
    return run_id
