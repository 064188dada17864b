"""Defines the ladder of `motion-reward sanity`: its rungs, its figures and its table.

Legend: C ladders, D faults, R rungs (the real clip, then STRENGTHS), 3 rewards in the order of REWARDS, V values
in the order of VALUES.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from rich.table import Table

from protos.types import REWARDS, Outcome
from reward_server.evaluation import report
from reward_server.evaluation.floors import CUES, VALUES
from reward_server.evaluation.report import Figures
from reward_server.evaluation.scoring import OUTCOME_COLUMNS, outcome_row, rewards_of
from reward_server.faults import HELD_OUT, NAMES, STRENGTHS
from reward_server.faults.still_clips import HOLDING
from reward_server.report.clips import Draw
from reward_server.stats import Floats, falling, ordered, share_bootstrap

REAL = "real"
RETIMED = ("speed_change", "fps_relabelled", "surging")  # faults that could also be plausible clips at another speed
RUNGS = (0.0, *STRENGTHS)
Level = tuple[str, float]  # a fault and its strength


def levels_of(faults: Sequence[str] = NAMES) -> list[Level]:
    """Name and strength of every rung of a ladder with these faults, the real clip first."""
    return [(REAL, 0.0), *((name, strength) for name in faults for strength in STRENGTHS)]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One clip of a ladder with its outcome. The real clip has strength 0."""

    clip: str
    start_s: float
    fault: str
    strength: float
    outcome: Outcome
    cues: Mapping[str, float] = field(default_factory=dict)  # empty if the clip does not decode
    draw: Draw | None = field(default=None, repr=False)  # its frames, if it was to be explained


def best_copy(ladder: Sequence[Rung]) -> tuple[Rung, Rung] | None:
    """The real clip of a ladder, and its faulty copy with the highest combined reward; None without either."""
    scored = [rung for rung in ladder if rung.outcome.reward]
    real = [rung for rung in scored if rung.fault == REAL]
    faulty = [rung for rung in scored if rung.fault != REAL]
    if not real or not faulty:
        return None
    return real[0], max(faulty, key=lambda rung: rung.outcome.reward.combined if rung.outcome.reward else -math.inf)


def reward_array(rungs: Sequence[Rung]) -> Floats:
    """Rewards [C,D,R,3], NaN where there is none. The real clip's rewards are in rung 0 of every fault."""
    return _value_array(rungs)[..., : len(REWARDS)]


def _value_array(rungs: Sequence[Rung]) -> Floats:
    """Rewards and cues [C,D,R,V], in the same way."""
    ladders = [list(ladder) for _, ladder in groupby(rungs, key=_ladder_of)]
    values = np.full((len(ladders), len(NAMES), len(RUNGS), len(VALUES)), math.nan)
    for ladder, values_DRV in zip(ladders, values, strict=True):
        for rung in ladder:
            place = slice(None) if rung.fault == REAL else NAMES.index(rung.fault)
            cues = [rung.cues.get(name, math.nan) for name in CUES]
            values_DRV[place, RUNGS.index(rung.strength)] = [*rewards_of(rung.outcome), *cues]
    return values


def num_still(rungs: Sequence[Rung]) -> int:
    """How many clips have no fault that only holds the picture, because they hardly move, at least in one window."""
    ladders = [list(ladder) for _, ladder in groupby(rungs, key=_ladder_of)]
    still = [one for one in ladders if len(one) > 1 and all(rung.fault not in HOLDING for rung in one)]
    return len({ladder[0].clip for ladder in still})


def ladder_figures(rungs: Sequence[Rung]) -> list[Figures]:
    """Figures of each reward and cue: each fault, all together, all trained ones but RETIMED, and HELD_OUT."""
    values = _value_array(rungs)
    clips = [clip for (clip, _), _ in groupby(rungs, key=_ladder_of)]
    kept = [index for index, name in enumerate(NAMES) if name not in (*RETIMED, *HELD_OUT)]
    held_out = [NAMES.index(name) for name in HELD_OUT]
    groups = [*((name, [index]) for index, name in enumerate(NAMES)), ("all", list(range(len(NAMES))))]
    groups += [("all but retimed", kept), ("never trained on", held_out)]
    return [
        _figures(value_name, name, values[..., index][:, chosen], clips)
        for index, value_name in enumerate(VALUES)
        for name, chosen in groups
    ]


def _figures(reward_name: str, name: str, rewards_CDR: Floats, clips: Sequence[str]) -> Figures:
    real, faulty = rewards_CDR[..., :1], rewards_CDR[..., 1:]
    by_clip = [ordered(real[rows], faulty[rows]) for rows in _rows_of(clips)]
    falls = [fall for rewards_R in rewards_CDR.reshape(-1, len(RUNGS)) if (fall := _fall(rewards_R)) is not None]
    return Figures(
        reward_name=reward_name,
        name=name,
        by_strength=tuple(ordered(real[..., 0], faulty[..., rung]) for rung in range(len(STRENGTHS))),
        total=ordered(real, faulty),
        interval=share_bootstrap(by_clip),
        falling=float(np.mean(falls)) if falls else None,
    )


def _fall(rewards_R: Floats) -> float | None:
    """`falling` of one ladder and fault; None without the real clip's reward or with fewer than three rungs."""
    present = ~np.isnan(rewards_R)
    if not present[0] or present.sum() < 3:
        return None
    return falling(np.array(RUNGS)[present].tolist(), rewards_R[present])


def _rows_of(clips: Sequence[str]) -> list[list[int]]:
    return [[row for row, clip in enumerate(clips) if clip == wanted] for wanted in dict.fromkeys(clips)]


def _ladder_of(rung: Rung) -> tuple[str, float]:
    return rung.clip, rung.start_s


CSV_COLUMNS = ("clip", "start_s", "fault", "strength", *OUTCOME_COLUMNS, *CUES)


def rung_row(rung: Rung) -> dict[str, object]:
    """One rung as a line of the CSV and an entry of `rungs` in the JSON."""
    place = {"clip": rung.clip, "start_s": rung.start_s, "fault": rung.fault, "strength": rung.strength}
    return {**place, **outcome_row(rung.outcome), **{name: rung.cues.get(name) for name in CUES}}


def ladder_table(figures: Sequence[Figures], reward_name: str) -> Table:
    """A table of the share of pairs ordered right, by strength and in total, and of how steadily the reward falls."""
    title = f"{reward_name.replace('_', '-')}: % of pairs with the real clip above, by strength"
    table = report.figure_table(title, ("fault",), (*map(str, STRENGTHS), "all", "95%", "pairs", "falls"))
    table.caption = f"95%: interval over clips; falls: Spearman; retimed: {', '.join(RETIMED)}"
    for row in figures:
        if row.reward_name == reward_name:
            shares = [report.percent(share) for share in (*row.by_strength, row.total)]
            ends = (
                report.ABSENT
                if row.interval is None
                else f"{100 * row.interval.low:.0f}..{100 * row.interval.high:.0f}"
            )
            counts = (ends, str(row.total.pairs), report.number(row.falling))
            table.add_row(row.name, *shares, *counts, end_section=row.name == NAMES[-1])
    return table
