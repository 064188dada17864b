"""Rank statistics of the ladder exactly, its figures on rewards set by hand, and the whole command."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.stats import Share, falling, ordered

RUNGS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([5, 4, 3, 2, 1], 1.0),
        ([1, 2, 3, 4, 5], -1.0),
        ([5, 3, 4, 2, 1], 0.9),  # one swap of neighbours: 1 - 6 * 2 / (5 * 24)
        ([9, 9, 9, 9, 9], 0.0),  # no change is no order
        ([2, 2, 1, 1, 1], math.sqrt(3) / 2),  # ranks of the fall 1.5 1.5 4 4 4: 7.5 / sqrt(10 * 7.5)
    ],
)
def test_falling_is_spearman_with_ties_sharing_ranks(rewards, expected):
    assert falling(RUNGS, rewards) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=3, max_size=9))
@settings(deadline=None)
def test_falling_is_the_correlation_of_mean_ranks(rewards):
    def ranks(values):
        return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]

    strengths = [float(i) for i in range(len(rewards))]
    x, y = ranks(strengths), ranks([-value for value in rewards])
    mean = (len(x) + 1) / 2
    above = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    below = math.sqrt(sum((a - mean) ** 2 for a in x) * sum((b - mean) ** 2 for b in y))
    assert falling(strengths, rewards) == pytest.approx(above / below if below else 0.0, abs=1e-12)


def test_falling_needs_three_rewards_and_one_per_strength():
    assert falling([0, 1], [1, 0]) is None
    with pytest.raises(ValueError, match="give one each"):
        falling([0, 1, 2], [1, 0])


def test_a_tie_is_not_ordered_right_and_a_missing_reward_is_no_pair():
    nan = math.nan
    assert ordered([2, 2, 2, nan], [1, 2, 3, 0]) == Share(right=1, pairs=3)
    assert ordered([[1], [nan]], [[0, nan], [0, 0]]) == Share(right=1, pairs=1)
    assert Share(right=0, pairs=0).fraction is None
    assert Share(right=3, pairs=4).fraction == 0.75
