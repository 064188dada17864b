"""Algorithm 1 of SHIFT, top to bottom.

    buffer of real clips -> P rollouts each -> submitted, scored while the next are sampled -> rewards -> advantages
    -> K passes of the hybrid loss -> refresh of the discriminators -> checkpoint -> next buffer

Everything random is a function of the seed and of what it is for (seeds.py), so a run that was killed and resumed
takes the same steps. Several processes (Accelerate) each hold their share of a buffer; B groups per step and process.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from trainer.board import Board
from trainer.checkpoint import Checkpoints, Progress, read_about, trainable
from trainer.config import Config, differences, to_dict
from trainer.data import Clips
from trainer.errors import CheckpointError, MissingRewards
from trainer.policies.protocol import Draw, Policy, stack
from trainer.reward_client import Collected, RewardSource
from trainer.rollout import Buffer, Group
from trainer.seeds import derived_seed, generator
from trainer.shift import (
    Advantages,
    HybridLoss,
    advantages,
    backward_by_chunk,
    coefficients,
    num_weighted,
    reward_table,
)

log = logging.getLogger(__name__)

HEADS = ("instantaneous", "long_term")
MAY_CHANGE = (
    "out",
    "run_id",
    "device",
    "loop.num_buffers",
    "rewards.",
    "checkpoint.",
    "logs.",
    "evaluate.",
    "data.held_out",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run, made by `run.py`; `policy.module` and `optimizer` are prepared by `accelerator`."""

    config: Config
    policy: Policy
    clips: Clips
    rewards: RewardSource
    accelerator: Accelerator
    optimizer: Any
    board: Board
    checkpoints: Checkpoints


def train(run: Run) -> Progress:
    """Train to the last buffer, from the latest checkpoint in the run's folder if there is one."""
    loop = run.config.loop
    progress = resume(run)
    steps = loop.passes * run.config.steps_per_pass(run.accelerator.num_processes)
    run.board.start(progress, loop.num_buffers * steps)
    buffer = new_buffer(run, progress.buffer, progress.buffer_version)
    while progress.buffer < loop.num_buffers:
        buffer.fill(policy_step=progress.step)  # 1 real clips, 2 rollouts; submitted as they come
        gained = buffer_advantages(run, buffer, progress)  # 3 rewards, 4 advantages
        following = new_buffer(run, progress.buffer + 1, progress.version)
        for rows in batches(run, buffer, progress.position):  # 5 K passes
            if following.number < loop.num_buffers:
                following.fill(due(run, len(buffer), progress.position), policy_step=progress.step)
            train_step(run, [buffer.groups[row] for row in rows], gained.real[rows], gained.rollouts[rows], progress)
            progress = replace(progress, step=progress.step + 1, position=progress.position + 1)
            if every(run.config.checkpoint.every_steps, progress.step):
                save(run, progress)
        version = refresh(run, progress)  # 6
        progress = replace(
            progress, buffer=following.number, position=0, buffer_version=following.version, version=version
        )
        if not following.groups:  # nothing is scored yet: it may have the new discriminators
            progress = replace(progress, buffer_version=version)
            following = new_buffer(run, following.number, version)
        save(run, progress)
        buffer.delete()
        buffer = following  # 7
    return progress


def resume(run: Run) -> Progress:
    """From the latest checkpoint, or from the start with the discriminators that are served now."""
    latest = run.checkpoints.latest()
    if latest is None:
        version = from_main(run.accelerator, run.rewards.pin if run.accelerator.is_main_process else None)
        return Progress(version=version, buffer_version=version)
    if changed := differences(run.config, read_about(latest)["config"], ignore=MAY_CHANGE):
        raise CheckpointError(f"{latest} was trained otherwise ({'; '.join(changed)}); undo that, or give another out")
    log.info("resuming from %s", latest)
    return run.checkpoints.load(latest, policy=run.policy, optimizer=run.optimizer, accelerator=run.accelerator)


def save(run: Run, progress: Progress) -> None:
    run.checkpoints.save(
        progress,
        policy=run.policy,
        optimizer=run.optimizer,
        accelerator=run.accelerator,
        config=to_dict(run.config),
    )


# --- a buffer -----------------------------------------------------------------------------------


def new_buffer(run: Run, number: int, version: str) -> Buffer:
    """This process's share: of consecutive slots every `num_processes`-th."""
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
    )


