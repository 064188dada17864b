"""Tests SHIFT's loss against numbers worked out by hand, finite differences and the formula written in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.errors import ConfigError, MixedVersions
from trainer.objective import (
    Advantages,
    ClipReward,
    Coefficients,
    GroupRewards,
    Objective,
    RewardWeights,
    advantages,
    backward_by_chunk,
    coefficients,
    joined,
    num_weighted,
    real_weights,
    reward_table,
    rollout_weights,
)

NAN = math.nan


def group(real: float | None, *rollouts: float | None, version: str = "v1") -> GroupRewards:
    scored = [None if reward is None else ClipReward(reward=reward, version=version) for reward in (real, *rollouts)]
    return GroupRewards(real=scored[0], rollouts=tuple(scored[1:]))


def same(found: Tensor, expected: list[float] | list[list[float]], tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=tolerance, equal_nan=True)


# --- advantages ---------------------------------------------------------------------------------


def test_advantages_subtract_the_mean_of_their_groups_rollouts() -> None:
    found = advantages(reward_table([group(4, 1, 2, 6), group(-1, 0, 0, 3)]), Objective())
    same(found.rollouts, [[-2, -1, 3], [-1, -1, 2]])
    same(found.real, [1, 0])  # 4 - 3, and -1 - 1 clipped to 0


def test_advantages_can_subtract_the_mean_of_all_rollouts() -> None:
    found = advantages(reward_table([group(4, 1, 2, 6), group(-1, 0, 0, 3)], centre="batch"), Objective(centre="batch"))
    same(found.rollouts, [[-1, 0, 4], [-2, -2, 1]])
    same(found.real, [2, 0])


def test_advantages_are_clipped_and_counted() -> None:
    found = advantages(reward_table([group(30, -12, 12), group(30, 0, 2)]), Objective(adv_clip=10))
    same(found.rollouts, [[-10, 10], [-1, 1]])
    same(found.real, [10, 10])
    assert found.num_clipped == 4


def test_dividing_by_the_standard_deviation_is_optional() -> None:
    table = reward_table([group(8, 0, 4)])
    same(advantages(table, Objective()).rollouts, [[-2, 2]])
    normalised = advantages(table, Objective(normalise_std=True))
    same(normalised.rollouts, [[-1, 1]])
    same(normalised.real, [3])


def test_equal_rewards_have_no_advantage_even_when_normalised() -> None:
    same(advantages(reward_table([group(5, 5, 5)]), Objective(normalise_std=True)).rollouts, [[0, 0]])


def test_a_missing_reward_is_left_out_of_the_mean_and_stays_nan() -> None:
    found = advantages(reward_table([group(None, 1, None, 3)]), Objective())
    same(found.rollouts, [[-1, NAN, 1]])
    same(found.real, [NAN])
    assert found.num_known == 2


def test_a_group_without_a_rewarded_rollout_has_no_advantages() -> None:
    found = advantages(reward_table([group(7, None, None), group(1, 0, 2)]), Objective())
    same(found.rollouts, [[NAN, NAN], [-1, 1]])
    same(found.real, [NAN, 0])


def test_versions_are_never_mixed_within_a_group() -> None:
    mixed = GroupRewards(real=ClipReward(reward=1, version="v1"), rollouts=(ClipReward(reward=1, version="v2"),))
    with pytest.raises(MixedVersions, match=r"\['v1', 'v2'\]"):
        reward_table([mixed])


def test_versions_may_differ_between_groups_if_centred_by_group() -> None:
    groups = [group(1, 2, version="v1"), group(1, 2, version="v2")]
    assert reward_table(groups).shape == (2, 2)
    with pytest.raises(MixedVersions):
        reward_table(groups, centre="batch")


def test_a_reward_is_finite_or_none() -> None:
    with pytest.raises(ValueError, match="never a number"):
        ClipReward(reward=NAN, version="v1")


def test_a_table_can_be_of_one_discriminator() -> None:
    scored = ClipReward(reward=1, version="v", discriminators={"long_term": 5.0})
    same(reward_table([GroupRewards(real=scored, rollouts=(None,))], discriminator="long_term"), [[5, NAN]])


# --- the two discriminators ---------------------------------------------------------------------


def heads(instantaneous: list[float], long_term: list[float]) -> dict[str, Tensor]:
    rows = {"instantaneous": instantaneous, "long_term": long_term}
    return {name: torch.tensor([row], dtype=torch.float64) for name, row in rows.items()}


def test_the_combined_reward_is_the_weighted_mean() -> None:
    tables = heads([4, 1, 3], [0, 5, NAN])
    same(RewardWeights(instantaneous=3, long_term=1).mean(tables), [[3, 2, NAN]])
    same(RewardWeights(instantaneous=2, long_term=0).mean(tables), [[4, 1, 3]])


@pytest.mark.parametrize(("weights", "message"), [({"long_term": -1.0}, "long_term is -1.0"), ({}, "both .* are 0")])
def test_weights_that_say_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RewardWeights(**{"instantaneous": 0.0, "long_term": 0.0, **weights})


def test_joined_advantages_are_those_of_the_combined_reward_unless_something_is_clipped() -> None:
    """The mean is linear. Clipped to 10, the first discriminator can no longer outvote the second."""
    weights = RewardWeights(instantaneous=1, long_term=3)

    def both(tables: dict[str, Tensor], objective: Objective) -> tuple[Advantages, Advantages]:
        found = {name: advantages(table, objective) for name, table in tables.items()}
        return joined(found, weights), advantages(weights.mean(tables), objective)

    ours, theirs = both(heads([4, 1, 3], [9, 5, 2]), Objective())
    torch.testing.assert_close(ours.rollouts, theirs.rollouts)
    torch.testing.assert_close(ours.real, theirs.real)
    ours, theirs = both(heads([0, 100, 0], [0, 0, 8]), Objective(adv_clip=10))
    same(ours.rollouts, [[(10 - 3 * 4) / 4, (-10 + 3 * 4) / 4]])
    same(theirs.rollouts, [[9.5, -9.5]])
    assert ours.num_clipped == 1  # two of one discriminator, none of the other


def test_normalised_discriminators_count_alike_whatever_their_scales() -> None:
    tables, objective = heads([0, 0.01, 0.03], [0, 70, 10]), Objective(normalise_std=True)
    found = joined({name: advantages(table, objective) for name, table in tables.items()}, RewardWeights())
    same(found.rollouts, [[0, 0]], 1e-12)


rewards = st.lists(st.floats(-5, 5), min_size=2, max_size=6)


@given(rewards=rewards, shift=st.floats(-100, 100))
def test_a_constant_added_to_all_rewards_changes_no_advantage(rewards: list[float], shift: float) -> None:
    ours = advantages(reward_table([group(*rewards)]), Objective())
    theirs = advantages(reward_table([group(*(reward + shift for reward in rewards))]), Objective())
    torch.testing.assert_close(ours.rollouts, theirs.rollouts, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.real, theirs.real, rtol=0, atol=1e-9)


# --- weights ------------------------------------------------------------------------------------


def test_exponential_weights() -> None:
    found = rollout_weights(torch.tensor([0.0, 2.0, -2.0, NAN]), Objective(weighting="exp", beta=2.0))
    same(found, [1.0, math.e, 1 / math.e, 0.0], 1e-6)


def test_linear_weights_keep_their_sign_and_scale_each_side() -> None:
    signed = torch.tensor([-3.0, 0.0, 4.0, NAN])
    same(rollout_weights(signed, Objective()), [-3, 0, 4, 0])
    same(rollout_weights(signed, Objective(pos_adv_lambda=0.25)), [-3, 0, 1, 0])
    same(rollout_weights(signed, Objective(neg_adv_lambda=0.0)), [0, 0, 4, 0])


def test_uniform_weights_are_plain_replay_without_rewards() -> None:
    unknown = torch.tensor([-3.0, NAN, 4.0])
    same(rollout_weights(unknown, Objective(weighting="uniform")), [1, 1, 1])
    assert num_weighted(unknown, Objective(weighting="uniform")) == 3
    assert num_weighted(unknown, Objective()) == 2


def test_asymmetric_weights_add_a_real_clips_own_advantage() -> None:
    own = torch.tensor([0.0, 3.0, NAN])
    same(real_weights(own, Objective(lambda_sft=0.5)), [0.5, 0.5, 0.5])
    same(real_weights(own, Objective(lambda_sft=0.5, asymmetric=True)), [0.5, 3.5, 0.5])


def test_lambda_aw_rises_linearly() -> None:
    ramped = Objective(lambda_aw=0.2, lambda_aw_ramp_steps=4)
    assert [ramped.lambda_aw_at(step) for step in range(6)] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.2])
    assert Objective(lambda_aw=0.2).lambda_aw_at(0) == 0.2


def test_means_are_over_real_clips_and_rewarded_rollouts() -> None:
    found = coefficients(
        torch.tensor([0.0, 0.0]),
        torch.tensor([[2.0, NAN], [-2.0, 4.0]]),
        Objective(lambda_sft=3.0),
        lambda_aw=0.1,
        num_real=2,
        num_known=3,
    )
    same(found.real, [1.5, 1.5])
    same(found.rollouts, [[0.2 / 3, 0], [-0.2 / 3, 0.4 / 3]], 1e-7)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"adv_clip": -1.0}, {"pos_adv_lambda": 1.5}, {"lambda_sft": -1.0}], ids=str
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"objective.{next(iter(wrong))} is"):
        replace(Objective(), **wrong)


# --- the loss -----------------------------------------------------------------------------------

B, P, D = 3, 2, 4


def problem() -> tuple[Tensor, Tensor, Coefficients]:
    """Parameters [D], samples [B,1+P,D] and the coefficients of a step with missing rewards."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(D, generator=generator, dtype=torch.float64)
    samples = torch.randn(B, 1 + P, D, generator=generator, dtype=torch.float64)
    found = advantages(reward_table([group(4, 1, 6), group(None, 2, None), group(9, -30, 3)]), OBJECTIVE)
    lambda_aw = OBJECTIVE.lambda_aw_at(7)
    return (
        theta,
        samples,
        coefficients(found.real, found.rollouts, OBJECTIVE, lambda_aw=lambda_aw, num_real=B, num_known=5),
    )


