"""Attacks one clip for `motion-reward attack`: scores its degenerate suite and runs the searches on it.

The clip is decoded as the server decodes it, and only its first window is used. All copies are submitted losslessly,
in one group and with the same query points. A finished clip is kept as one line of a file, so that a second run
goes on where the first one stopped.

Legend: K kinds (REAL, then KINDS), G disguises (PLAIN first), V values in the order of VALUES.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from protos.json_codec import to_json
from protos.types import Clip, Context
from reward_server.data.shots import Shot, tensor_submission
from reward_server.errors import RewardServerError
from reward_server.evaluation.degenerates import DISGUISES, KINDS, PLAIN, REAL, broken, disguised
from reward_server.evaluation.floors import CUES, VALUES, plain_cues
from reward_server.evaluation.kept import KeptResults
from reward_server.evaluation.scoring import (
    CLIPS_PER_REQUEST,
    RewardSource,
    bounded,
    comparison,
    count_outcomes,
    derived_seed,
    failed_outcome,
    payload_bytes,
    rewards_of,
)
from reward_server.evaluation.search import SEARCHES, Budget, Find, find
from reward_server.faults import with_fault
from reward_server.faults.still_clips import STILL, fastest_motion
from reward_server.settings import Settings
from reward_server.stats import Floats

COMBINED = VALUES.index("combined")
ROWS = (REAL, *KINDS)
STRONG = ("shuffled", "jittered", "stutter")  # faults at full strength that, with "static", set the scale of a gain
STEPS_BESIDE_SEARCH = len(ROWS) + 1


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """The result for one clip. A clip that does not decode has an `error`, a still one only its motion."""

    clip: str
    motion: float | None = None  # frame heights per second, see faults.still_clips.fastest_motion
    error: str = ""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    values: Floats = field(default_factory=lambda: np.full((len(ROWS), len(DISGUISES), len(VALUES)), math.nan))
    strong: float = math.nan  # mean combined reward of "static" and STRONG
    finds: tuple[Find, ...] = ()

    @property
    def is_still(self) -> bool:
        return self.motion is not None and self.motion < STILL

    @property
    def real(self) -> float:
        """The clip's own combined reward; NaN if it has none."""
        return float(self.values[ROWS.index(REAL), list(DISGUISES).index(PLAIN), COMBINED])

    def gain(self, search: str) -> float:
        """What a search gained, in distances between the clip and its strong faults; NaN without such a distance."""
        rewards = [one.reward for one in self.finds if one.search == search and one.reward is not None]
        distance = self.real - self.strong
        return (rewards[0] - self.real) / distance if rewards and distance > 0 else math.nan

    def as_json(self) -> dict[str, Any]:
        return {
            "clip": self.clip,
            "motion": self.motion,
            "error": self.error,
            "outcomes": dict(self.outcomes),
            "values": _absent_as_null(self.values.tolist()),
            "strong": _absent_as_null(self.strong),
            "finds": [one.as_json() for one in self.finds],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Attacked:
        """The result that `as_json` wrote."""
        known = {
            "values": np.array(record["values"], dtype=np.float64),  # null becomes NaN
            "strong": math.nan if record["strong"] is None else record["strong"],
            "finds": tuple(Find(**one) for one in record["finds"]),
        }
        return cls(**{**record, **known})


def attack(
    shot: Shot,
    scorer: RewardSource,
    settings: Settings,
    finished: KeptResults,
    *,
    budget: Budget,
    seed: int = 0,
    step: Callable[[], None] = lambda: None,
) -> Attacked:
    """Attack one clip, unless `finished` has its result, and keep it there if all its copies have a reward.

    `step` is called after each kind and each generation.
    """
    try:
        sampling = replace(scorer.sampling, max_windows=1)
        clip = scorer.decode(shot.submission(), sampling, settings).windows[0].clip
    except (RewardServerError, OSError) as error:
        outcome = failed_outcome(error)
        told = outcome.error.message if outcome.error else ""
        return Attacked(clip=shot.name, error=told, outcomes=count_outcomes([outcome]))
    key = _key(shot, clip, scorer, budget, seed)
    known = finished.get(key)
    if known is None:
        result = _attack(shot, clip, scorer, budget=budget, seed=seed, step=step)
        known = result.as_json()
        if result.outcomes.keys() <= {"ok"}:  # what timed out or failed is tried again
            finished.add(key, known)
    return replace(Attacked.from_json(known), clip=shot.name)


def _attack(
    shot: Shot, clip: Clip, scorer: RewardSource, *, budget: Budget, seed: int, step: Callable[[], None]
) -> Attacked:
    motion = fastest_motion(clip)
    still = Attacked(clip=shot.name, motion=motion)
    if still.is_still:
        return still
    own = derived_seed(seed, shot.short_name)
    judge = _Judge(scorer, comparison(shot.short_name, own))
    suite = replace(still, values=_suite(clip, judge, own, step))
    strong = [suite.values[ROWS.index("static"), list(DISGUISES).index(PLAIN), COMBINED]]
    strong += judge.combined([with_fault(clip, name, 1.0, own) for name in STRONG]).tolist()
    step()

    def score(clips: Iterable[Clip]) -> Floats:
        rewards = judge.combined(clips)
        step()
        return rewards

    searches = SEARCHES if budget.generations and not math.isnan(suite.real) else ()
    finds = tuple(find(clip, name, score, budget, seed=own) for name in searches)
    return replace(suite, strong=float(np.mean(strong)), finds=finds, outcomes=dict(judge.outcomes))


def _suite(clip: Clip, judge: _Judge, seed: int, step: Callable[[], None]) -> Floats:
    """Values [K,G,V] of every kind under every disguise."""
    rows = []
    for kind in ROWS:
        still = broken(clip, kind)
        clips = [disguised(still, disguise, seed) for disguise in DISGUISES]
        cues = [[cues.get(name, math.nan) for name in CUES] for cues in map(plain_cues, clips)]
        rows.append(np.concatenate([judge.rewards(clips), np.array(cues)], axis=1))
        step()
    return np.stack(rows)


class _Judge:
    """Scores copies of one clip, and counts the outcomes."""

    def __init__(self, scorer: RewardSource, context: Context) -> None:
        self._scorer, self._context = scorer, context
        self.outcomes: Counter[str] = Counter()

    def rewards(self, clips: Iterable[Clip]) -> Floats:
        """Rewards [N,3] in the order of REWARDS, NaN where there is none."""
        submissions = (tensor_submission(clip, self._context) for clip in clips)
        batches = bounded(submissions, payload_bytes, CLIPS_PER_REQUEST)
        outcomes = [outcome for batch in batches for outcome in self._scorer.score(batch)]
        self.outcomes.update(count_outcomes(outcomes))
        return np.stack([rewards_of(outcome) for outcome in outcomes])

    def combined(self, clips: Iterable[Clip]) -> Floats:
        return self.rewards(clips)[:, COMBINED]


def _key(shot: Shot, clip: Clip, scorer: RewardSource, budget: Budget, seed: int) -> str:
    """Identifies what is attacked, with what and how. The clip's name counts, because its seeds come from it."""
    told = (shot.short_name, clip.fps, clip.frames.shape, to_json(scorer.model), ROWS, tuple(DISGUISES), SEARCHES)
    digest = hashlib.sha256(repr((told, budget, seed)).encode())
    digest.update(clip.frames.tobytes())
    return digest.hexdigest()


def _absent_as_null(values: Any) -> Any:
    """Nested lists of numbers with None for NaN."""
    if isinstance(values, list):
        return [_absent_as_null(value) for value in values]
    return None if math.isnan(values) else values
