"""The losses of pretraining: SHIFT's BCE, the order within a view, and the slope against the amount of motion.

SHIFT is arXiv 2603.17426.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_AMOUNT = 0.05  # frame heights per second
SHRINK = 0.1  # of the slope's denominator, a variance of log amounts


def adversarial_bce(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Mean BCE of real clips with target 1 plus mean BCE of the others with target 0 (SHIFT, Eq. 7)."""
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return real + fake


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
    real_logits: Tensor, fake_logits: Tensor, amounts: Tensor, *, pair_weight: float, amount_weight: float
) -> Tensor:
    """The loss of R real clips [R], of equally many negatives of each, in order [R x n], and of the clips' amounts [R].

    It is `adversarial_bce`, plus `pair_bce` and `amount_slope` with their weights.
    """
    owner = torch.arange(len(real_logits), device=real_logits.device)
    owner = owner.repeat_interleave(len(fake_logits) // len(real_logits))
    loss = adversarial_bce(real_logits, fake_logits) + pair_weight * pair_bce(real_logits[owner], fake_logits)
    return loss + amount_weight * amount_slope(real_logits, amounts) if amount_weight else loss
