"""Holds the ratio of the two gradients' norms, advantage-weighted over supervised, at `objective.aw_dose`.

    lambda_aw = dose x smoothed norm of the supervised gradient / smoothed norm of the advantage-weighted one

The second norm is that at lambda_aw 1. A reward that is multiplied by 100 multiplies it by 100, so the product of
lambda_aw and gradient stays the same. The norms are smoothed over steps, not taken from one: a group whose rewards
hardly differ keeps its small weight.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.checkpoint import trainable
from trainer.processes import whole

FAINT = 0.01  # rollouts whose gradient is less than this share of the supervised one hardly train
DECAY = 0.95  # of the smoothed norms, per step: about the last 20 steps count
MOST = 2.0  # the ratio of a single step is at most this many times the dose


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Smoothed gradient norms: of the supervised term, and of the advantage-weighted term at lambda 1. 0: not known."""

    sft: float = 0.0
    aw: float = 0.0

    def after(self, sft: float, aw: float) -> Norms:
        """The norms after a step with these two. A step in which one of them is 0 tells nothing about the ratio."""
        if not (sft > 0 and aw > 0):
            return self
        if not self.aw:
            return Norms(sft=sft, aw=aw)
        return Norms(sft=DECAY * self.sft + (1 - DECAY) * sft, aw=DECAY * self.aw + (1 - DECAY) * aw)

    def lambda_aw(self, dose: float, sft: float, aw: float) -> float:
        """The lambda_aw of a step with the norms `sft` and `aw`. 0 if nothing is known yet, or the step has no `aw`."""
        if not (self.aw and aw > 0):
            return 0.0
        return min(dose * self.sft / self.aw, MOST * dose * sft / aw)


def faintness(ratios: Sequence[float]) -> str:
    """A warning if the rollouts' gradient is FAINT in most steps (ratios of the norms, over supervised), or ""."""
    if not ratios or (middle := statistics.median(ratios)) >= FAINT:
        return ""
    return (
        f"the gradient of the rollouts is {middle:.1g} of the supervised one (gradient/aw_over_sft): these steps "
        "were nearly supervised fine-tuning, whatever the rewards said; set objective.aw_dose, for instance to 0.33, "
        "in place of objective.lambda_aw, or raise that"
    )


class SplitGradients:
    """The gradients of the two terms of a step, kept apart until the weight of the second is known.

    Gradients are looked up every time, because FSDP replaces them after each backward.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._real: dict[str, Tensor] = {}

    def after_real_clips(self) -> None:
        """Call it when the real clips' gradient alone has accumulated: it is put aside."""
        for name, gradient in self._gradients().items():
            self._real[name] = gradient.clone()
            gradient.zero_()

    def norms(self) -> tuple[float, float]:
        """The norms of the supervised and the advantage-weighted gradient. Call it after the last chunk."""
        return norm_of(self._real.values()), norm_of(self._gradients().values())

    def join(self, lambda_aw: float) -> None:
        """Set each gradient to the supervised one plus `lambda_aw` times the advantage-weighted one."""
        for name, gradient in self._gradients().items():
            gradient.mul_(lambda_aw).add_(self._real[name])

    def _gradients(self) -> dict[str, Tensor]:
        found = {name: parameter.grad for name, parameter in trainable(self._module)}
        return {name: gradient for name, gradient in found.items() if gradient is not None}


def norm_of(gradients: Iterable[Tensor]) -> float:
    """The norm of all gradients together."""
    return float(whole(torch.nn.utils.get_total_norm(list(gradients))))
