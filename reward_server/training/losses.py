"""The losses of pretraining: SHIFT's BCE, the order within a view, and the slope against the amount of motion.

SHIFT is arXiv 2603.17426.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_AMOUNT = 0.05  # frame heights per second
SHRINK = 0.1  # of the slope's denominator, a variance of log amounts


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Logits [N] and amounts [N] of generated clips beside faulty ones, and their share 0..1 of the negatives' loss."""

    logits: Tensor
    amounts: Tensor
    share: float


def adversarial_bce(real_logits: Tensor, fake_logits: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean BCE of real clips with target 1 plus mean BCE of the others with target 0 (SHIFT, Eq. 7).

    With `smoothing`, the targets are 1 - smoothing and smoothing.
    """
    real = F.binary_cross_entropy_with_logits(real_logits, torch.full_like(real_logits, 1.0 - smoothing))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.full_like(fake_logits, smoothing))
    return real + fake


def logit_penalty(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The mean squared logit of both sides, each counting half, which keeps the logits from growing without end."""
    return (real_logits.square().mean() + fake_logits.square().mean()) / 2


def with_noise(inputs: Tensor, amount: float, *, channels: int) -> Tensor:
    """`inputs` with normal noise of `amount` standard deviations of each channel; `channels` is their dimension.

    Give real clips and negatives together, so that the noise of both is the same.
    """
    others = [dim for dim in range(inputs.ndim) if dim != channels % inputs.ndim]
    return inputs + amount * inputs.std(dim=others, keepdim=True) * torch.randn_like(inputs)


def pair_bce(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean BCE, with target 1, of the logit of each real clip minus the logit of one of its own negatives.

    SHIFT re-centres rewards within a group of clips that share their first frame. So a policy depends on the order
    within a group, while the plain BCE mostly depends on differences between scenes.
    """
    difference = real_logits - fake_logits
    return F.binary_cross_entropy_with_logits(difference, torch.ones_like(difference))


def amount_slope(real_logits: Tensor, amounts: Tensor) -> Tensor:
    """The squared slope of real clips' logits against the logarithm of their amount of motion.

    Amounts are in frame heights per second, and those below LEAST_AMOUNT count as it: a clip that hardly moves may
    score lower, but among clips that move, more motion is not more real. With a few clips the slope is shrunk.
    """
    level = amounts.clamp_min(LEAST_AMOUNT).log()
    level = level - level.mean()
    slope = (level * (real_logits - real_logits.mean())).mean() / (level.square().mean() + SHRINK)
    return slope.square()


def view_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    amounts: Tensor,
    *,
    pair_weight: float,
    amount_weight: float,
    shared: Sequence[bool] = (),
    smoothing: float = 0.0,
    penalty_weight: float = 0.0,
    generated: Generated | None = None,
) -> Tensor:
    """The loss of R real clips [R], of equally many negatives of each, in order [R x n], and of the clips' amounts [R].

    It is `adversarial_bce`, plus `pair_bce`, `amount_slope` and `logit_penalty` with their weights. Real clips have a
    `pair_bce` if their negatives are `shared`, that is, show their own scene; by default all are. Generated clips take
    their share of the negatives' part of `adversarial_bce`, and have an `amount_slope` of their own. They have no
    `logit_penalty`.
    """
    owner = torch.arange(len(real_logits), device=real_logits.device)
    owner = owner.repeat_interleave(len(fake_logits) // len(real_logits))
    loss = adversarial_bce(real_logits, fake_logits, smoothing=smoothing)
    if generated:
        theirs = adversarial_bce(real_logits, generated.logits, smoothing=smoothing)
        loss = (1 - generated.share) * loss + generated.share * theirs
    shared = shared or [True] * len(real_logits)
    if pair_weight and any(shared):
        chosen = torch.tensor(shared, device=owner.device)[owner]
        pairs = pair_bce(real_logits[owner][chosen], fake_logits[chosen])
        loss = loss + pair_weight * sum(shared) / len(shared) * pairs
    if amount_weight:
        loss = loss + amount_weight * amount_slope(real_logits, amounts)
        if generated:
            loss = loss + amount_weight * amount_slope(generated.logits, generated.amounts)
    return loss + penalty_weight * logit_penalty(real_logits, fake_logits) if penalty_weight else loss
