"""Trains a policy with Algorithm 1 of SHIFT.

    buffer of real clips -> P rollouts each -> submitted, scored while the next are sampled -> rewards -> advantages
    -> K passes of the hybrid loss -> refresh of the discriminators -> checkpoint -> next buffer

Every random draw is a function of the seed and its purpose (seeds.py), so a run that is killed and resumed takes the
same steps. With several processes (Accelerate), each holds its share of a buffer; a step takes B groups per process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from trainer.checkpoint import VERSIONS, Progress, read_about
from trainer.config import Config, differences, to_dict
from trainer.errors import CheckpointError, ClipsLost, DataError, GateFailed
from trainer.objective import Advantages
from trainer.processes import from_main, true_in_all
from trainer.report.page import NAME, write_report
from trainer.rollout import Buffer
from trainer.run import Run, open_run
from trainer.scoring import buffer_advantages
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
    "rewards.ca",
    "rewards.cert",
    "rewards.redis_url",
    "rewards.on_missing",
    "rewards.max_",
    "rewards.patience_s",
    "refresh.",
    "signal.",
    "checkpoint.",
    "logs.",
    "evaluate.",
    "data.held_out",
)


def run_training(config: Config) -> Progress:
    """Open the run and train it: the command `python -m trainer train`."""
    with open_run(config) as run:
        progress = train(run)
        main = run.accelerator.is_main_process
    if main and config.logs.report:
        tell(config)
    return progress


def tell(config: Config) -> None:
    """Write the run's report. A run that ended well does not fail if it cannot be written."""
    try:
        write_report(config.out)
    except (OSError, DataError) as error:
        log.warning("%s is not written: %s", NAME, error)


def train(run: Run) -> Progress:
    """Train to the last buffer. Continues from the latest checkpoint in the run's folder, if there is one."""
    loop = run.config.loop
    progress = resume(run)
    steps = loop.passes * run.config.steps_per_pass(run.accelerator.num_processes)
    run.board.start(progress, loop.num_buffers * steps)
    buffer = new_buffer(run, progress.buffer, progress.buffer_version, rescored=progress.rescored)
    while progress.buffer < loop.num_buffers:
        buffer.fill(policy_step=progress.step)  # 1 real clips, 2 rollouts; each is submitted as soon as it is ready
        buffer, progress, gained = scored(run, buffer, progress)  # 3 rewards, 4 advantages
        following = new_buffer(run, progress.buffer + 1, progress.version)
        sample_ahead(
            run, following, progress, progress.position - 1
        )  # after a resume: what was begun keeps its version
        for rows in batches(run, buffer, progress.position):  # 5 K passes
            sample_ahead(run, following, progress, progress.position)
            groups = [buffer.groups[row] for row in rows]
            progress = train_step(run, groups, gained.real[rows], gained.rollouts[rows], progress)
            run.rewards.sign_of_life()
            if every(run.config.checkpoint.every_steps, progress.step):
                save(run, progress)
        run.board.passes(buffer.number)
        version = refresh(run, buffer, progress, num_steps=progress.position)  # 6
        progress = replace(
            progress,
            buffer=following.number,
            position=0,
            buffer_version=following.version,
            version=version,
            rescored=False,
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
    if run.accelerator.is_main_process:
        run.rewards.adopt(latest / VERSIONS)
    run.accelerator.wait_for_everyone()
    return run.checkpoints.load(latest, policy=run.policy, optimizer=run.optimizer, accelerator=run.accelerator)


def save(run: Run, progress: Progress) -> None:
    """Write a checkpoint. Call it in every process."""
    main = run.accelerator.is_main_process
    run.checkpoints.save(
        progress,
        policy=run.policy,
        optimizer=run.optimizer,
        accelerator=run.accelerator,
        config=to_dict(run.config),
        versions=run.rewards.own_versions({progress.version, progress.buffer_version}) if main else (),
    )


# --- a buffer -----------------------------------------------------------------------------------


def new_buffer(run: Run, number: int, version: str, *, rescored: bool = False) -> Buffer:
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
        num_twice=math.ceil(config.signal.noise_share * config.loop.buffer_clips / num_processes),
        rescored=rescored,
        recompute=config.refresh.enabled and config.refresh.recompute,
        # A sharded denoiser needs all processes to call it. What one process lost in a kill, all sample again.
        agreed=partial(true_in_all, run.accelerator) if run.accelerator.is_fsdp2 else bool,
    )


def scored(run: Run, buffer: Buffer, progress: Progress) -> tuple[Buffer, Progress, Advantages]:
    """The buffer with its advantages. If its rewards are weak, they come from refreshed discriminators if so set."""
    gained = buffer_advantages(run, buffer, progress)
    if gained.weak and run.config.signal.on_weak == "refresh" and not progress.rescored:
        steps = run.config.loop.passes * run.config.steps_per_pass(run.accelerator.num_processes)
        version = refresh(run, buffer, progress, num_steps=steps, name="early")
        if version != progress.version:
            progress = replace(progress, buffer_version=version, version=version, rescored=True)
            buffer = new_buffer(run, buffer.number, version, rescored=True)
            buffer.fill(policy_step=progress.step)
            save(run, progress)  # a resumed run must not go back to the earlier version
            gained = buffer_advantages(run, buffer, progress)
    return buffer, progress, gained.advantages


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


def refresh(run: Run, buffer: Buffer, progress: Progress, *, num_steps: int, name: str = "") -> str:
    """Refresh the discriminators and return the version that scores from now on.

    They train `num_steps`, the policy's steps on this buffer, times the D:G ratio. The last buffer is followed by a
    refresh too: more buffers may follow, or an evaluation with the run's last version. `name` tells several refreshes
    of one buffer apart.
    """
    config, parts = run.config.refresh, (progress.buffer, *([name] if name else []))
    steps = round(config.steps_per_step * num_steps)
    if not config.enabled or steps == 0 or run.config.loop.num_rollouts == 0:
        return progress.version
    if config.recompute:
        buffer.see_again()
    seed = derived_seed(run.config.seed, "refresh", *parts)
    key = f"{run.board.run_id}/refresh/{'-'.join(map(str, parts))}"
    order = partial(ordered, run, progress.version, steps, seed=seed, key=key)
    version = _in_main(run, order)
    if not version:  # Redis was emptied, or the clips have expired
        buffer.see_again("lost")
        version = _in_main(run, partial(order, insist=True))
    return version


def _in_main(run: Run, order: Callable[[], str]) -> str:
    """What the main process gets, once all clips of the buffer are on the server."""
    run.accelerator.wait_for_everyone()
    return from_main(run.accelerator, order if run.accelerator.is_main_process else None)


def ordered(run: Run, version: str, steps: int, *, seed: int, key: str, insist: bool = False) -> str:
    """The refreshed version: the same as before if the gate refused the new one, "" if the server lost the clips.

    `insist` raises ClipsLost instead. Raises GateFailed with `refresh.on_gate=stop`.
    """
    run.rewards.restore(version)
    try:
        return run.rewards.refresh(steps, seed=seed, key=key)
    except ClipsLost as error:
        if insist:
            raise
        log.warning("%s. The whole buffer is measured again for its refresh", error)
        return ""
    except GateFailed as error:
        if run.config.refresh.on_gate == "stop":
            raise
        log.warning("THE REFRESH WAS REFUSED, and %s scores on: %s", version, error)
        return version
