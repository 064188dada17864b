"""Trains a discriminator's logit of statistics alone, before the whole discriminator trains.

The statistics of whole clips are computed once. A step on them is thousands of times cheaper than a step of the
transformer, so this stage takes minutes and the transformer then learns what the statistics leave over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from reward_server.discriminators.statistics_logit import StatisticsLogit
from reward_server.training.examples import View
from reward_server.training.losses import view_loss


@dataclass(frozen=True, kw_only=True)
class StatisticsTraining:
    """How the logit of statistics is trained."""

    steps: int = 1200
    views_per_step: int = 48
    negatives_per_view: int = 3
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    pair_weight: float = 2.0
    amount_weight: float = 0.3
    seed: int = 0


def fit_statistics(
    logit: StatisticsLogit, views: Sequence[View], known: Mapping[str, Tensor], config: StatisticsTraining
) -> None:
    """Train `logit` in place on the statistics [17C] of all clips of the views, by the clips' keys."""
    logit.standardise(torch.stack(list(known.values())))
    torch.manual_seed(config.seed)  # of dropout
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(logit.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, config.learning_rate / 10)
    logit.train()
    for _ in range(config.steps):
        optimizer.zero_grad()
        _loss(logit, views, known, config, rng).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(logit.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _loss(
    logit: StatisticsLogit,
    views: Sequence[View],
    known: Mapping[str, Tensor],
    config: StatisticsTraining,
    rng: np.random.Generator,
) -> Tensor:
    chosen = [views[i] for i in rng.integers(len(views), size=config.views_per_step)]
    fakes = [
        view.negatives[i].key
        for view in chosen
        for i in rng.integers(len(view.negatives), size=config.negatives_per_view)
    ]
    logits = logit.judge(torch.stack([known[key] for key in [view.real.key for view in chosen] + fakes]))
    amounts = torch.tensor([view.real.amount for view in chosen], device=logits.device)
    return view_loss(
        logits[: len(chosen)],
        logits[len(chosen) :],
        amounts,
        pair_weight=config.pair_weight,
        amount_weight=config.amount_weight,
    )
