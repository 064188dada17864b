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

import numpy as np
from rich.console import Console

from protos.json_codec import to_json
from protos.types import Clip, Context
from reward_server.capture.chain import Capture
from reward_server.data.shots import Shot, find_shots, tensor_submission
from reward_server.decoding.decode import Window, decode
from reward_server.decoding.sampling import stride_of
from reward_server.errors import RewardServerError
from reward_server.evaluation import plots, report
from reward_server.evaluation.floors import VALUES, plain_cues
from reward_server.evaluation.ladder import (
    CSV_COLUMNS,
    REAL,
    Level,
    Rung,
    ladder_figures,
    ladder_table,
    levels_of,
    num_still,
    reward_array,
    rung_row,
)
from reward_server.evaluation.scoring import (
    RewardSource,
    count_outcomes,
    derived_seed,
    failed_outcome,
    open_scorer,
)
from reward_server.faults import LEAST_DIFFERENCE, NAMES, difference, with_fault
from reward_server.faults.still_clips import HOLDING, is_still
from reward_server.settings import Settings

# A clip whose frame rate is declared k times higher is sampled k times more sparsely, so this many windows are decoded.
STRETCH = 4


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
