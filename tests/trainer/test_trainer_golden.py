"""The first steps of a seeded run are those that were recorded; see golden_losses.py."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

from tests.golden_losses import BASES, PATH, losses

TOLERANCE = 2e-3
"""Of a figure's largest value. Kinds of CPU add up in other orders: figures of one machine held to SSE4 kernels were
apart from its own by 3e-4 at most, for AdamW divides tiny gradients by themselves, and later steps build on that.
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", BASES)
def test_the_first_steps_are_the_recorded_ones(name: str) -> None:
    recorded = json.loads(PATH.read_text())[name]
    for figure, found in losses(name).items():
        assert found == pytest.approx(recorded[figure], abs=TOLERANCE * max(map(abs, recorded[figure]))), figure