def buffer_advantages(run: Run, buffer: Buffer, progress: Progress) -> Advantages:
    """Advantages of this process's groups; where the batch is compared, it is the whole buffer of all processes."""
    started = time.monotonic()
    collected = buffer.rewards()
    waited_s = time.monotonic() - started
    objective, rank, num = run.config.objective, run.accelerator.process_index, len(buffer)
    tables = {head: _gathered(run, collected, head) for head in (None, *HEADS)}
    found = {head: advantages(table, objective) for head, table in tables.items()}
    whole = found[None]
    if run.config.loop.num_rollouts and num_weighted(whole.rollouts, objective) == 0:
        raise MissingRewards(
            f"no rollout of buffer {buffer.number} has a reward ({collected.errors}); without any this would be plain "
            "fine-tuning: mend the cause, or set loop.num_rollouts=0"
        )
    if progress.position == 0:
        lags = [progress.step - group.policy_step for group in buffer.groups]
        run.board.buffer(progress, buffer, collected, waited_s=waited_s, lags=lags)
        run.board.rewards(progress.step, tables, found)
    mine = slice(rank * num, (rank + 1) * num)
    return replace(whole, real=whole.real[mine], rollouts=whole.rollouts[mine])


def _gathered(run: Run, collected: Collected, head: str | None) -> Tensor:
    """Rewards [G,1+P] of all processes, process by process."""
    table = reward_table(collected.groups, centre=run.config.objective.centre, head=head)
    rows: Any = run.accelerator.gather(table.to(run.accelerator.device))
    return rows.cpu()  # type: ignore[no-any-return]


def batches(run: Run, buffer: Buffer, position: int) -> Iterator[list[int]]:
    """Rows of this process's groups for each step of the K passes, from step `position` on.

    The first pass is in the order of the data, which is random; each later one is shuffled anew.
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


def due(run: Run, num_groups: int, position: int) -> int:
    """How many groups of the next buffer are to be there before a step: none earlier than max_lag steps ahead of it."""
    loop = run.config.loop
    num_steps = loop.passes * (num_groups // loop.batch_clips)
    window = min(loop.max_lag, num_steps)
    begun = window - (num_steps - position) + 1
    return math.ceil(num_groups * begun / window) if window and begun > 0 else 0


def refresh(run: Run, progress: Progress) -> str:
    """The version that scores from now on; trained as many steps as the policy was, times the D:G ratio."""
    config = run.config.refresh
    steps = round(config.steps_per_step * progress.position)
    last = progress.buffer + 1 == run.config.loop.num_buffers
    if not config.enabled or steps == 0 or last or run.config.loop.num_rollouts == 0:
        return progress.version
    seed = derived_seed(run.config.seed, "refresh", progress.buffer)
    key = f"{run.board.run_id}/refresh/{progress.buffer}"
    run.accelerator.wait_for_everyone()  # all clips of the buffer are on the server
    order = partial(run.rewards.refresh, steps, seed=seed, key=key)
    return from_main(run.accelerator, order if run.accelerator.is_main_process else None)


# --- a step -------------------------------------------------------------------------------------


def train_step(run: Run, groups: Sequence[Group], real: Tensor, rollouts: Tensor, progress: Progress) -> None:
    """One optimizer step on B groups with advantages [B] and [B,P]."""
    config, accelerator, step = run.config, run.accelerator, progress.step
    probed = every(config.logs.every_steps, step)
    probe = GradientProbe(run) if probed else None
    started = time.monotonic()
    counts = torch.tensor([len(groups), num_weighted(rollouts, config.objective)], dtype=torch.float64)
    num_real, num_known = _mean(accelerator, counts).tolist()
    weights = coefficients(real, rollouts, config.objective, step=step, num_real=num_real, num_known=num_known)
    num_chunks = 1 + config.loop.num_rollouts

    @contextmanager
    def scope(index: int) -> Iterator[None]:
        """Gradients are averaged over processes once, with the last chunk."""
        last = accelerator.sync_gradients = index == num_chunks - 1
        with nullcontext() if last else accelerator.no_sync(run.policy.module):
            yield
        if index == 0 and probe:
            probe.after_real_clips()

    chunks = [partial(chunk_losses, run, groups, at, step) for at in range(num_chunks)]
    loss = backward_by_chunk(chunks, weights, accelerator.backward, scope)
    norms = probe.norms() if probe else {}
    norm = accelerator.clip_grad_norm_(run.policy.module.parameters(), config.optimizer.max_grad_norm)
    for group in run.optimizer.param_groups:
        group["lr"] = config.optimizer.rate(step)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if probed:
        terms = step_scalars(run, loss, progress) | norms | {"gradient/norm": float(norm or 0.0)}
        run.board.step(step, terms | {"time/step_s": time.monotonic() - started})
    run.board.advance(progress.buffer)


def chunk_losses(run: Run, groups: Sequence[Group], at: int, step: int) -> Tensor:
    """Diffusion losses [B]: of the real clips (0), or of everyone's `at`-th rollout (from 1)."""
    policy = run.policy
    examples = [policy.with_latents(group.example, group.rollouts[at - 1]) if at else group.example for group in groups]
    return policy.losses(stack(examples), step_draw(run, groups, at, step))


