"""Tests whether learned rewards point the right way (Level 2), on real scenes and rollouts of the base.

`score_groups(...)` asks a running reward server; `discriminators.py` starts one with the seed's own discriminators.
`direction(...)` computes how well each discriminator separates real clips from rollouts, and what its advantages
favour. G groups, each with a real clip and its P rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from experiments.proof.known_rewards import measures
from experiments.proof.verdicts import RESAMPLES, Floats, Interval, percentile_interval
from protos.client import RewardClient
from protos.codec import clip_to_tensor
from protos.types import REWARDS, Clip, Context, Media, Origin, Submission
from reward_server.stats import auc
from trainer.errors import MissingRewards
from trainer.policies.protocol import Policy
from trainer.seeds import derived_seed

FAVOURS = ("speed_px", "look_error", "acceleration_px")
SPEED_ALONE = "speed_px, look_error alike"  # with the look held fixed, because faster rollouts may look worse


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredGroups:
    """Rewards by discriminator and measures by name, [G,1+P] each, with the real clip first."""

    rewards: dict[str, Floats]
    measures: dict[str, Floats]


def groups_of(policy: Policy, clips: Sequence[Clip], num_rollouts: int, *, seed: int) -> list[list[Clip]]:
    """Each clip after a pass through the autoencoder, then its rollouts. Otherwise blur would reveal the rollouts."""
    groups = []
    for number, example in enumerate(policy.encode(clips, [""] * len(clips))):
        seeds = [derived_seed(seed, "learned", number, at) for at in range(num_rollouts)]
        groups.append(policy.decode([example.latents, *policy.sample(example, seeds)]))
    return groups


def score_groups(groups: Sequence[Sequence[Clip]], client: RewardClient, *, timeout_s: float) -> ScoredGroups:
    """Score all groups. Raises MissingRewards if a clip has no reward: the mean of the rest would be biased."""
    job_ids = [
        client.submit([_submission(clip, number, at)])[0]
        for number, group in enumerate(groups)
        for at, clip in enumerate(group)
    ]
    outcomes = {outcome.job_id: outcome for outcome in client.await_outcomes(job_ids, timeout_s)}
    found = [outcomes[job_id].reward if job_id in outcomes else None for job_id in job_ids]
    rewards = [reward for reward in found if reward]
    if len(rewards) < len(found):
        raise MissingRewards(
            f"{len(found) - len(rewards)} of {len(found)} clips have no reward within {timeout_s:g} s; "
            "check that the server has a live worker and accepts clips of this size, and try again"
        )
    shape = len(groups), len(groups[0])
    of_clips = [measures(clip) for group in groups for clip in group]
    return ScoredGroups(
        rewards={
            discriminator: np.array([getattr(reward, discriminator) for reward in rewards]).reshape(shape)
            for discriminator in REWARDS
        },
        measures={name: np.array([getattr(one, name) for one in of_clips]).reshape(shape) for name in FAVOURS},
    )


def _submission(clip: Clip, number: int, at: int) -> Submission:
    context = Context(group_id=f"proof-{number}", origin=Origin.ROLLOUT if at else Origin.REAL)
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=context)


def direction(scored: ScoredGroups) -> dict[str, dict[str, Any]]:
    """For each discriminator: its AUC, rank correlations of its advantages with FAVOURS, and whether it points right.

    As in plan.md, it points right if its AUC is above 0.5 and its advantage does not fall with speed.
    """
    found: dict[str, dict[str, Any]] = {}
    for discriminator, rewards in scored.rewards.items():
        parted = _parted(rewards)
        favoured = {name: _favoured(rewards, values) for name, values in scored.measures.items()}
        favoured[SPEED_ALONE] = _favoured_alone(rewards, scored.measures["speed_px"], scored.measures["look_error"])
        right = parted.low > 0.5 and favoured["speed_px"].high >= 0
        found[discriminator] = {"auc": parted, **favoured, "points_right": right}
    return found


def _parted(rewards: Floats) -> Interval:
    return _bootstrap(lambda rows: auc(rewards[rows, 0], rewards[rows, 1:].ravel()), len(rewards))


def _favoured(rewards: Floats, values: Floats) -> Interval:
    return _bootstrap(lambda rows: advantage_correlation(rewards[rows], values[rows]), len(rewards))


def _favoured_alone(rewards: Floats, values: Floats, given: Floats) -> Interval:
    return _bootstrap(lambda rows: partial_correlation(rewards[rows], values[rows], given[rows]), len(rewards))


def advantage_correlation(rewards: Floats, values: Floats) -> float:
    """Rank correlation over rollouts, each minus the mean of its group. 0 if rewards or values are constant."""
    ranks = [rankdata((of[:, 1:] - of[:, 1:].mean(axis=1, keepdims=True)).ravel()) for of in (rewards, values)]
    if min(np.ptp(rank) for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def partial_correlation(rewards: Floats, values: Floats, given: Floats) -> float:
    """`advantage_correlation` of the parts that `given` does not explain, linearly in the ranks."""
    own, first, second = (
        advantage_correlation(one, other) for one, other in ((rewards, values), (rewards, given), (values, given))
    )
    unexplained = (1 - first**2) * (1 - second**2)
    return (own - first * second) / unexplained**0.5 if unexplained > 0 else 0.0


def _bootstrap(statistic: Callable[[NDArray[np.int64]], float], num_groups: int) -> Interval:
    """The statistic with a bootstrap interval over groups."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(num_groups, size=num_groups)) for _ in range(RESAMPLES // 4)]
    return percentile_interval(statistic(np.arange(num_groups)), drawn)
