"""Takes one optimizer step of SHIFT: B groups with their advantages -> the hybrid loss, chunk by chunk -> AdamW.

Step 5 of Algorithm 1. The first chunk holds the losses of the real clips, the second those of every clip's first
rollout, and so on, so that one chunk's graph is in memory at a time. Gradients are averaged over processes with the
last chunk. In steps that log gradient norms, and with objective.aw_dose, they are also averaged after the first chunk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from trainer.checkpoint import Progress, trainable
from trainer.dose import Norms, SplitGradients, norm_of
from trainer.errors import Diverged
from trainer.objective import HybridLoss, Objective, backward_by_chunk, coefficients, num_weighted
from trainer.policies.protocol import Draw, stack
from trainer.processes import mean_over_processes, whole
from trainer.rollout import Group
from trainer.run import Run
from trainer.seeds import generator
from trainer.zero import uses_zero


def train_step(run: Run, groups: Sequence[Group], real: Tensor, rollouts: Tensor, progress: Progress) -> Progress:
    """Take one optimizer step on B groups. `real` [B] and `rollouts` [B,P] are their advantages, NaN where unknown.

    Returns where the run is after the step. Raises Diverged if the gradient norm is not finite. Such a step is not
    saved in a checkpoint.
    """
    config, accelerator, step, objective = run.config, run.accelerator, progress.step, run.config.objective
    probed = every(config.logs.every_steps, step)
    zero = uses_zero(accelerator)
    dosed = objective.aw_dose > 0 and config.loop.num_rollouts > 0
    split = SplitGradients(run.policy.module) if dosed else None
    probe = GradientProbe(run.policy.module) if probed and not (split or zero) else None  # ZeRO has no whole gradients
    started = time.monotonic()
    counts = torch.tensor([len(groups), num_weighted(rollouts, objective)], dtype=torch.float64)
    num_real, num_known = mean_over_processes(accelerator, counts).tolist()
    lambda_aw = 1.0 if split else objective.lambda_aw_at(step)
    weights = coefficients(real, rollouts, objective, lambda_aw=lambda_aw, num_real=num_real, num_known=num_known)
    num_chunks = 1 + config.loop.num_rollouts

    @contextmanager
    def scope(index: int) -> Iterator[None]:
        """Averages gradients over processes with the last chunk, and with the first if something reads them."""
        last = index == num_chunks - 1
        accelerator.sync_gradients = last
        seen = (split or probe) if index == 0 else None
        with nullcontext() if last or seen or zero else accelerator.no_sync(run.policy.module):
            yield
        if seen:
            seen.after_real_clips()

    for group in run.optimizer.param_groups:  # before the chunks: ZeRO takes its step in the backward of the last
        group["lr"] = config.optimizer.rate(step)
    chunks = [partial(chunk_losses, run, groups, at, step) for at in range(num_chunks)]
    loss = backward_by_chunk(chunks, weights, accelerator.backward, scope)
    norms = probe.norms() if probe else {}
    if split:
        progress, lambda_aw, norms = joined(split, objective, progress)
        loss = replace(loss, aw_term=lambda_aw * loss.aw_term)
        weights = replace(weights, rollouts=lambda_aw * weights.rollouts)
    norm = float(whole(accelerator.clip_grad_norm_(run.policy.module.parameters(), config.optimizer.max_grad_norm)))
    if not math.isfinite(norm):  # else a checkpoint would save it, and a good one be deleted
        raise Diverged(
            f"the gradient norm at step {step} is {norm}, but must be finite (coefficients of rollouts are up to "
            f"{weights.rollouts.abs().max():.3g}); no checkpoint has this step. Start a new run (another out) with a "
            "lower optimizer.lr or objective.lambda_aw, or a higher objective.beta for exp weights"
        )
    run.optimizer.step()
    run.optimizer.zero_grad()
    if probed:
        terms = step_scalars(run, loss, progress) | norms | {"loss/lambda_aw": lambda_aw, "gradient/norm": norm}
        run.board.step(step, terms | {"time/step_s": time.monotonic() - started})
    run.board.advance(progress.buffer)
    return replace(progress, step=step + 1, position=progress.position + 1)


def joined(split: SplitGradients, objective: Objective, progress: Progress) -> tuple[Progress, float, dict[str, float]]:
    """Join the gradients of a step at the dose. Returns the run with its new norms, lambda_aw, and figures to log."""
    sft, aw = split.norms()
    norms = Norms(sft=progress.sft_norm, aw=progress.aw_norm).after(sft, aw)
    lambda_aw = norms.lambda_aw(objective.aw_dose_at(progress.step), sft, aw)
    split.join(lambda_aw)
    figures = {"gradient/sft": sft, "gradient/aw": lambda_aw * aw}
    if sft > 0:
        figures["gradient/aw_over_sft"] = lambda_aw * aw / sft
    return replace(progress, sft_norm=norms.sft, aw_norm=norms.aw), lambda_aw, figures


def chunk_losses(run: Run, groups: Sequence[Group], at: int, step: int) -> Tensor:
    """Diffusion losses [B] of the real clips (`at` 0) or of each group's rollout number `at` (from 1)."""
    policy = run.policy
    examples = [policy.with_latents(group.example, group.rollouts[at - 1]) if at else group.example for group in groups]
    return policy.losses(stack(examples), step_draw(run, groups, at, step))


