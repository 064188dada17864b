"""Computes the validity figures of a labelled set: is the reward about motion, or about what else tells clips apart?

A reward could tell real from generated clips by their rate, sharpness or amount of motion. So every AUC is also given
for clips of equal rate, and within strata of all three. Agreement with people's ratings is also given for equal amounts
of motion and within each generator, and judged pairs are split by which clip moves more. All figures are given for the
floors too, which are plain statistics. None stands for a figure that cannot be computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from protos.types import REWARDS
from reward_server.data.labelled import MOVES, JudgedPair, LabelledClip
from reward_server.evaluation import report
from reward_server.evaluation.floors import FLOORS
from reward_server.evaluation.strata import Groups, PairedAuc, balanced, paired_auc, rate_groups, thirds
from reward_server.stats import Floats, Share, ordered

AMOUNT, SHARPNESS, RATE = "flow_magnitude", "sharpness", "rate"
VALUES = (*REWARDS, *FLOORS, RATE)
CONTROLS = ("all", "equal rate", "strata")
EVERY = "all generated"
MOVES_AT_LEAST = 0.02  # short sides per second of mean flow; slower clips hardly move
ALIKE = 1.25  # amounts of motion whose ratio is below this are alike
FEWEST_RANKED = 4  # clips that a rank correlation needs


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A scored clip of a labelled set with its numbers, by name (VALUES). An unknown number is left out."""

    clip: LabelledClip
    values: Mapping[str, float]

    @property
    def is_real(self) -> bool:
        return self.clip.label == "real"


@dataclass(frozen=True, kw_only=True)
class Discrimination:
    """How well one value tells real clips from those of one generator (or of EVERY), under one of CONTROLS."""

    value: str
    generator: str
    control: str
    found: PairedAuc
    num_real: int
    num_generated: int
    num_sources: tuple[int, int]  # of the real and of the generated clips; with one, the interval is over clips

    def as_json(self) -> dict[str, Any]:
        found = {**asdict(self.found), "interval": report.interval_json(self.found.interval)}
        about = {name: value for name, value in asdict(self).items() if name != "found"}
        return {**about, "num_sources": list(self.num_sources), **found}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Spearman's correlation of a value with people's ratings, for the rated clips of one label, or of both."""

    value: str
    label: str
    plain: float | None
    given_amount: float | None  # partial: the ranks of the amount of motion are regressed out of both
    within_generator: float | None  # of ranks within each generator
    num: int


@dataclass(frozen=True, kw_only=True)
class PairShare:
    """How many judged pairs a value orders right, of those in which the better clip moves more, less or alike."""

    value: str
    moves: str  # one of MOVES, or "all"
    share: Share

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "moves": self.moves, **report.share_json(self.share)}


@dataclass(frozen=True, kw_only=True)
class AmountCorrelation:
    """Spearman's correlation of a reward with the amount of motion, among the clips of one label that move."""

    value: str
    label: str
    rho: float | None
    num: int


def discriminations(judged: Sequence[Judged], *, balance: bool = False, seed: int = 0) -> list[Discrimination]:
    """Every value of VALUES against all generated clips, and the rewards by generator too, under all CONTROLS.

    With `balance`, surplus clips are left out first so that the rate says nothing (`strata.balanced`; BadRequest).
    """
    kept = balanced_by_rate(judged, seed) if balance else judged
    names = sorted({item.clip.generator for item in kept if not item.is_real})
    found = [row for value in VALUES for row in _discriminations(kept, value, EVERY, seed)]
    return found + [row for value in REWARDS for name in names for row in _discriminations(kept, value, name, seed)]


def balanced_by_rate(judged: Sequence[Judged], seed: int = 0) -> list[Judged]:
    """The clips that are left when the rate says nothing about the label. Raises BadRequest if too few are."""
    known = [item for item in judged if RATE in item.values]
    kept = balanced([item.values[RATE] for item in known], [item.is_real for item in known], seed)
    return [known[position] for position in kept]


def _discriminations(judged: Sequence[Judged], value: str, generator: str, seed: int) -> Iterator[Discrimination]:
    needed = {value, AMOUNT, SHARPNESS, RATE}
    chosen = [
        item
        for item in judged
        if needed <= item.values.keys() and (item.is_real or generator in (EVERY, item.clip.generator))
    ]
    real = np.array([item.is_real for item in chosen], bool)
    scores = np.array([item.values[value] for item in chosen], np.float64)
    sources = [[i.clip.source for i in chosen if i.is_real == side] for side in (True, False)]
    for control in CONTROLS:
        groups = _strata(chosen, control)
        yield Discrimination(
            value=value,
            generator=generator,
            control=control,
            found=paired_auc(
                scores[real],
                scores[~real],
                sources=(sources[0], sources[1]),
                strata=(groups[real], groups[~real]),
                seed=seed,
            ),
            num_real=int(real.sum()),
            num_generated=int((~real).sum()),
            num_sources=(len(set(sources[0])), len(set(sources[1]))),
        )