def step_draw(run: Run, groups: Sequence[Group], at: int, step: int) -> Draw:
    """Noise of each sample, the same for a real clip and its rollouts if matched, whatever process it is in."""
    parts = () if run.config.objective.matched_noise else (at,)
    draws = [
        run.policy.draw(1, generator(run.config.seed, "draw", step, group.slot, *parts)).tensors for group in groups
    ]
    return Draw(tensors={name: torch.cat([draw[name] for draw in draws]) for name in draws[0]})


class GradientProbe:
    """Norms of the gradients of the two terms of a step's loss, from what accumulates chunk by chunk."""

    def __init__(self, run: Run) -> None:
        self._accelerator = run.accelerator
        self._parameters = [parameter for _, parameter in trainable(run.policy.module)]
        self._real: Tensor | None = None

    def after_real_clips(self) -> None:
        self._real = self._gradient()

    def norms(self) -> dict[str, float]:
        """Empty where the engine keeps the gradients to itself."""
        total = self._gradient()
        if self._real is None or total is None:
            return {}
        real = _mean(self._accelerator, self._real) if self._accelerator.num_processes > 1 else self._real
        sft, aw = float(real.norm()), float((total - real).norm())
        ratio = {"gradient/aw_over_sft": aw / sft} if sft > 0 else {}
        return {"gradient/sft": sft, "gradient/aw": aw, **ratio}

    def _gradient(self) -> Tensor | None:
        parts = [
            parameter.grad.detach().flatten().float() for parameter in self._parameters if parameter.grad is not None
        ]
        return torch.cat(parts) if parts else None


def step_scalars(run: Run, loss: HybridLoss, progress: Progress) -> dict[str, float]:
    """Means over processes."""
    objective = run.config.objective
    rollouts = loss.rollouts.mean() if loss.rollouts.numel() else torch.zeros(())
    values = torch.stack([value.double().cpu() for value in (loss.total, loss.sft_term, loss.aw_term)])
    values = torch.cat([values, torch.stack([loss.real.mean().double().cpu(), rollouts.double().cpu()])])
    names = ("loss/total", "loss/sft_term", "loss/aw_term", "loss/diffusion_real", "loss/diffusion_rollouts")
    means = dict(zip(names, _mean(run.accelerator, values).tolist(), strict=True))
    if not loss.rollouts.numel():
        del means["loss/diffusion_rollouts"]
    return means | {
        "loss/lambda_aw": objective.lambda_aw_at(progress.step),
        "optimizer/lr": run.config.optimizer.rate(progress.step),
    }


# --- small --------------------------------------------------------------------------------------


def every(num: int, step: int) -> bool:
    return num > 0 and step % num == 0


def _mean(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Over processes, element by element."""
    reduced: Any = accelerator.reduce(values.to(accelerator.device), reduction="mean")
    return reduced.to(values.device)  # type: ignore[no-any-return]


def from_main(accelerator: Accelerator, tell: Callable[[], str] | None) -> str:
    """What the main process's `tell()` says, in every process. At most 256 bytes."""
    text = tell().encode() if tell else b""
    row = torch.zeros(257, dtype=torch.int64, device=accelerator.device)
    row[0] = len(text)
    row[1 : 1 + len(text)] = torch.tensor(list(text), dtype=torch.int64)
    told: Any = broadcast(row)
    return bytes(told[1 : 1 + int(told[0])].tolist()).decode()
