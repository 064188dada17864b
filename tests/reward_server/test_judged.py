"""Tests how a refresh attacks its discriminators on the anchor set, and that groups with copies are held out first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from protos.types import Bounds, Origin
from reward_server.profiles.run_clips import About, RunClip, read_clip
from reward_server.training.buffers import Buffers
from reward_server.training.judged import (
    LEAST_AMOUNTS,
    LEAST_PAIRS,
    Anchored,
    Attacked,
    Judged,
    Logits,
    anchored,
    attacked,
)
from tests.run_clips import packed

BOUNDS = Bounds(min=-5.0, max=5.0)


def clip(amount: float, level: float, copies: Sequence[float] = (), terms: tuple[float, float] = (0.0, 0.0)) -> RunClip:
    """A clip that stands for its logit, `level`, which is kept as its group, with copies of these logits."""
    made = [RunClip(group_id=str(copy), packed={}) for copy in copies]
    return RunClip(group_id=str(level), packed={}, about=About(amount=amount, terms=terms), copies=made)


def judged(real: Sequence[RunClip], rollouts: Sequence[RunClip], term: int = 1) -> Attacked:
    def logit(one: RunClip, num: int) -> float:
        assert num == 4
        return float(one.group_id)

    clips = Buffers(real=real, rollouts=rollouts)
    levels = [np.array([float(one.group_id) for one in some]) for some in (real, rollouts)]
    return attacked(logit, clips, Logits(real=levels[0], rollouts=levels[1]), lambda one: 4, term)


def test_copies_are_compared_with_their_own_clip() -> None:
    real = [clip(0.1, level, copies=(level - 1, level + 1)) for level in range(LEAST_PAIRS)]
    assert judged(real, []).copies == 0.5
    assert judged(real[: LEAST_PAIRS // 2 - 1], []).copies is None, "too few pairs"


def test_the_term_of_the_discriminator_counts() -> None:
    real = [clip(0.1, 0.0, copies=(1.0,), terms=(0.0, 2.0)) for _ in range(LEAST_PAIRS)]
    assert (judged(real, [], term=0).copies, judged(real, [], term=1).copies) == (0.0, 1.0)


def test_the_correlation_with_the_amount_is_by_origin_and_includes_the_term() -> None:
    moves = range(LEAST_AMOUNTS)
    rising, falling = [clip(amount, amount) for amount in moves], [clip(amount, -amount) for amount in moves]
    found = judged(rising, falling)
    assert (found.amount_real, found.amount_rollouts) == pytest.approx((1.0, -1.0))
    undone = [replace(one, about=About(amount=one.about.amount, terms=(0.0, -2 * one.about.amount))) for one in rising]
    assert judged(undone, falling).amount_real == pytest.approx(-1.0)


def test_amounts_that_are_few_unknown_or_equal_tell_nothing() -> None:
    known = [clip(amount, amount) for amount in range(LEAST_AMOUNTS)]
    unknown = [clip(float("nan"), 1.0)] * 9
    assert judged([*known[1:], *unknown], [clip(0.5, level) for level in range(30)]) == Attacked(
        copies=None, amount_real=None, amount_rollouts=None
    )
    assert judged([*known, *unknown], []).amount_real == pytest.approx(1.0)


def test_the_figures_of_both_versions_are_in_the_report() -> None:
    logits = Logits(real=np.array([1.0, 2.0]), rollouts=np.array([0.0, -6.0]))
    attacks = (Attacked(copies=share, amount_real=None, amount_rollouts=share) for share in (0.25, 0.75))
    old, new = (Judged(held_out=logits, anchor=Anchored(logits=logits, attacked=one)) for one in attacks)
    found = anchored(old, new, BOUNDS)
    assert found is not None
    assert (found.copies_before, found.copies_after, found.amount_real_before) == (0.25, 0.75, None)
    assert (found.amount_rollouts_after, found.drift, found.saturation_after) == (0.75, 0.0, 0.25)
    assert anchored(replace(old, anchor=None), new, BOUNDS) is None


@pytest.mark.parametrize("seed", range(4))
def test_groups_with_copies_are_held_out_first_when_there_is_no_anchor_set(seed: int) -> None:
    groups = [f"group-{number}" for number in range(32)]
    real, rollouts = (
        [read_clip(packed(origin, number, group_id=group)) for number, group in enumerate(groups)]
        for origin in (Origin.REAL, Origin.ROLLOUT)
    )
    with_copies = [replace(one, copies=[one]) if number % 8 == 3 else one for number, one in enumerate(real)]
    clips = Buffers.of(with_copies, rollouts, at_least=2)
    _, held = clips.split(seed, copied_first=True)
    assert {one.group_id for one in held.real} == {f"group-{number}" for number in (3, 11, 19, 27)}
    assert {one.group_id for one in clips.split(seed)[1].real} == {
        one.group_id for one in Buffers.of(real, rollouts, at_least=2).split(seed)[1].real
    }
