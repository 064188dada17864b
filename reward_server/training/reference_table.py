"""Makes the reference table of discriminators from real clips that they were not trained on (`profiles/reference.py`).

Every clip is scored whole, and its first window cut short. Some of the clips are also scored with every fault, mild and
strong. The clips are taken as they are: none passes through the capture chain of `sanity`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from protos.types import DISCRIMINATORS, Clip, Context, Reward, Submission
from reward_server.data.shots import Shot, find_shots, tensor_submission
from reward_server.errors import BadRequest, RewardServerError, ScoringFailed
from reward_server.faults import LEAST_DIFFERENCE, NAMES, STRENGTHS, difference, with_fault
from reward_server.faults.still_clips import HOLDING, is_still
from reward_server.pipeline import Pipeline
from reward_server.profiles.discriminators import discriminators_file, save_reference
from reward_server.profiles.reference import (
    ONE_WINDOW,
    PERCENTS,
    SEVERAL_WINDOWS,
    SHORT,
    Band,
    ReferenceTable,
    Rung,
    length_band,
)
from reward_server.settings import Settings
from reward_server.training.samples import seed_of

FEWEST_CLIPS = 10  # of a band; with fewer, a percentile says next to nothing
MOST_CLIPS = 256
LADDER_CLIPS = 16  # that are scored with faults
FEWEST_TWINS = 5  # of a rung
LEVELS = {"mild": STRENGTHS[0], "strong": STRENGTHS[-1]}
REAL = "a real clip"
NOUNS = {
    "static": "stillness",
    "frozen": "freezing",
    "stutter": "stutter",
    "shuffled": "frames in disorder",
    "jittered": "jitter",
    "wobbled": "wobble",
    "ghosted": "ghosting",
    "teleporting": "teleports",
    "swimming": "swimming textures",
    "damped": "fading motion",
    "speed_change": "changes of speed",
    "gliding": "gliding",
    "slowed": "slow motion",
    "subject_frozen": "freezing of the subject",
    "background_frozen": "freezing of the background",
    "looped": "loops",
    "reversed": "reversals",
    "swaying": "swaying",
    "popping": "popping",
    "dissolving": "dissolving",
    "morphing": "dissolves between frames",
    "boiling": "boiling",
    "surging": "surges of speed",
    "exaggerated": "exaggerated motion",
}
FAULTS = tuple(name for name in NAMES if name != "fps_relabelled")  # that one changes no frame
BANDS = (SHORT, ONE_WINDOW, SEVERAL_WINDOWS)


def run(paths: Sequence[str], settings: Settings, *, out: Path, seed: int = 0) -> ReferenceTable:
    """Make the table of the settings' checkpoint from the clips that the paths name, and write both to `out`.

    Of a folder with a manifest only the held-out clips are used. Raises BadRequest if a path names no clips or too few
    can be scored, and NotReady without weights.
    """
    shots = find_shots(paths)
    pipeline = Pipeline.load(settings)
    table = reference_table(shots, pipeline, seed=seed)
    checkpoint = settings.checkpoint or discriminators_file(settings.profile, settings.models_folder)
    save_reference(out, checkpoint.read_bytes(), table)
    return table


def reference_table(shots: Sequence[Shot], pipeline: Pipeline, *, seed: int = 0) -> ReferenceTable:
    """The table of a pipeline's discriminators. Shots that cannot be scored are left out, and the reason is printed.

    At most MOST_CLIPS of them are used. Raises BadRequest if fewer than FEWEST_CLIPS of every length can be scored.
    """
    by_band: dict[str, list[Reward]] = defaultdict(list)
    by_rung: dict[str, list[Reward]] = defaultdict(list)
    used = _evenly(shots, MOST_CLIPS)
    if len(used) < FEWEST_CLIPS:
        raise BadRequest(f"{len(used)} real clips, and a reference table needs {FEWEST_CLIPS}; give more clips")
    with_faults = set(_evenly(used, LADDER_CLIPS))
    for shot in track(used, "reference clips", console=Console(stderr=True)):
        try:
            window = pipeline.prepare(shot.submission()).decoded.windows[0].clip
            for band, reward in _by_length(shot, window, pipeline, seed).items():
                by_band[band].append(reward)
            if shot in with_faults:
                for like, reward in _ladder(shot, window, pipeline, seed):
                    by_rung[like].append(reward)
        except (RewardServerError, OSError) as error:
            print(f"skipped {shot.name}: {error}")
    bands = tuple(_band(name, by_band[name]) for name in BANDS if len(by_band[name]) >= FEWEST_CLIPS)
    if not bands:
        most = max(map(len, by_band.values()), default=0)
        raise BadRequest(f"{most} of {len(used)} real clips were scored, and a reference table needs {FEWEST_CLIPS}")
    return ReferenceTable(
        weights=pipeline.discriminators.weights_digest,
        discriminator_version=pipeline.discriminators.version,
        num_tracks=pipeline.model.input.num_tracks,
        bounds=pipeline.model.bounds,
        shares=pipeline.model.weights,
        bands=bands,
        rungs=tuple(_rung(like, rewards) for like, rewards in by_rung.items() if len(rewards) >= FEWEST_TWINS),
    )


def summary(table: ReferenceTable) -> Iterator[str]:
    """The table in lines: quantiles of `combined` by length, and the rungs from the most to the least real."""
    for band in table.bands:
        quantiles = ", ".join(f"{percent} % {band.combined[percent]:.2f}" for percent in (5, 25, 50, 75, 95))
        yield f"{band.name}: {band.num_clips} real clips, combined {quantiles}"
    for rung in sorted(table.rungs, key=lambda rung: -rung.instantaneous - rung.long_term):
        logits = f"instantaneous {rung.instantaneous:.2f}, long-term {rung.long_term:.2f}"
        yield f"{rung.like}: median of {rung.num_clips}: {logits}"


def _by_length(shot: Shot, window: Clip, pipeline: Pipeline, seed: int) -> dict[str, Reward]:
    """The rewards of a clip in each length band that it reaches: whole, its first window alone, and that cut short."""
    sampling = pipeline.profile.sampling
    short = replace(window, frames=window.frames[: (sampling.min_frames + sampling.window_frames) // 2])
    whole = clip_of(shot, seed)
    rewards = _rewards([whole, *(tensor_submission(clip, whole.context) for clip in (window, short))], pipeline)
    return {
        length_band(reward.provenance.frames_used, sampling.window_frames, len(reward.windows)): reward
        for reward in rewards
    }


def _ladder(shot: Shot, window: Clip, pipeline: Pipeline, seed: int) -> Iterator[tuple[str, Reward]]:
    """Every rung of a clip's ladder in words, with its reward. Twins that hardly differ from the clip are left out."""
    context, still = _context(shot, seed), is_still(window)
    clips = {REAL: window}
    for fault in FAULTS:
        for level, strength in LEVELS.items():
            twin = with_fault(window, fault, strength, seed_of(f"{seed} {shot.short_name}") % 2**31)
            if difference(window, twin) >= LEAST_DIFFERENCE and not (still and fault in HOLDING):
                clips[f"a clip with {level} {NOUNS.get(fault, fault.replace('_', ' '))}"] = twin
    rewards = _rewards([tensor_submission(clip, context) for clip in clips.values()], pipeline)
    yield from zip(clips, rewards, strict=True)


