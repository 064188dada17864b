"""The parts of a run, made from its configuration: policy, data, rewards, optimizer, Accelerate, logs, checkpoints."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration

from trainer.board import Board
from trainer.checkpoint import Checkpoints, Progress, trainable
from trainer.config import Config, to_yaml
from trainer.data import Clips, find_sources
from trainer.errors import ConfigError
from trainer.policies.base import PolicyConfig
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Policy
from trainer.policies.tiny import tiny_svd, tiny_wan
from trainer.reward_client import NoRewards, RemoteRewards, RewardSource
from trainer.seeds import derived_seed
from trainer.train import Run, from_main, train
from trainer.video import ClipForm

log = logging.getLogger(__name__)

TINY: dict[str, Callable[[Path], Path]] = {"tiny-svd": tiny_svd, "tiny-wan": tiny_wan}


def run_training(config: Config) -> Progress:
    """`python -m trainer train`."""
    with open_run(config) as run:
        return train(run)


@contextmanager
def open_run(config: Config, *, rewards: RewardSource | None = None, policy: Policy | None = None) -> Iterator[Run]:
    """Everything that `train` needs, closed afterwards; rewards or a policy of one's own may be given."""
    accelerator = open_accelerator(config)
    config.steps_per_pass(accelerator.num_processes)
    torch.manual_seed(derived_seed(config.seed, "process", accelerator.process_index))  # for whoever draws from it
    run_id = _run_id(config, accelerator)
    policy = policy or open_policy(config, accelerator)
    clips = Clips(
        find_sources(config.data.train, "train", config.data.caption),
        form_of(policy),
        seed=config.seed,
        start=config.data.start,
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
    """On `config.device`; how many processes there are, `accelerate launch` says. Raises ConfigError for sharding."""
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        log_with=["tensorboard", *(["wandb"] if config.logs.wandb else [])],
        project_config=ProjectConfiguration(project_dir=str(config.out), logging_dir=str(config.out / "logs")),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ConfigError(
            f"accelerate is configured for {accelerator.distributed_type.value}, but checkpoints hold whole parameters "
            "and one optimizer state; choose data-parallel training (MULTI_GPU): a LoRA's share of memory is small"
        )
    return accelerator


def open_policy(config: Config, accelerator: Accelerator) -> Policy:
    """The configured base; a toy one is written into the run's folder first."""
    with accelerator.main_process_first():
        based = with_base(config.policy, config.out)
    return make_policy(based, accelerator.device)


def with_base(policy: PolicyConfig, folder: Path) -> PolicyConfig:
    """`base: tiny-svd` or `tiny-wan` made into a folder below `folder`; any other base as it is."""
    if policy.base not in TINY:
        return policy
    base = folder / policy.base
    if not (base / "model_index.json").is_file():
        log.info("writing the toy base %s", base)
        TINY[policy.base](base)
    return replace(policy, base=str(base))


def open_rewards(config: Config, accelerator: Accelerator, run_id: str) -> RewardSource:
    """The configured server; none is needed where no rollout is weighed by its reward. Raises ConfigError."""
    unweighted = config.loop.num_rollouts == 0 or config.objective.weighting == "uniform"
    if unweighted and not config.rewards.server:
        return NoRewards()
    if not config.rewards.server:
        raise ConfigError("rewards.server is empty; give the reward server's grpc://HOST:PORT")
    if config.loop.num_rollouts == 0:
        return NoRewards()
    rank = accelerator.process_index
    return RemoteRewards(config.rewards, config.refresh, run_id=run_id, folder=config.out / "rewards", rank=rank)


def form_of(policy: Policy) -> ClipForm:
    return ClipForm(num_frames=policy.num_frames, fps=policy.fps, height_px=policy.height_px, width_px=policy.width_px)


def _run_id(config: Config, accelerator: Accelerator) -> str:
    """The run's name on the server, made once and kept in its folder with the configuration."""
    return from_main(accelerator, (lambda: _kept_run_id(config)) if accelerator.is_main_process else None)


def _kept_run_id(config: Config) -> str:
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.yaml").write_text(to_yaml(config))
    path = config.out / "run.json"
    if path.exists():
        return str(json.loads(path.read_text())["run_id"])
    run_id = config.run_id or f"{config.out.name}-{uuid.uuid4().hex[:8]}"
    path.write_text(json.dumps({"run_id": run_id}))
    return run_id