OBJECTIVE = Objective(lambda_aw=0.3, asymmetric=True, lambda_aw_ramp_steps=10)


def losses(theta: Tensor, samples: Tensor) -> Tensor:
    """A nonlinear loss per sample."""
    return (torch.tanh(samples @ theta) - samples.sum(dim=-1)) ** 2


def naive(theta: Tensor, samples: Tensor) -> Tensor:
    """The formula of shift.py's discriminator, written out for `problem` with the figures of OBJECTIVE."""
    values = losses(theta, samples)
    real_advantages = [0.5, 0.0, 10.0]  # 4 - 3.5; unknown; 9 - -13.5 held at 10
    weights = {(0, 1): -2.5, (0, 2): 2.5, (1, 1): 0.0, (2, 1): -10.0, (2, 2): 10.0}
    sft = sum(((1.0 + real_advantages[b]) * values[b, 0] for b in range(B)), torch.tensor(0.0)) / B
    aw = sum((weight * values[at] for at, weight in weights.items()), torch.tensor(0.0)) / 5
    return sft + 0.3 * 0.7 * aw


def by_chunk(theta: Tensor, samples: Tensor, found: Coefficients) -> tuple[Tensor, Tensor]:
    theta = theta.clone().requires_grad_()

    def chunk(column: int) -> Callable[[], Tensor]:
        return lambda: losses(theta, samples[:, column])

    def accumulate(loss: Tensor) -> None:
        loss.backward()

    result = backward_by_chunk([chunk(column) for column in range(1 + P)], found, accumulate)
    assert theta.grad is not None
    return result.total, theta.grad


