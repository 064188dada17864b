"""Implements `motion-reward score`: scores clip files, here or on a server, and writes a table, JSON and CSV.

A file that cannot be read or scored is listed with its error, and the exit code is then 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from protos.client.errors import RequestRefused, RewardClientError, ServerFailed
from protos.json_codec import result_to_json
from protos.reader.sequences import is_sequence
from protos.submissions import submission
from protos.types import DYNAMICS, REWARDS, Context, Error, Outcome, OutcomeKind, Reward, Submission
from reward_server.data.shots import Shot, find_files
from reward_server.errors import BadRequest, ClipTooLarge, InvalidClip, error_outcome
from reward_server.evaluation.drawings import Drawings
from reward_server.evaluation.pages import file_entry, score_page
from reward_server.evaluation.report import ABSENT, number, progress_bar, write_csv, write_json
from reward_server.evaluation.scoring import (
    OUTCOME_COLUMNS,
    RewardSource,
    bounded,
    dynamics_of,
    failed_outcome,
    open_scorer,
    outcome_row,
    payload_bytes,
    without_explanation,
)
from reward_server.report.clips import WorstFirst
from reward_server.report.page import write_page
from reward_server.settings import Settings

BATCH_CLIPS = 8  # most files read at once


@dataclass(frozen=True, kw_only=True)
class FileOutcome:
    """A file with its outcome."""

    path: Path
    outcome: Outcome

    @property
    def ok(self) -> bool:
        return self.outcome.kind is OutcomeKind.OK


def run(
    paths: Sequence[str],
    settings: Settings,
    *,
    server: str | None,
    json_path: Path | None,
    csv_path: Path | None,
    fps: float | None = None,
    track: int | None = None,
    drawings: Drawings | None = None,
    html: Path | None = None,
) -> int:
    """Run the command: score all files, write the results and print a table. `fps` is that of image sequences.

    `track` chooses a video track of a single file. Returns 0 if every file has a reward and was drawn if asked for,
    else 1. Raises BadRequest if a path names no clips, or for a track of several files or one that is to be drawn.
    """
    files = find_files(paths, fps)
    if track is not None:
        _check_track(files, drawn=drawings is not None or html is not None)
    context = Context(explain=drawings is not None or html is not None)
    undrawn, worst, folder = list[str](), WorstFirst(), shared_folder(files)
    with open_scorer(settings, server) as scorer, progress_bar() as bar:
        scored = list[FileOutcome]()
        outcomes = score_files(files, scorer, fps, context, track)
        for item in bar.track(outcomes, total=len(files), description="scoring"):
            if drawings and (reason := drawings.draw(item.path, item.outcome, below=folder, fps=fps)):
                undrawn.append(f"{item.path}: {reason}")
            if html is not None:
                worst.add(file_entry(item.path, item.outcome, folder, fps))
            scored.append(replace(item, outcome=without_explanation(item.outcome)))
    write_csv(csv_path, ("path", *OUTCOME_COLUMNS), ({"path": str(s.path), **outcome_row(s.outcome)} for s in scored))
    if json_path == Path("-"):
        print(json.dumps(document(scored), indent=1, allow_nan=False))
    else:
        write_json(json_path, document(scored))
        Console().print(table(scored))
        for reason in missing(scored):
            Console().print(reason, markup=False)
    for reason in undrawn:
        Console(stderr=True).print(f"not drawn: {escape(reason)}", soft_wrap=True)
    if html is not None:  # last: an error in it must not cost the figures
        write_page(html, score_page(worst, folder, scorer))
    return 0 if all(item.ok for item in scored) and not undrawn else 1


def score_files(
    files: Sequence[Path],
    scorer: RewardSource,
    fps: float | None = None,
    context: Context | None = None,
    track: int | None = None,
) -> Iterator[FileOutcome]:
    """Yield each file's outcome, in order. If the server is lost, the remaining files fail at once with that error.

    `context` is what is said about every clip.
    """
    gone: RewardClientError | None = None
    said = context or Context()
    read = ((path, _read(Shot(path=path, fps=fps, track=track), scorer.limits.max_bytes, said)) for path in files)
    for batch in bounded(read, lambda pair: payload_bytes(pair[1]), BATCH_CLIPS):
        submissions = [item for _, item in batch if isinstance(item, Submission)]
        outcomes: Iterable[Outcome]
        try:
            if gone:
                raise gone
            outcomes = scorer.score(submissions) if submissions else []
        except RewardClientError as error:
            gone = None if isinstance(error, (RequestRefused, ServerFailed)) else error
            described = Error(code=error.code, message=str(error))
            outcomes = [
                Outcome(job_id="", kind=OutcomeKind.FAILED, error=described, context=clip.context)
                for clip in submissions
            ]
        answers = iter(outcomes)
        for path, item in batch:
            yield FileOutcome(path=path, outcome=item if isinstance(item, Outcome) else next(answers))


def _check_track(files: Sequence[Path], *, drawn: bool) -> None:
    """Raise BadRequest unless there is one file, and it is not drawn: drawings read its default track."""
    if len(files) > 1 or is_sequence(files[0]):
        raise BadRequest(f"--track chooses a track of one video file, got {len(files)} file(s) or pictures; name one")
    if drawn:
        raise BadRequest("--track cannot be drawn: leave out --annotate and --html, or copy the track into a file")


def _read(shot: Shot, max_bytes: int, context: Context) -> Submission | Outcome:
    try:
        if shot.track is not None or is_sequence(shot.path):
            return shot.submission(context)
        if (size := shot.path.stat().st_size) > max_bytes:
            error = ClipTooLarge(
                f"the file has {size} bytes, over the limit of {max_bytes} (MOTION_REWARD_MAX_BYTES); shorten the clip"
            )
            return error_outcome("", error, context)
        return submission(shot.path, context=context)
    except InvalidClip as error:
        return error_outcome("", error, context)
    except OSError as error:
        return failed_outcome(error)


def document(scored: Sequence[FileOutcome]) -> dict[str, Any]:
    """The JSON report.

    For each reward and each number of the dynamics it holds [mean, [{"video_path", "video_results"}, ...]] over the
    clips that have it, in VBench's format for a dimension. `results` holds the full result of every file, errors
    included.
    """
    rewards = {name: {str(s.path): getattr(s.outcome.reward, name) for s in scored if s.ok} for name in REWARDS}
    moving = [(str(item.path), dynamics_of(item.outcome)) for item in scored]
    motions = {name: {path: found[name] for path, found in moving if found} for name in DYNAMICS}
    dimensions = {name: _dimension(values) for name, values in (rewards | motions).items()}
    return {**dimensions, "results": [{"path": str(s.path), **result_to_json(s.outcome)} for s in scored]}


def _dimension(values: Mapping[str, float]) -> list[Any]:
    mean = sum(values.values()) / len(values) if values else None
    return [mean, [{"video_path": path, "video_results": value} for path, value in values.items()]]


def table(scored: Sequence[FileOutcome]) -> Table:
    """A table with one row per file. Names are relative to the folder that all files share."""
    folder = shared_folder([item.path for item in scored])
    drawn = Table(title=escape(f"clips in {folder}"), title_justify="left", caption_justify="left")
    drawn.caption = (
        "±: standard error over the clip's windows; in brackets: percentile among real clips; like: the nearest rung "
        "of the reference ladder"
    )
    drawn.add_column("clip", overflow="fold")
    for reward_name in REWARDS:
        drawn.add_column(reward_name.replace("_", " "), justify="right")
    drawn.add_column("outcome")
    for item in scored:
        rewards = (_told(item.outcome.reward, reward_name) for reward_name in REWARDS)
        name, verdict = str(item.path.resolve().relative_to(folder)), _verdict(item.outcome)
        drawn.add_row(escape(name), *rewards, escape(verdict))
    return drawn


def _told(reward: Reward | None, reward_name: str) -> str:
    """One value with its percentile, `combined` also with its standard error, as far as it has them."""
    if reward is None:
        return ABSENT
    told = number(getattr(reward, reward_name))
    if reward.standard_error and reward_name == "combined":
        told += f" ±{reward.standard_error.combined:.2f}"
    percentile = reward.standing and getattr(reward.standing, f"{reward_name}_percentile")
    return told if percentile is None else f"{told} ({percentile:.0f} %)"


def missing(scored: Sequence[FileOutcome]) -> list[str]:
    """Why percentiles are absent, each reason once."""
    rewards = [item.outcome.reward for item in scored if item.outcome.reward]
    return list(dict.fromkeys(r.standing.missing for r in rewards if r.standing and r.standing.missing))


def shared_folder(files: Sequence[Path]) -> Path:
    """The folder that all files share."""
    return Path(os.path.commonpath([path.resolve().parent for path in files]))


def _verdict(outcome: Outcome) -> str:
    if outcome.error:
        return f"{outcome.kind.value}, {outcome.error.code}: {outcome.error.message}"
    reward = outcome.reward
    clipped = ", clipped" if reward and reward.clipped else ""
    nearest = f", like {reward.standing.nearest}" if reward and reward.standing and reward.standing.nearest else ""
    return f"ok{clipped}{nearest}"
