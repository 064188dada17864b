"""AUC against brute force and closed forms, its intervals' coverage, the floors, and the whole command."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_server.stats import Interval, auc, auc_bootstrap, auc_delong, mean_bootstrap, roc

levels = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def brute_auc(real, generated):
    return sum(1.0 if r > g else 0.5 if r == g else 0.0 for r, g in product(real, generated)) / (
        len(real) * len(generated)
    )


@pytest.mark.parametrize(
    ("real", "generated", "expected"),
    [
        ([2, 3], [0, 1], 1.0),
        ([0, 1], [2, 3], 0.0),
        ([1, 1], [1], 0.5),
        ([3, 1], [2], 0.5),
        ([3, 2, 1], [2, 0], 4.5 / 6),
    ],
)
def test_auc_counts_pairs_with_ties_half(real, generated, expected):
    assert auc(real, generated) == expected


@given(levels, levels)
@settings(deadline=None)
def test_auc_is_the_brute_force_count_and_the_area_under_the_roc_curve(real, generated):
    expected = brute_auc(real, generated)
    assert auc(real, generated) == pytest.approx(expected, abs=1e-12)
    assert np.trapezoid(*reversed(roc(real, generated))) == pytest.approx(expected, abs=1e-12)
    assert auc(generated, real) == pytest.approx(1 - expected, abs=1e-12)


def test_roc_of_a_known_case():
    false_rate, true_rate = roc([3, 2, 1], [2, 0])
    assert false_rate.tolist() == [0, 0, 0.5, 0.5, 1]
    assert true_rate == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [math.inf], [[1.0, 2.0]]])
def test_what_is_not_a_row_of_finite_numbers_is_refused(bad):
    with pytest.raises(ValueError, match="non-empty row of finite numbers"):
        auc(bad, [1.0])


def test_auc_of_normal_samples_is_the_closed_form():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(1.0, 1, 20_000), rng.normal(0.0, 1, 20_000)
    assert auc(real, generated) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.006)  # Phi(1 / sqrt 2)


@pytest.mark.parametrize("of", [auc_bootstrap, auc_delong])
def test_an_interval_holds_the_true_auc_in_about_95_of_100_samples(of):
    rng, true = np.random.default_rng(1), 0.5 * (1 + math.erf(0.5))
    held = 0
    for _ in range(200):
        interval = of(rng.normal(1, 1, 40), rng.normal(0, 1, 50))
        held += interval.low <= true <= interval.high
    assert 0.89 <= held / 200 <= 0.99


def test_delong_interval_of_a_hand_worked_case():
    # wins per real clip (1, 3/4, 1/2), per generated clip (1/2, 1): AUC 3/4, variance (1/16)/3 + (1/8)/2
    interval = auc_delong([3, 2, 1], [2, 0])
    half = 1.959963984540054 * math.sqrt((1 / 16) / 3 + (1 / 8) / 2)
    assert interval == Interval(low=pytest.approx(0.75 - half), high=1.0)


def test_bootstrap_interval_is_seeded_and_brackets_the_estimate():
    rng = np.random.default_rng(2)
    real, generated = rng.normal(0.5, 1, 30), rng.normal(0, 1, 30)
    first = auc_bootstrap(real, generated, seed=3)
    assert first == auc_bootstrap(real, generated, seed=3) != auc_bootstrap(real, generated, seed=4)
    assert first.low < auc(real, generated) < first.high
    wide, narrow = (auc_bootstrap(real, generated, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_of_two_clips_a_side_has_the_exact_quantiles():
    # Each side draws (a,a), (a,b), (b,b) with chances 1/4, 1/2, 1/4; at 90% the ends are the extreme values here.
    assert auc_bootstrap([0, 2], [1, 1], level=0.90, seed=0) == Interval(low=0.0, high=1.0)
    assert auc_bootstrap([0, 2], [1, 1], level=0.40, seed=0) == Interval(low=0.5, high=0.5)


def test_an_interval_needs_two_clips_a_side():
    assert auc_bootstrap([1.0], [0.0, 2.0]) is None
    assert auc_delong([1.0, 2.0], [0.0]) is None
    assert mean_bootstrap([1.0]) is None


def test_mean_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(5).normal(2, 1, 400)
    interval = mean_bootstrap(values)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert (interval.high + interval.low) / 2 == pytest.approx(values.mean(), abs=0.01)