def _strata(judged: Sequence[Judged], control: str) -> Groups:
    """The stratum of each clip: one for all, its rate, or its rate with its thirds of amount and of sharpness."""
    if control == "all" or not judged:
        return np.zeros(len(judged), np.int64)
    rates, amounts, sharpness = (np.array([i.values[name] for i in judged]) for name in (RATE, AMOUNT, SHARPNESS))
    by_rate = rate_groups(rates)
    return by_rate if control == "equal rate" else 9 * by_rate + 3 * thirds(amounts) + thirds(sharpness)


def agreements(judged: Sequence[Judged], ratings: Mapping[str, float]) -> list[Agreement]:
    """The agreement of every value with people's ratings, over the rated generated clips and over all rated clips."""
    rated = [item for item in judged if item.clip.path in ratings and AMOUNT in item.values]
    generated = [item for item in rated if not item.is_real]
    sets = (("generated", generated), ("both", rated)) if len(generated) < len(rated) else (("generated", generated),)
    return [_agreement(value, label, clips, ratings) for label, clips in sets for value in VALUES] if rated else []


def _agreement(value: str, label: str, judged: Sequence[Judged], ratings: Mapping[str, float]) -> Agreement:
    known = [item for item in judged if value in item.values]
    scores, given = (np.array([i.values[name] for i in known]) for name in (value, AMOUNT))
    people = np.array([ratings[item.clip.path] for item in known])
    return Agreement(
        value=value,
        label=label,
        plain=spearman(scores, people),
        given_amount=None if value == AMOUNT else partial_spearman(scores, people, given),
        within_generator=within_spearman(scores, people, [item.clip.generator for item in known]),
        num=len(known),
    )


def pair_shares(judged: Sequence[Judged], pairs: Sequence[JudgedPair]) -> list[PairShare]:
    """How many pairs each value orders right. A pair without a stated `moves` is split by its amounts of motion."""
    if not pairs:
        return []
    by_path = {item.clip.path: item.values for item in judged}
    scored = [(by_path[p.better], by_path[p.worse], p.moves) for p in pairs if {p.better, p.worse} <= by_path.keys()]
    split = [(better, worse, moves or _moves(better, worse)) for better, worse, moves in scored]
    return [
        PairShare(
            value=value, moves=moves, share=_ordered([pair for pair in split if moves in ("all", pair[2])], value)
        )
        for value in VALUES
        for moves in ("all", *MOVES)
    ]


def _ordered(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float], str]], value: str) -> Share:
    return ordered(
        [better.get(value, np.nan) for better, *_ in pairs], [worse.get(value, np.nan) for _, worse, _ in pairs]
    )


def _moves(better: Mapping[str, float], worse: Mapping[str, float]) -> str:
    """How the better clip's amount of motion compares; empty if one is unknown."""
    if AMOUNT not in better or AMOUNT not in worse:
        return ""
    ratio = max(better[AMOUNT], 1e-9) / max(worse[AMOUNT], 1e-9)
    return "alike" if 1 / ALIKE < ratio < ALIKE else "more" if ratio > 1 else "less"


def amount_correlations(judged: Sequence[Judged]) -> list[AmountCorrelation]:
    """The rank correlation of each reward with the amount of motion, among real and among generated clips that move."""
    moving = [item for item in judged if item.values.get(AMOUNT, 0.0) >= MOVES_AT_LEAST]
    return [
        AmountCorrelation(
            value=value,
            label=label,
            rho=spearman(*(np.array([item.values[name] for item in chosen]) for name in (value, AMOUNT))),
            num=len(chosen),
        )
        for label in ("real", "generated")
        for value in REWARDS
        for chosen in [[item for item in moving if item.clip.label == label and value in item.values]]
    ]


# --- rank correlations --------------------------------------------------------------------------


def spearman(first: Floats, second: Floats) -> float | None:
    """Spearman's rank correlation; None with fewer than FEWEST_RANKED values, or if one side is constant."""
    return _pearson(stats.rankdata(first), stats.rankdata(second)) if first.size >= FEWEST_RANKED else None


def partial_spearman(first: Floats, second: Floats, given: Floats) -> float | None:
    """Spearman's correlation of two values for equal `given`: its ranks are regressed out of the ranks of both."""
    if first.size < FEWEST_RANKED:
        return None
    ranks = [stats.rankdata(values) - (first.size + 1) / 2 for values in (first, second, given)]
    base = float(ranks[2] @ ranks[2])
    rest = [own - (own @ ranks[2]) / base * ranks[2] if base else own for own in ranks[:2]]
    return _pearson(*rest)


def within_spearman(first: Floats, second: Floats, groups: Sequence[str]) -> float | None:
    """The correlation of ranks within each group, pooled. Groups with fewer than FEWEST_RANKED values are left out."""
    names = np.asarray(groups)
    chosen = [names == name for name in np.unique(names) if (names == name).sum() >= FEWEST_RANKED]
    if not chosen:
        return None

    def ranks(values: Floats) -> Floats:
        return np.concatenate([stats.rankdata(values[mask]) / mask.sum() - (1 + 1 / mask.sum()) / 2 for mask in chosen])

    return _pearson(ranks(first), ranks(second))


def _pearson(first: Floats, second: Floats) -> float | None:
    spread = float(first.std() * second.std())
    return float(((first - first.mean()) * (second - second.mean())).mean()) / spread if spread > 1e-12 else None
