"""Tests the standard error of a reward on logits set by hand."""

from __future__ import annotations

import math

import pytest

from protos.spread import standard_error
from protos.types import Logits

EVEN = Logits(instantaneous=1, long_term=1)


def logits(*values: tuple[float, float]) -> list[Logits]:
    return [Logits(instantaneous=first, long_term=second) for first, second in values]


def test_the_error_of_windows_is_that_of_their_mean_and_of_each_reward():
    found = standard_error([logits((0, 4), (2, 2), (4, 0))], EVEN)
    assert found and (found.num_windows, found.num_draws) == (3, 1)
    assert found.instantaneous == found.long_term == pytest.approx(2 / math.sqrt(3))
    assert found.combined == pytest.approx(0)  # the two move against each other
    only = standard_error([logits((0, 4), (2, 2), (4, 0))], Logits(instantaneous=3, long_term=0))
    assert only and only.combined == only.instantaneous


def test_the_error_of_one_window_is_over_its_draws():
    found = standard_error([logits((1, 0)), logits((3, 0))], EVEN)
    assert found and (found.num_windows, found.num_draws) == (1, 2)
    assert (found.instantaneous, found.long_term, found.combined) == pytest.approx((1.0, 0.0, 0.5))


def test_draws_are_averaged_before_windows_are_compared():
    found = standard_error([logits((0, 0), (4, 0)), logits((2, 0), (2, 0))], EVEN)  # means of the windows: 1 and 3
    assert found and found.instantaneous == pytest.approx(1.0)


def test_one_window_and_one_draw_have_no_error():
    assert standard_error([logits((1, 2))], EVEN) is None