def clip_of(shot: Shot, seed: int) -> Submission:
    """A real clip as it is scored for the table. Raises OSError, InvalidClip."""
    return shot.submission(_context(shot, seed))


def _context(shot: Shot, seed: int) -> Context:
    return Context(query_seed=seed_of(f"{seed} {shot.short_name}"))


def _rewards(clips: Sequence[Submission], pipeline: Pipeline) -> list[Reward]:
    """The rewards of the clips, in order. Raises ScoringFailed for one that has none."""
    outcomes = pipeline.score_submissions(clips)
    if error := next((outcome.error for outcome in outcomes if outcome.error), None):
        raise ScoringFailed(f"{error.code}: {error.message}")
    return [outcome.reward for outcome in outcomes if outcome.reward]


def _band(name: str, rewards: Sequence[Reward]) -> Band:
    columns = {"combined": [reward.combined for reward in rewards]}
    columns |= {one: [getattr(reward.logits, one) for reward in rewards] for one in DISCRIMINATORS}
    quantiles = {one: tuple(np.percentile(values, PERCENTS).round(3).tolist()) for one, values in columns.items()}
    return Band(name=name, num_clips=len(rewards), **quantiles)


def _rung(like: str, rewards: Sequence[Reward]) -> Rung:
    medians = {one: float(np.median([getattr(r.logits, one) for r in rewards])) for one in DISCRIMINATORS}
    return Rung(like=like, num_clips=len(rewards), **{one: round(value, 3) for one, value in medians.items()})


def _evenly(shots: Sequence[Shot], most: int) -> list[Shot]:
    """At most `most` of the shots, evenly spaced in their order."""
    places = np.unique(np.linspace(0, len(shots) - 1, min(most, len(shots))).round().astype(int))
    return [shots[place] for place in places]
