"""Trains a policy with Algorithm 1 of SHIFT.

    buffer of real clips -> P rollouts each -> submitted, scored while the next are sampled -> rewards -> advantages
    -> K passes of the hybrid loss -> refresh of the discriminators -> checkpoint -> next buffer

Every random draw is a function of the seed and its purpose (seeds.py), so a run that is killed and resumed takes the
same steps. With several processes (Accelerate), each holds its share of a buffer; a step takes B groups per process.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from protos.error_codes import ErrorCode
from protos.types import DISCRIMINATORS, DYNAMICS
from trainer.checkpoint import Progress, read_about
from trainer.config import Config, differences, to_dict
from trainer.errors import CheckpointError, MissingRewards, VersionLost
from trainer.measures.dynamics_floor import dynamics_table, floored
from trainer.objective import Advantages, advantages, num_weighted, reward_table
from trainer.processes import from_main, gathered, true_in_all
from trainer.rollout import Buffer
from trainer.run import Run, open_run
from trainer.seeds import derived_seed, generator
from trainer.step import every, train_step

log = logging.getLogger(__name__)

# Keys that a resumed run may change: where and how it runs, and what may have to change to get past a failure.
MAY_CHANGE = (
    "out",
    "run_id",
    "device",
    "threads",
    "loop.num_buffers",
    "policy.group_size",
    "policy.gradient_checkpointing",
    "policy.decode_chunk",
    "rewards.server",
    "rewards.redis_url",
    "rewards.on_missing",
    "rewards.max_",
    "rewards.patience_s",
    "refresh.",
    "checkpoint.",
    "logs.",
    "evaluate.",
    "data.held_out",
)


def run_training(config: Config) -> Progress:
    """Open the run and train it: the command `python -m trainer train`."""
    with open_run(config) as run:
        return train(run)


def train(run: Run) -> Progress:
    """Train to the last buffer. Continues from the latest checkpoint in the run's folder, if there is one."""
    loop = run.config.loop
    progress = resume(run)
    steps = loop.passes * run.config.steps_per_pass(run.accelerator.num_processes)
    run.board.start(progress, loop.num_buffers * steps)
    buffer = new_buffer(run, progress.buffer, progress.buffer_version)
    while progress.buffer < loop.num_buffers:
        buffer.fill(policy_step=progress.step)  # 1 real clips, 2 rollouts; each is submitted as soon as it is ready
        gained = buffer_advantages(run, buffer, progress)  # 3 rewards, 4 advantages
        following = new_buffer(run, progress.buffer + 1, progress.version)
        sample_ahead(
            run, following, progress, progress.position - 1
        )  # after a resume: what was begun keeps its version
        for rows in batches(run, buffer, progress.position):  # 5 K passes
            sample_ahead(run, following, progress, progress.position)
            train_step(run, [buffer.groups[row] for row in rows], gained.real[rows], gained.rollouts[rows], progress)
            progress = replace(progress, step=progress.step + 1, position=progress.position + 1)
            if every(run.config.checkpoint.every_steps, progress.step):
                save(run, progress)
        version = refresh(run, buffer, progress)  # 6
        progress = replace(
            progress, buffer=following.number, position=0, buffer_version=following.version, version=version
        )
        if not following.groups:  # nothing of it was submitted yet, so the new discriminators can score it
            progress = replace(progress, buffer_version=version)
            following = new_buffer(run, following.number, version)
        save(run, progress)
        buffer.delete()
        buffer = following  # 7
    return progress


def resume(run: Run) -> Progress:
    """Load the latest checkpoint, or start with the discriminators that the server uses now.

    Raises CheckpointError if the checkpoint has another configuration, or another number of processes mid-buffer.
    """
    if run.accelerator.is_main_process:
        run.checkpoints.mend()
    run.accelerator.wait_for_everyone()
    latest = run.checkpoints.latest()
    if latest is None:
        version = from_main(run.accelerator, run.rewards.pin if run.accelerator.is_main_process else None)
        return Progress(version=version, buffer_version=version)
    about = read_about(latest)
    if changed := differences(run.config, about["config"], ignore=MAY_CHANGE):
        raise CheckpointError(
            f"{latest} was trained with other settings ({'; '.join(changed)}); undo that, or give another out"
        )
    before, now = about["num_processes"], run.accelerator.num_processes
    if before != now and about["progress"]["position"]:
        raise CheckpointError(
            f"{latest} is in the middle of a buffer shared by {before} processes, but this run has {now}; start "
            f"{before} processes, or remove the checkpoints after {run.checkpoints.begun() or 'the start'}, where the "
            "buffer began"
        )
    log.info("resuming from %s", latest)
    return run.checkpoints.load(latest, policy=run.policy, optimizer=run.optimizer, accelerator=run.accelerator)


def save(run: Run, progress: Progress) -> None:
    """Write a checkpoint. Call it in every process."""
    run.checkpoints.save(
        progress,
        policy=run.policy,
        optimizer=run.optimizer,
        accelerator=run.accelerator,
        config=to_dict(run.config),
    )


# --- a buffer -----------------------------------------------------------------------------------