def step_draw(run: Run, groups: Sequence[Group], at: int, step: int) -> Draw:
    """The random draw of B samples. With objective.matched_noise a real clip and its rollouts share one.

    It depends on the seed, the step and the slot, not on the process. `at` is as in `chunk_losses`.
    """
    parts = () if run.config.objective.matched_noise else (at,)
    draws = [
        run.policy.draw(1, generator(run.config.seed, "draw", step, group.slot, *parts)).tensors for group in groups
    ]
    return Draw(tensors={name: torch.cat([draw[name] for draw in draws]) for name in draws[0]})


class GradientProbe:
    """Measures the gradient norms of the two terms of the loss, from the gradients accumulated chunk by chunk."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._real: list[Tensor] = []

    def after_real_clips(self) -> None:
        """Call it when the gradient of the real clips' term alone has accumulated."""
        self._real = self._gradients()

    def norms(self) -> dict[str, float]:
        """The two norms, and their ratio unless the real clips' is 0. Call it after the last chunk, before clipping."""
        rollouts = [total - real for total, real in zip(self._gradients(), self._real, strict=True)]
        sft, aw = norm_of(self._real), norm_of(rollouts)
        ratio = {"gradient/aw_over_sft": aw / sft} if sft > 0 else {}
        return {"gradient/sft": sft, "gradient/aw": aw, **ratio}

    def _gradients(self) -> list[Tensor]:
        """Copies in float32. Parameters are looked up every time, because FSDP replaces them after each backward."""
        found = [parameter.grad for _, parameter in trainable(self._module)]
        return [gradient.to(torch.float32, copy=True) for gradient in found if gradient is not None]


def step_scalars(run: Run, loss: HybridLoss, progress: Progress) -> dict[str, float]:
    """The losses and the learning rate of a step, to log. Losses are means over processes."""
    rollouts = loss.rollouts.mean() if loss.rollouts.numel() else torch.zeros(())
    values = torch.stack([value.cpu().double() for value in (loss.total, loss.sft_term, loss.aw_term)])
    values = torch.cat([values, torch.stack([loss.real.mean().cpu().double(), rollouts.cpu().double()])])
    names = ("loss/total", "loss/sft_term", "loss/aw_term", "loss/diffusion_real", "loss/diffusion_rollouts")
    means = dict(zip(names, mean_over_processes(run.accelerator, values).tolist(), strict=True))
    if not loss.rollouts.numel():
        del means["loss/diffusion_rollouts"]
    return means | {"optimizer/lr": run.config.optimizer.rate(progress.step)}


def every(num: int, step: int) -> bool:
    """Whether `step` is a multiple of `num`. Never if `num` is 0."""
    return num > 0 and step % num == 0
