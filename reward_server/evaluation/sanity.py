"""Implements `motion-reward sanity`: checks that motion faults lower the reward of a real clip, more with strength.

A clip is decoded as the server decodes it, and each fault is applied at that rate. The real clip and its faulty twins
form a ladder, and each of these clips is a rung. They are submitted losslessly as one group with the same query points.
Each first passes through a capture chain of its own (`reward_server/capture`), so that exact copies, noise or sharpness
do not give a fault away. Twins that hardly differ from their clip are left out. So are the faults that only hold the
picture (`faults.still_clips.HOLDING`), if hardly anything moves in the clip. The two plain cues of `floors.py` are
reported beside the rewards, as baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from protos.json_codec import to_json
from protos.types import Clip
from reward_server.capture.chain import Capture
from reward_server.data.shots import Shot, find_shots, tensor_submission
from reward_server.decoding.decode import Window
from reward_server.decoding.sampling import stride_of
from reward_server.errors import RewardServerError
from reward_server.evaluation import by_motion, pages, plots, report
from reward_server.evaluation.floors import VALUES, plain_cues
from reward_server.evaluation.ladder import (
    CSV_COLUMNS,
    REAL,
    Level,
    Rung,
    best_copy,
    ladder_figures,
    ladder_table,
    levels_of,
    num_still,
    reward_array,
    rung_row,
)
from reward_server.evaluation.scoring import (
    RewardSource,
    comparison,
    count_outcomes,
    derived_seed,
    failed_outcome,
    open_scorer,
    without_explanation,
)
from reward_server.faults import LEAST_DIFFERENCE, NAMES, difference, with_fault
from reward_server.faults.still_clips import HOLDING, is_still
from reward_server.report.clips import WorstFirst
from reward_server.report.page import write_page
from reward_server.report.stills import stills
from reward_server.settings import Settings

# A clip whose frame rate is declared k times higher is sampled k times more sparsely, so this many windows are decoded.
STRETCH = 4
PLOTS = {
    "ladder.png": "The reward by strength of each fault: mean, and 10th to 90th percentile",
    "shares.png": "Share of pairs with the real clip above, by fault and strength",
    "by_motion.png": "The reward by the amount of motion, of real clips and of each fault",
}


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
            explain=outputs.html is not None,
            done=lambda: bar.advance(task),
        )
        worst = WorstFirst()
        rungs = [rung for ladder in ladders for rung in _kept(ladder, worst)]
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
    moved = by_motion.moved_of(map(rung_row, rungs), "fault")
    about["by_motion"] = by_motion.as_json(moved)
    document = {**about, "outcomes": counts, "figures": [row.as_json() for row in figures]}
    told = f"{still} clips hardly move: they have no faults that only hold the picture"
    of_real = by_motion.tables([clip for clip in moved if clip.group == REAL])
    tables = [*[ladder_table(figures, name) for name in VALUES], *of_real]
    console.print(*tables, told, f"outcomes: {counts}", sep="\n")
    report.write_json(outputs.json, {**document, "rungs": [rung_row(rung) for rung in rungs]})
    report.write_csv(outputs.csv, CSV_COLUMNS, [rung_row(rung) for rung in rungs])
    drawn = pages.drawn(lambda folder: _draw(folder, rungs, figures, moved), PLOTS, outputs)
    if outputs.html is not None:
        write_page(outputs.html, pages.sanity_page(worst, scorer, tables=tables, plots=drawn, lead=[f"{told}."]))
    report.print_last_line(console, document)
    return int(any(rung.fault == REAL and rung.outcome.reward is None for rung in rungs))


def _draw(
    folder: Path, rungs: Sequence[Rung], figures: Sequence[report.Figures], moved: Sequence[by_motion.Moved]
) -> None:
    plots.ladder(folder / "ladder.png", reward_array(rungs))
    plots.shares(folder / "shares.png", figures)
    plots.reward_by_motion(folder / "by_motion.png", by_motion.curve(moved))


def _kept(ladder: list[Rung], worst: WorstFirst) -> list[Rung]:
    """The ladder without what only a report shows of it, which is handed to `worst`."""
    pair = best_copy(ladder)
    if pair is not None:
        real, copy = pair
        worst.add(pages.ladder_entry(real, copy))
    for rung in ladder:
        if rung.fault == REAL and rung.outcome.reward is None:
            worst.add(pages.set_entry(REAL, rung.clip, rung.outcome, None))
    return [replace(rung, outcome=without_explanation(rung.outcome), draw=None) for rung in ladder]


def climb(
    shots: Sequence[Shot],
    scorer: RewardSource,
    settings: Settings,
    *,
    windows: int = 1,
    seed: int = 0,
    faults: Sequence[str] = NAMES,
    captured: bool = False,
    explain: bool = False,
    done: Callable[[], None] = lambda: None,
) -> Iterator[list[Rung]]:
    """Yield one ladder per clip and window; its rungs are scored together.

    With `explain`, rewards have an explanation, and a rung holds its clip, to draw it.
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
                yield _ladder(shot, stretch, scorer, levels, seed, captured=captured, explain=explain)
        done()


def _ladder(
    shot: Shot,
    stretch: Window,
    scorer: RewardSource,
    levels: Sequence[Level],
    seed: int,
    *,
    captured: bool,
    explain: bool,
) -> list[Rung]:
    """Score, in one group, the first window of the stretch and its faulty twins that can be seen."""
    own = derived_seed(seed, shot.short_name, stretch.start_s)
    context = replace(comparison(f"{shot.short_name}@{stretch.start_s:.3f}", own), explain=explain)
    clips = _seen({level: rung_clip(stretch.clip, scorer, *level, own) for level in levels})
    if captured:
        draws = dict(zip(levels, np.random.default_rng(own).spawn(len(levels)), strict=True))
        clips = {level: Capture.draw(draws[level]).apply(clip) for level, clip in clips.items()}
    sent = [tensor_submission(clip, context) for clip in clips.values()]
    outcomes = scorer.score(sent)
    return [
        Rung(
            clip=shot.name,
            start_s=stretch.start_s,
            fault=name,
            strength=strength,
            outcome=outcome,
            cues=plain_cues(clip),
            draw=partial(stills, submission.payload, media=submission.media) if explain else None,
        )
        for ((name, strength), clip), submission, outcome in zip(clips.items(), sent, outcomes, strict=True)
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
    return scorer.decode(shot.submission(), longer, settings).windows