def new_buffer(run: Run, number: int, version: str) -> Buffer:
    """This process's share of a buffer: every `num_processes`-th of its consecutive slots."""
    config, rank, num_processes = run.config, run.accelerator.process_index, run.accelerator.num_processes
    first = number * config.loop.buffer_clips
    return Buffer(
        number=number,
        slots=range(first + rank, first + config.loop.buffer_clips, num_processes),
        version=version,
        folder=config.out / "buffers",
        policy=run.policy,
        clips=run.clips,
        rewards=run.rewards,
        num_rollouts=config.loop.num_rollouts,
        seed=config.seed,
        decode_real=config.rewards.real_as == "decoded",
        # A sharded denoiser needs all processes to call it. What one process lost in a kill, all sample again.
        agreed=partial(true_in_all, run.accelerator) if run.accelerator.is_fsdp2 else bool,
    )


def buffer_advantages(run: Run, buffer: Buffer, progress: Progress) -> Advantages:
    """Advantages of this process's groups. Comparisons within the batch use the whole buffer of all processes.

    Raises VersionLost if the server lost the buffer's discriminators, MissingRewards if no rollout has a reward.
    """
    started = time.monotonic()
    collected = buffer.rewards()
    waited_s = time.monotonic() - started
    if ErrorCode.VERSION_NOT_SERVED in collected.errors:
        # Masking these clips would train on the rest of the buffer without its rewards.
        buffer.forget_missing()
        raise VersionLost(
            f"the server no longer has discriminator version '{progress.buffer_version}', which buffer {buffer.number} "
            "needs; restore the server's Redis and start the run again, or start a new run from this one's LoRA "
            "(policy.sft_lora)"
        )
    objective, rank, num = run.config.objective, run.accelerator.process_index, len(buffer)
    tables: dict[str | None, Tensor] = {
        discriminator: gathered(
            run.accelerator, reward_table(collected.groups, centre=objective.centre, discriminator=discriminator)
        )
        for discriminator in (None, *DISCRIMINATORS)
    }
    found = {discriminator: advantages(table, objective) for discriminator, table in tables.items()}
    whole = found[None]
    if run.config.loop.num_rollouts and num_weighted(whole.rollouts, objective) == 0:
        buffer.forget_missing()
        raise MissingRewards(
            f"no rollout of buffer {buffer.number} has a reward ({collected.errors}). Training without rewards would "
            "be plain fine-tuning: fix the cause and start the run again to request them again, or set "
            "loop.num_rollouts=0"
        )
    motion = gathered(run.accelerator, dynamics_table(collected.groups))
    floor = None
    if run.config.rewards.min_dynamics:
        floor = floored(whole, motion[..., DYNAMICS.index("total_motion")], run.config.rewards.min_dynamics)
        found[None] = whole = floor.advantages
    if progress.position == 0:
        lags = [progress.step - group.policy_step for group in buffer.groups]
        run.board.buffer(progress, buffer, collected, waited_s=waited_s, lags=lags)
        run.board.rewards(progress.step, tables, found)
        run.board.dynamics(progress.step, motion, floor)
    mine = slice(rank * num, (rank + 1) * num)
    return replace(whole, real=whole.real[mine], rollouts=whole.rollouts[mine])


def batches(run: Run, buffer: Buffer, position: int) -> Iterator[list[int]]:
    """Rows of this process's groups for each step of the K passes, from step `position` on.

    The first pass follows the order of the data, which is already random. Each later pass is shuffled anew.
    """
    size, passes = run.config.loop.batch_clips, run.config.loop.passes
    per_pass = len(buffer) // size
    for step in range(position, passes * per_pass):
        number, at = divmod(step, per_pass)
        rows = list(range(len(buffer)))
        if number:
            shuffle = generator(run.config.seed, "shuffle", buffer.number, number, run.accelerator.process_index)
            rows = torch.randperm(len(buffer), generator=shuffle).tolist()
        yield rows[at * size : (at + 1) * size]


def sample_ahead(run: Run, following: Buffer, progress: Progress, position: int) -> None:
    """Sample the part of the next buffer that is due before step `position` of this one."""
    if following.number < run.config.loop.num_buffers:
        following.fill(due(run, len(following), position), policy_step=progress.step)


def due(run: Run, num_groups: int, position: int) -> int:
    """Number of the next buffer's groups that must be sampled before step `position` of this one.

    Sampling starts at most max_lag steps before the next buffer begins. `num_groups` is this process's share of it.
    """
    loop = run.config.loop
    num_steps = loop.passes * (num_groups // loop.batch_clips)
    window = min(loop.max_lag, num_steps)
    begun = window - (num_steps - position) + 1
    return math.ceil(num_groups * begun / window) if window and begun > 0 else 0


def refresh(run: Run, buffer: Buffer, progress: Progress) -> str:
    """Refresh the discriminators and return the version that scores from now on.

    They train as many steps as the policy did on this buffer, times the D:G ratio. The last buffer is followed by a
    refresh too: more buffers may follow, or an evaluation with the run's last version.
    """
    config = run.config.refresh
    steps = round(config.steps_per_step * progress.position)
    if not config.enabled or steps == 0 or run.config.loop.num_rollouts == 0:
        return progress.version
    if config.recompute:
        buffer.see_again()
    seed = derived_seed(run.config.seed, "refresh", progress.buffer)
    key = f"{run.board.run_id}/refresh/{progress.buffer}"
    run.accelerator.wait_for_everyone()  # until all clips of the buffer are on the server
    order = partial(run.rewards.refresh, steps, seed=seed, key=key)
    return from_main(run.accelerator, order if run.accelerator.is_main_process else None)
