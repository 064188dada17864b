"""One optimizer step of SHIFT: B groups with their advantages -> the hybrid loss, chunk by chunk -> AdamW.

Step 5 of Algorithm 1. The real clips' losses come first, then everyone's first rollout, second, ..., so that one
chunk's graph is in memory at a time; gradients are averaged over processes with the last chunk, and where they are
logged with the real clips' too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from trainer.checkpoint import Progress, trainable
from trainer.errors import Diverged
from trainer.objective import HybridLoss, backward_by_chunk, coefficients, num_weighted
from trainer.policies.protocol import Draw, stack
from trainer.processes import mean_over_processes, whole
from trainer.rollout import Group
from trainer.run import Run
from trainer.seeds import generator
from trainer.zero import uses_zero


def train_step(run: Run, groups: Sequence[Group], real: Tensor, rollouts: Tensor, progress: Progress) -> None:
    """One optimizer step on B groups with advantages [B] and [B,P]."""
    config, accelerator, step = run.config, run.accelerator, progress.step
    probed = every(config.logs.every_steps, step)
    zero = uses_zero(accelerator)
    probe = GradientProbe(run.policy.module) if probed and not zero else None  # ZeRO keeps no whole gradients
    started = time.monotonic()
    counts = torch.tensor([len(groups), num_weighted(rollouts, config.objective)], dtype=torch.float64)
    num_real, num_known = mean_over_processes(accelerator, counts).tolist()
    weights = coefficients(real, rollouts, config.objective, step=step, num_real=num_real, num_known=num_known)
    num_chunks = 1 + config.loop.num_rollouts

    @contextmanager
    def scope(index: int) -> Iterator[None]:
        """Gradients are averaged over processes with the last chunk, and before the probe looks at them."""
        last = accelerator.sync_gradients = index == num_chunks - 1
        seen = probe if index == 0 else None
        with nullcontext() if last or seen or zero else accelerator.no_sync(run.policy.module):
            yield
        if seen:
            seen.after_real_clips()

    for group in run.optimizer.param_groups:  # before the last chunk, with which ZeRO takes its step
        group["lr"] = config.optimizer.rate(step)
    chunks = [partial(chunk_losses, run, groups, at, step) for at in range(num_chunks)]
    loss = backward_by_chunk(chunks, weights, accelerator.backward, scope)
    norms = probe.norms() if probe else {}
    norm = float(whole(accelerator.clip_grad_norm_(run.policy.module.parameters(), config.optimizer.max_grad_norm)))
    if not math.isfinite(norm):  # a step with it would be saved, and good checkpoints removed for it
        raise Diverged(
            f"the gradient's norm at step {step} is {norm} (coefficients up to {weights.rollouts.abs().max():.3g}); "
            "no checkpoint has it. Lower optimizer.lr or objective.lambda_aw, or raise the beta of exp weights, in a "
            "new out"
        )
    run.optimizer.step()
    run.optimizer.zero_grad()
    if probed:
        terms = step_scalars(run, loss, progress) | norms | {"gradient/norm": norm}
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

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._real: list[Tensor] = []

    def after_real_clips(self) -> None:
        self._real = self._gradients()

    def norms(self) -> dict[str, float]:
        rollouts = [total - real for total, real in zip(self._gradients(), self._real, strict=True)]
        sft, aw = _norm(self._real), _norm(rollouts)
        ratio = {"gradient/aw_over_sft": aw / sft} if sft > 0 else {}
        return {"gradient/sft": sft, "gradient/aw": aw, **ratio}

    def _gradients(self) -> list[Tensor]:
        """Copies. FSDP swaps a module's parameters for its shards after each backward: they are looked up anew."""
        found = [parameter.grad for _, parameter in trainable(self._module)]
        return [gradient.to(torch.float32, copy=True) for gradient in found if gradient is not None]


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(whole(torch.nn.utils.get_total_norm(gradients)))


def step_scalars(run: Run, loss: HybridLoss, progress: Progress) -> dict[str, float]:
    """Means over processes."""
    objective = run.config.objective
    rollouts = loss.rollouts.mean() if loss.rollouts.numel() else torch.zeros(())
    values = torch.stack([value.cpu().double() for value in (loss.total, loss.sft_term, loss.aw_term)])
    values = torch.cat([values, torch.stack([loss.real.mean().cpu().double(), rollouts.cpu().double()])])
    names = ("loss/total", "loss/sft_term", "loss/aw_term", "loss/diffusion_real", "loss/diffusion_rollouts")
    means = dict(zip(names, mean_over_processes(run.accelerator, values).tolist(), strict=True))
    if not loss.rollouts.numel():
        del means["loss/diffusion_rollouts"]
    return means | {
        "loss/lambda_aw": objective.lambda_aw_at(progress.step),
        "optimizer/lr": run.config.optimizer.rate(progress.step),
    }


def every(num: int, step: int) -> bool:
    """Whether this is the `num`-th step, or a later such one; never for 0."""
    return num > 0 and step % num == 0
