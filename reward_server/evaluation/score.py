"""Implements `motion-reward score`: scores clip files, here or on a server, and writes a table, JSON and CSV.

A file that cannot be read or scored is listed with its error, and the exit code is then 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from protos.client.errors import RequestRefused, RewardClientError, ServerFailed
from protos.json_codec import result_to_json
from protos.reader.sequences import is_sequence
from protos.submissions import submission
from protos.types import DYNAMICS, REWARDS, Context, Error, Outcome, OutcomeKind, Submission
from reward_server.data.shots import Shot, find_files
from reward_server.errors import ClipTooLarge, InvalidClip, error_outcome
from reward_server.evaluation.report import number, progress_bar, write_csv, write_json
from reward_server.evaluation.scoring import (
    OUTCOME_COLUMNS,
    RewardSource,
    bounded,
    dynamics_of,
    failed_outcome,
    open_scorer,
    outcome_row,
    payload_bytes,
)
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
) -> int:
    """Run the command: score all files, write the results and print a table. `fps` is that of image sequences.

    Returns 0 if every file has a reward, else 1. Raises BadRequest if a path names no clips.
    """
    files = find_files(paths, fps)
    with open_scorer(settings, server) as scorer, progress_bar() as bar:
        scored = list(bar.track(score_files(files, scorer), total=len(files), description="scoring"))
    write_csv(csv_path, ("path", *OUTCOME_COLUMNS), ({"path": str(s.path), **outcome_row(s.outcome)} for s in scored))
    if json_path == Path("-"):
        print(json.dumps(document(scored), indent=1, allow_nan=False))
    else:
        write_json(json_path, document(scored))
        Console().print(table(scored))
    return 0 if all(item.ok for item in scored) else 1


def score_files(files: Sequence[Path], scorer: RewardSource, fps: float | None = None) -> Iterator[FileOutcome]:
    """Yield each file's outcome, in order. If the server is lost, the remaining files fail at once with that error."""
    gone: RewardClientError | None = None
    read = ((path, _read(path, scorer.limits.max_bytes, fps)) for path in files)
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


def _read(path: Path, max_bytes: int, fps: float | None) -> Submission | Outcome:
    try:
        if is_sequence(path):
            return Shot(path=path, fps=fps).submission()
        if (size := path.stat().st_size) > max_bytes:
            error = ClipTooLarge(f"the file has {size} bytes, but at most {max_bytes} are accepted; shorten the clip")
            return error_outcome("", error, Context())
        return submission(path)
    except InvalidClip as error:
        return error_outcome("", error, Context())
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
    folder = Path(os.path.commonpath([item.path.resolve().parent for item in scored]))
    drawn = Table(title=escape(f"clips in {folder}"), title_justify="left")
    drawn.add_column("clip", overflow="fold")
    for reward_name in REWARDS:
        drawn.add_column(reward_name.replace("_", " "), justify="right")
    drawn.add_column("outcome")
    for item in scored:
        rewards = (number(getattr(item.outcome.reward, reward_name, None)) for reward_name in REWARDS)
        name, verdict = str(item.path.resolve().relative_to(folder)), _verdict(item.outcome)
        drawn.add_row(escape(name), *rewards, escape(verdict))
    return drawn


def _verdict(outcome: Outcome) -> str:
    if outcome.error:
        return f"{outcome.kind.value}, {outcome.error.code}: {outcome.error.message}"
    return "ok, clipped" if outcome.reward and outcome.reward.clipped else "ok"
