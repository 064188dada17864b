"""Tests the logit of statistics: standardising, the stage that trains it alone, and the cues of maps it reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reward_server.discriminators.map_cues import NUM_MAP_CUES, map_cues
from reward_server.discriminators.statistics_logit import BOUND, StatisticsLogit
from reward_server.training.examples import View
from reward_server.training.feature_cache import Sample
from reward_server.training.statistics_stage import StatisticsTraining, fit_statistics


def sample(key: str, fault: str = "", amount: float = 0.2) -> Sample:
    return Sample(
        key=key, source=key, view=key, real=not fault, fault=fault, strength=1.0, shape=(16, 144, 256), amount=amount
    )


def test_the_logit_reads_deviations_from_training_clips() -> None:
    torch.manual_seed(0)
    logit, known = StatisticsLogit(2).eval(), torch.randn(50, 34)
    other = StatisticsLogit(2).eval()
    other.load_state_dict(logit.state_dict())
    logit.standardise(known)
    other.standardise(100 * known - 7)
    torch.testing.assert_close(logit.judge(known), other.judge(100 * known - 7), atol=1e-4, rtol=0)


def test_the_stage_learns_what_tells_the_sides_apart() -> None:
    torch.manual_seed(0)
    views, known = [], {}
    for i in range(40):
        real, fake = sample(f"r{i}", amount=0.1 + 0.02 * i), sample(f"f{i}", "static")
        views.append(View(real=real, negatives=(fake,)))
        known |= {real.key: torch.randn(17) + 1, fake.key: torch.randn(17) - 1}
    logit = StatisticsLogit(1)
    fit_statistics(logit, views, known, StatisticsTraining(steps=60, views_per_step=16))
    logit.eval()
    real, fake = (logit.judge(torch.randn(200, 17) + side) for side in (1, -1))
    assert float((real > 0).float().mean()) > 0.95
    assert float((fake < 0).float().mean()) > 0.95
    assert real.abs().max() <= BOUND


def zoom(rate: float, speed: float = 1.0) -> Tensor:
    """Maps [1,1,4,64,96] with the flow of a zoom."""
    y, x = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(96.0) - 48, indexing="ij")
    flow = speed * rate * torch.stack([x, y])
    return torch.cat([torch.zeros(2, 64, 96), flow])[None, None]


def test_map_cues_have_their_shape_and_place() -> None:
    cues = map_cues(torch.randn(2, 5, 4, 64, 96))
    assert cues.shape == (2, (16 - 2) * (24 - 2), 5, NUM_MAP_CUES)


def test_a_zoom_diverges_and_neither_turns_nor_shears() -> None:
    divergence, curl, shear, bending = map_cues(zoom(0.02))[0, :, 0, 3:7].sinh().median(dim=0).values * 0.05
    assert float(divergence) == pytest.approx(2 * 4 * 0.02, rel=1e-3)  # in typical speeds per 4 px
    assert max(float(curl), float(shear), float(bending)) < 1e-3