def test_the_loss_by_chunks_equals_the_formula() -> None:
    theta, samples, found = problem()
    total, gradient = by_chunk(theta, samples, found)
    leaf = theta.clone().requires_grad_()
    expected = naive(leaf, samples)
    expected.backward()
    torch.testing.assert_close(total, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=0)


def test_the_gradient_by_chunks_matches_finite_differences() -> None:
    theta, samples, found = problem()
    _, gradient = by_chunk(theta, samples, found)
    h = 1e-6
    for axis in torch.eye(D, dtype=torch.float64):
        slope = (naive(theta + h * axis, samples) - naive(theta - h * axis, samples)) / (2 * h)
        assert float(gradient @ axis) == pytest.approx(float(slope), rel=1e-6)


def test_a_negative_advantage_pushes_away_from_its_rollout() -> None:
    theta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = Coefficients(real=torch.tensor([0.0]), rollouts=torch.tensor([[-1.0]]))
    backward_by_chunk([lambda: (theta - 5) ** 2, lambda: (theta - 2) ** 2], found, lambda loss: loss.backward())
    assert theta.grad is not None
    assert float(-theta.grad) < 0  # descent moves away from 2


def test_two_processes_weigh_like_one_with_all_samples() -> None:
    rollouts = torch.tensor([[1.0, NAN], [2.0, -1.0], [NAN, NAN], [3.0, 1.0]])
    real = torch.zeros(4)
    whole = coefficients(real, rollouts, OBJECTIVE, lambda_aw=0.1, num_real=4, num_known=5)
    halves = [
        coefficients(real[half], rollouts[half], OBJECTIVE, lambda_aw=0.1, num_real=2, num_known=2.5)
        for half in (slice(0, 2), slice(2, 4))
    ]
    for name in ("real", "rollouts"):
        averaged = torch.cat([getattr(half, name) for half in halves]) / 2
        torch.testing.assert_close(averaged, getattr(whole, name))


def test_without_rollouts_only_the_supervised_term_is_left() -> None:
    theta = torch.tensor([1.0, 2.0], requires_grad=True)
    found = coefficients(torch.zeros(2), torch.zeros(2, 0), Objective(), lambda_aw=1.0, num_real=2, num_known=0)
    result = backward_by_chunk([lambda: theta**2], found, lambda loss: loss.backward())
    assert float(result.total) == 2.5
    assert result.rollouts.shape == (2, 0)
    assert float(result.aw_term) == 0.0
