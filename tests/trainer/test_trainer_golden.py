"""The first steps of a seeded run equal the recorded ones; see golden_losses.py."""

from __future__ import annotations

import json

import pytest

from tests.golden_losses import BASES, PATH, losses

TOLERANCE = 2e-3
"""Relative to the largest value of a figure. Different kinds of CPU sum in different orders. On one machine, limiting
kernels to SSE4 changed the figures by at most 3e-4: AdamW divides tiny gradients by themselves, which enlarges rounding
errors, and later steps depend on them.
"""


@pytest.mark.parametrize("name", BASES)
def test_the_first_steps_equal_the_recorded_ones(name: str) -> None:
    recorded = json.loads(PATH.read_text())[name]
    for figure, found in losses(name).items():
        assert found == pytest.approx(recorded[figure], abs=TOLERANCE * max(map(abs, recorded[figure]))), figure
