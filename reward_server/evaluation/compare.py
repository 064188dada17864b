"""Implements `motion-reward compare A B`: which of two clips moves more really, by how much, and with what error.

Both clips are scored with several draws of query points, and each has the standard error of `protos/spread.py`: over
its windows, each a mean over draws; with a single window over the draws. A difference counts if it lies outside the
95 % range of Welch's t test. The error knows nothing of what the reward cannot see.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scipy import special

from protos.json_codec import to_json
from protos.spread import standard_error
from protos.types import Context, Logits, Model, Outcome, Reward
from reward_server.data.shots import Shot, find_shots
from reward_server.errors import BadRequest, RewardServerError
from reward_server.evaluation.report import number, write_json
from reward_server.evaluation.scoring import RewardSource, failed_outcome, open_scorer
from reward_server.settings import Settings

DIFFERENT, FAILED, ALIKE = 0, 1, 3  # exit codes; 2 is wrong usage


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A clip's combined reward with its standard error, in logits, and the degrees of freedom of that error.

    The reward is the mean over draws, and so is its percentile among real clips (None if one has none). The error is
    that of the logits before clipping.
    """

    clip: str
    reward: float
    error: float
    freedom: int
    percentile: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The difference first minus second, its standard error, and the half width of its 95 % range, in logits."""

    first: Measured
    second: Measured
    difference: float
    error: float
    margin: float

    @property
    def higher(self) -> str | None:
        """The clip that moves more really; None if the difference is within the noise."""
        if abs(self.difference) <= self.margin:
            return None
        return (self.first if self.difference > 0 else self.second).clip

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "higher": self.higher}


def run(
    paths: tuple[str, str],
    settings: Settings,
    *,
    server: str | None = None,
    draws: int = 4,
    json_path: Path | None = None,
    fps: float | None = None,
    console: Console | None = None,
) -> int:
    """Run the command: print the verdict and write JSON. Returns DIFFERENT, ALIKE, or FAILED if a clip has no reward.

    Raises BadRequest if a path does not name exactly one clip.
    """
    console = console or Console()
    shots = [_one_shot(path, fps) for path in paths]
    with open_scorer(settings, server) as scorer:
        outcomes = [_outcomes(shot, scorer, draws) for shot in shots]
        model = scorer.model
    for shot, drawn in zip(shots, outcomes, strict=True):
        if error := next((outcome.error for outcome in drawn if outcome.error), None):
            Console(stderr=True).print(f"{shot.name}: {error.code}: {error.message}", markup=False)
            return FAILED
    found = compared(*(measured(s.name, o, model) for s, o in zip(shots, outcomes, strict=True)))
    document = {"model": to_json(model), "draws": draws, **found.as_json()}
    if json_path == Path("-"):
        print(json.dumps(document, allow_nan=False))
    else:
        write_json(json_path, document)
        console.print(*_told(found), sep="\n", markup=False, highlight=False)
    return DIFFERENT if found.higher else ALIKE


def measured(name: str, outcomes: Sequence[Outcome], model: Model) -> Measured:
    """The mean reward of one clip over its draws (at least two), with its standard error. All have a reward."""
    rewards = [outcome.reward for outcome in outcomes if outcome.reward]
    error = standard_error([_logits(reward) for reward in rewards], model.weights)
    assert error, "there are at least two draws"
    percentiles = [reward.standing.combined_percentile if reward.standing else None for reward in rewards]
    known = [percentile for percentile in percentiles if percentile is not None]
    return Measured(
        clip=name,
        reward=float(np.mean([reward.combined for reward in rewards])),
        error=error.combined,
        freedom=(error.num_windows if error.num_windows > 1 else error.num_draws) - 1,
        percentile=float(np.mean(known)) if len(known) == len(rewards) else None,
    )


def compared(first: Measured, second: Measured) -> Comparison:
    """Compare two clips by Welch's t test at 95 %. Without any error every difference counts."""
    squares = [one.error**2 for one in (first, second)]
    total = sum(squares)
    margin = 0.0
    if total > 0:
        ends = zip(squares, (first.freedom, second.freedom), strict=True)
        freedom = total**2 / sum(square**2 / own for square, own in ends)
        margin = float(special.stdtrit(freedom, 0.975)) * math.sqrt(total)
    difference = first.reward - second.reward
    return Comparison(first=first, second=second, difference=difference, error=math.sqrt(total), margin=margin)


def _logits(reward: Reward) -> list[Logits]:
    """The logits of each window; of a clip without windows in the answer, those of the clip."""
    return [window.logits for window in reward.windows] or [reward.logits]


def _outcomes(shot: Shot, scorer: RewardSource, draws: int) -> list[Outcome]:
    try:
        return scorer.score([shot.submission(Context(query_seed=seed)) for seed in range(draws)])
    except (RewardServerError, OSError) as error:
        return [failed_outcome(error)]


def _one_shot(path: str, fps: float | None) -> Shot:
    shots = find_shots([path], fps)
    if len(shots) != 1:
        raise BadRequest(f"'{path}' names {len(shots)} clips, and compare takes one on each side; name one file")
    return shots[0]


def _told(found: Comparison) -> list[str]:
    ends = (found.first, found.second)
    rows = [
        f"{one.clip}: reward {number(one.reward)} ± {number(one.error)} (standard error), "
        f"percentile {number(one.percentile, 0)} among real clips"
        for one in ends
    ]
    by = f"{abs(found.difference):.2f} ± {found.margin:.2f} (95 % range)"
    if found.higher is None:
        return [*rows, f"not different: {by}"]
    real, other = ends if found.difference > 0 else reversed(ends)
    return [*rows, f"{real.clip} moves more really than {other.clip} by {by}"]
