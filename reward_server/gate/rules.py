"""Defines the rules of the gate: which reward is high enough, by percentile or by the user's own accepted clips.

The second rule is a split conformal prediction. Let n accepted clips and one new good clip be exchangeable, so that
every order of their n + 1 rewards is equally likely. Then the new reward is below the k-th lowest of the accepted ones
with a probability of at most k / (n + 1). With k = floor(share * (n + 1)), which is n + 1 - ceil((n + 1)(1 - share)),
that is at most `share` (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005). Equal rewards only
lower the probability, because a clip at the threshold passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from protos.types import Outcome, Reward
from reward_server.errors import BadRequest

MAX_REFUSED = 5.0  # per cent of good clips
NO_STANDING = "the server sends no percentiles, it is older than this command; score in this process, or upgrade it"


class Verdict(StrEnum):
    PASSED = "passed"
    BELOW = "below"
    UNSCORED = "unscored"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on one clip, the value that was compared (None if there is none), and why it does not pass."""

    verdict: Verdict
    value: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PercentileRule:
    """A clip passes from this percentile among real clips on, 0..100. The value is the percentile of `combined`."""

    min_percentile: float

    @property
    def threshold(self) -> float:
        return self.min_percentile

    @property
    def told(self) -> str:
        return f"a clip passes from percentile {self.min_percentile:g} among real clips on"

    def judge(self, outcome: Outcome) -> Judgement:
        """A clip without a percentile is unscored, with the reason: it is never taken for good or bad."""
        reward = outcome.reward
        if reward is None:
            return _unscored(outcome)
        standing = reward.standing
        if standing is None or standing.combined_percentile is None:
            return Judgement(verdict=Verdict.UNSCORED, reason=standing.missing if standing else NO_STANDING)
        value = standing.combined_percentile
        return _compared(value, self.threshold, f"percentile {value:g} is below {self.min_percentile:g}")


@dataclass(frozen=True, kw_only=True)
class AcceptedRule:
    """A clip passes unless its combined reward is below `threshold`, in logits.

    The threshold is made of `num_accepted` clips, so that at most `max_refused` per cent of good clips are refused.
    """

    threshold: float
    num_accepted: int
    max_refused: float

    @classmethod
    def of(cls, rewards: Sequence[float], max_refused: float = MAX_REFUSED) -> AcceptedRule:
        """The rule from the combined rewards of accepted clips. Raises BadRequest if they are too few."""
        position = refused_position(len(rewards), max_refused)
        if position < 1:
            raise BadRequest(
                f"{len(rewards)} accepted clips are too few for 'at most {max_refused:g} % of good clips are refused': "
                f"the lowest of n is undercut by one new good clip in n + 1, so it takes {least_clips(max_refused)} "
                "different clips that can be scored; accept more, raise --max-refused, or use --min-percentile"
            )
        threshold = sorted(rewards)[position - 1]
        return cls(threshold=threshold, num_accepted=len(rewards), max_refused=max_refused)

    @property
    def told(self) -> str:
        return (
            f"a clip passes from a combined reward of {self.threshold:.3f} on: of new clips like the "
            f"{self.num_accepted} accepted ones, at most {self.max_refused:g} % are refused"
        )

    def judge(self, outcome: Outcome) -> Judgement:
        reward: Reward | None = outcome.reward
        if reward is None:
            return _unscored(outcome)
        told = f"combined reward {reward.combined:.3f} is below {self.threshold:.3f}, the threshold of accepted clips"
        return _compared(reward.combined, self.threshold, told)


Rule = PercentileRule | AcceptedRule


def refused_position(num_accepted: int, max_refused: float) -> int:
    """The position of the threshold among the accepted rewards, from the lowest, 1 and up; 0 if they are too few.

    The share is taken as the decimal number that it is written as: 7 % of 100 is 7, and not a little more.
    """
    return math.floor(_share(max_refused) * (num_accepted + 1))


def least_clips(max_refused: float) -> int:
    """The least number of accepted clips for this share: 19 for 5 %."""
    return math.ceil(1 / _share(max_refused)) - 1


def _share(percent: float) -> Fraction:
    return Fraction(str(percent)) / 100


def _compared(value: float, threshold: float, reason: str) -> Judgement:
    if value < threshold:
        return Judgement(verdict=Verdict.BELOW, value=value, reason=reason)
    return Judgement(verdict=Verdict.PASSED, value=value)


def _unscored(outcome: Outcome) -> Judgement:
    assert outcome.error, "an outcome has a reward or an error"
    return Judgement(verdict=Verdict.UNSCORED, reason=f"{outcome.error.code}: {outcome.error.message}")
