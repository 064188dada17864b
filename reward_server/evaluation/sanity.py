"""Implements `motion-reward sanity`: checks that motion faults lower the reward of a real clip, more with strength.

A clip is decoded as the server decodes it, and each fault is applied at that rate. The real clip and its faulty twins
form a ladder, and each of these clips is a rung. They are submitted losslessly as one group with the same query points.
Each first passes through a capture chain of its own (`reward_server/capture`), so that exact copies, noise or sharpness
do not give a fault away. Twins that hardly differ from their clip are left out. So are the faults that only hold the
picture (`faults.stillness.HOLDING`), if hardly anything moves in the clip. The two
plain cues of `floors.py` are reported beside the rewards, as baselines.

Legend: C ladders, D faults, R rungs (the real clip, then STRENGTHS), 3 rewards in the order of REWARDS, V values
in the order of VALUES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
from rich.console import Console
from rich.table import Table

from protos.json_codec import to_json
from protos.types import REWARDS, Clip, Context, Outcome
from reward_server.capture.chain import Capture
from reward_server.data.shots import Shot, find_shots, tensor_submission
from reward_server.decoding.decode import Window, decode
from reward_server.decoding.sampling import stride_of
from reward_server.errors import RewardServerError
from reward_server.evaluation import plots, report
from reward_server.evaluation.floors import CUES, plain_cues
from reward_server.evaluation.report import Figures
from reward_server.evaluation.scoring import (
    OUTCOME_COLUMNS,
    RewardSource,
    count_outcomes,
    derived_seed,
    failed_outcome,
    open_scorer,
    outcome_row,
    rewards_of,
)
from reward_server.faults import HELD_OUT, LEAST_DIFFERENCE, NAMES, STRENGTHS, difference, with_fault
from reward_server.faults.stillness import HOLDING, is_still
from reward_server.settings import Settings
from reward_server.stats import Floats, falling, mean_bootstrap, ordered

REAL = "real"
VALUES = (*REWARDS, *CUES)
RETIMED = ("speed_change", "fps_relabelled", "surging")  # faults that could also be plausible clips at another speed
RUNGS = (0.0, *STRENGTHS)
# A clip whose frame rate is declared k times higher is sampled k times more sparsely, so this many windows are decoded.
STRETCH = 4


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


def run(
    paths: Sequence[str],
    settings: Settings,
    *,
    server: str | None = None,
    windows: int = 1,
    seed: int = 0,
    captured: bool = True,
    fps: float | None = None,
    outputs: report.Outputs,
    console: Console | None = None,
) -> int:
    """Run the command: score all ladders, print the figures and write `outputs`.

    Without `captured`, the clips do not pass through the capture chain. Returns 1 if a real clip has no reward, else 0.
    Raises BadRequest if a path names no clips.
    """
    console = console or Console()
    with open_scorer(settings, server) as scorer, report.progress_bar() as bar:
        shots = find_shots(paths, fps)
        task = bar.add_task("ladders", total=len(shots))
        ladders = climb(
            shots,
            scorer,
            settings,
            windows=windows,
            seed=seed,
            captured=captured,
            done=lambda: bar.advance(task),
        )
        rungs = [rung for ladder in ladders for rung in ladder]
    figures = ladder_figures(rungs)
    counts = count_outcomes(rung.outcome for rung in rungs)
    about = {
        "model": to_json(scorer.model),
        "scored_by": scorer.where,
        "seed": seed,
        "clips": len(shots),
        "captured": captured,
    }
    about["still"] = still = num_still(rungs)
    document = {**about, "outcomes": counts, "figures": [row.as_json() for row in figures]}
    told = f"{still} clips hardly move: they have no faults that only hold the picture"
    console.print(*[ladder_table(figures, name) for name in VALUES], told, f"outcomes: {counts}", sep="\n")
    report.write_json(outputs.json, {**document, "rungs": [rung_row(rung) for rung in rungs]})
    report.write_csv(outputs.csv, CSV_COLUMNS, [rung_row(rung) for rung in rungs])
    if outputs.plots is not None:
        plots.ladder(outputs.plots / "ladder.png", reward_array(rungs))
        plots.shares(outputs.plots / "shares.png", figures)
    report.print_last_line(console, document)
    return int(any(rung.fault == REAL and rung.outcome.reward is None for rung in rungs))


def climb(
    shots: Sequence[Shot],
    scorer: RewardSource,
    settings: Settings,
    *,
    windows: int = 1,
    seed: int = 0,
    faults: Sequence[str] = NAMES,
    captured: bool = False,
    done: Callable[[], None] = lambda: None,
) -> Iterator[list[Rung]]:
    """Yield one ladder per clip and window; its rungs are scored together.

    A clip that cannot be decoded gives a ladder of one rung, with the error as its outcome.
    """
    levels = levels_of(faults)
    for shot in shots:
        try:
            stretches = _stretches(shot, scorer, settings, windows)
        except (RewardServerError, OSError) as error:
            yield [Rung(clip=shot.name, start_s=0.0, fault=REAL, strength=0.0, outcome=failed_outcome(error))]
        else:
            for stretch in stretches:
                yield _ladder(shot, stretch, scorer, levels, seed, captured=captured)
        done()


def _ladder(
    shot: Shot, stretch: Window, scorer: RewardSource, levels: Sequence[Level], seed: int, *, captured: bool
) -> list[Rung]:
    """Score, in one group, the first window of the stretch and its faulty twins that can be seen."""
    own = derived_seed(seed, shot.short_name, stretch.start_s)
    context = Context(group_id=f"{shot.short_name[-200:]}@{stretch.start_s:.3f}", query_seed=own)
    clips = _seen({level: rung_clip(stretch.clip, scorer, *level, own) for level in levels})
    if captured:
        draws = dict(zip(levels, np.random.default_rng(own).spawn(len(levels)), strict=True))
        clips = {level: Capture.draw(draws[level]).apply(clip) for level, clip in clips.items()}
    outcomes = scorer.score([tensor_submission(clip, context) for clip in clips.values()])
    return [
        Rung(
            clip=shot.name,
            start_s=stretch.start_s,
            fault=name,
            strength=strength,
            outcome=outcome,
            cues=plain_cues(clip),
        )
        for ((name, strength), clip), outcome in zip(clips.items(), outcomes, strict=True)
    ]


def _seen(clips: Mapping[Level, Clip]) -> dict[Level, Clip]:
    """The clips of a ladder without those whose fault cannot be seen."""
    real = clips[REAL, 0.0]
    still = is_still(real)

    def shows(fault: str, clip: Clip) -> bool:
        if fault in (REAL, "fps_relabelled"):  # the latter changes no frame
            return True
        return not (still and fault in HOLDING) and difference(real, clip) >= LEAST_DIFFERENCE

    return {level: clip for level, clip in clips.items() if shows(level[0], clip)}


def rung_clip(stretch: Clip, scorer: RewardSource, name: str, strength: float, seed: int) -> Clip:
    """Apply a fault to the stretch's first window.

    If the fault raises the frame rate, the decoder will drop frames. The fault is then applied to more of the stretch,
    so that a full window remains.
    """
    window = scorer.sampling.window_frames
    base = replace(stretch, frames=stretch.frames[:window])
    if name == REAL:
        return base
    faulty = with_fault(base, name, strength, seed)
    thinned = stride_of(faulty.fps, scorer.sampling.fps)
    if faulty.fps > base.fps and thinned > 1:
        return with_fault(replace(stretch, frames=stretch.frames[: thinned * window]), name, strength, seed)
    return faulty


def _stretches(shot: Shot, scorer: RewardSource, settings: Settings, windows: int) -> tuple[Window, ...]:
    sampling = scorer.sampling
    longer = replace(sampling, window_frames=STRETCH * sampling.window_frames, max_windows=windows)
    threads = settings.decoder_threads
    return decode(shot.submission(), longer, scorer.limits, settings.max_decode_s, threads=threads).windows


# --- figures ------------------------------------------------------------------------------------


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
    """How many ladders have no fault that only holds the picture, because their clip hardly moves."""
    ladders = [list(ladder) for _, ladder in groupby(rungs, key=_ladder_of)]
    return sum(len(ladder) > 1 and all(rung.fault not in HOLDING for rung in ladder) for ladder in ladders)


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
    per_clip = [share.fraction for share in by_clip if share.fraction is not None]
    falls = [fall for rewards_R in rewards_CDR.reshape(-1, len(RUNGS)) if (fall := _fall(rewards_R)) is not None]
    return Figures(
        reward_name=reward_name,
        name=name,
        by_strength=tuple(ordered(real[..., 0], faulty[..., rung]) for rung in range(len(STRENGTHS))),
        total=ordered(real, faulty),
        interval=mean_bootstrap(per_clip) if per_clip else None,
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


# --- reports ------------------------------------------------------------------------------------

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
