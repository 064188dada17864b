"""Tests the floor of advantages by dynamics on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from protos.types import DYNAMICS, Dynamics
from trainer.errors import ConfigError
from trainer.measures.dynamics_floor import Floored, dynamics_table, floored
from trainer.objective import Advantages, ClipReward, GroupRewards, Objective, advantages, reward_table

NAN = math.nan


def clip(reward: float, motion: float | None) -> ClipReward:
    numbers = {**dict.fromkeys(DYNAMICS, 0.5), "total_motion": motion}
    dynamics = None if motion is None else Dynamics(**numbers)  # type: ignore[arg-type]
    return ClipReward(reward=reward, version="v", dynamics=dynamics)


def floor_of(*groups: GroupRewards, share: float = 0.5, centre: str = "group") -> tuple[Advantages, Floored]:
    """Advantages before and after the floor."""
    gained = advantages(reward_table(groups), Objective(centre=centre))  # type: ignore[arg-type]
    return gained, floored(gained, dynamics_table(groups)[..., DYNAMICS.index("total_motion")], share)


def group(real: ClipReward | None, *rollouts: ClipReward | None) -> GroupRewards:
    return GroupRewards(real=real, rollouts=rollouts)


def same(found: Tensor, expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=0, atol=0, equal_nan=True)


def test_a_rollout_that_moves_too_little_is_the_worst_of_its_group() -> None:
    """The real clip moves by 2. The rollout with the best reward moves by 0.9, less than half of that."""
    before, found = floor_of(group(clip(5, 2.0), clip(6, 0.9), clip(1, 1.0), clip(2, 3.0)))
    same(before.rollouts, [[3, -2, -1]])
    same(found.advantages.rollouts, [[-2, -2, -1]])
    assert torch.equal(found.advantages.real, before.real)
    assert found.rollouts.tolist() == [[True, False, False]]
    assert (found.share, found.num_groups_below, found.num_groups_unknown) == (1 / 3, 0, 0)


def test_one_that_is_the_lowest_already_stays_so() -> None:
    before, found = floor_of(group(clip(5, 2.0), clip(6, 2.0), clip(1, 0.1), clip(2, 3.0)))
    assert torch.equal(found.advantages.rollouts, before.rollouts)
    assert found.rollouts.tolist() == [[False, True, False]]


def test_each_group_has_the_floor_of_its_own_real_clip() -> None:
    slow = group(clip(0, 0.1), clip(4, 0.06), clip(0, 0.07))
    fast = group(clip(0, 4.0), clip(4, 1.9), clip(0, 2.1))
    _, found = floor_of(slow, fast)
    same(found.advantages.rollouts, [[2, -2], [-2, -2]])
    assert found.share == 1 / 4


def test_the_lowest_is_the_groups_own_if_advantages_are_centred_by_batch() -> None:
    _, found = floor_of(
        group(clip(0, 2.0), clip(9, 0.1), clip(7, 2.0)), group(clip(0, 2.0), clip(1, 2.0), clip(3, 2.0)), centre="batch"
    )
    same(found.advantages.rollouts, [[2, 2], [-4, -2]])


def test_a_group_that_is_below_as_a_whole_is_left_as_it_is_and_counted() -> None:
    before, found = floor_of(group(clip(5, 2.0), clip(6, 0.9), None, clip(2, 0.0)))
    assert torch.equal(found.advantages.rollouts.nan_to_num(7), before.rollouts.nan_to_num(7))
    assert (found.share, found.num_groups_below, found.num_groups_unknown) == (0.0, 1, 0)


def test_a_group_without_its_real_clips_reward_is_left_as_it_is_and_counted() -> None:
    before, found = floor_of(group(None, clip(6, 0.0), clip(2, 1.0)), group(None, None, None))
    assert torch.equal(found.advantages.rollouts.nan_to_num(7), before.rollouts.nan_to_num(7))
    assert (found.share, found.num_groups_below, found.num_groups_unknown) == (0.0, 0, 1)


def test_a_missing_rollout_stays_missing_and_is_not_the_lowest() -> None:
    _, found = floor_of(group(clip(5, 2.0), clip(6, 0.9), None, clip(2, 3.0)))
    same(found.advantages.rollouts, [[-2, NAN, -2]])
    assert found.share == 1 / 2


def test_a_rollout_exactly_at_the_floor_or_before_a_still_real_clip_is_not_below() -> None:
    before, found = floor_of(group(clip(5, 2.0), clip(6, 1.0), clip(2, 1.0)), group(clip(5, 0.0), clip(6, 0.0), None))
    assert torch.equal(found.advantages.rollouts.nan_to_num(7), before.rollouts.nan_to_num(7))


def test_rewards_without_dynamics_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"without dynamics; update the server, or set rewards.min_dynamics=0"):
        floor_of(group(clip(5, None), clip(6, None), clip(2, None)))


def test_the_table_holds_every_number_and_nan_where_there_is_none() -> None:
    table = dynamics_table([group(clip(5, 2.0), None, clip(1, None))])
    assert table.shape == (1, 3, len(DYNAMICS))
    same(table[0], [[2.0, 0.5, 0.5, 0.5, 0.5], [NAN] * 5, [NAN] * 5])
