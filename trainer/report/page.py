"""Makes `run.html` of the files in a run's folder: metrics.jsonl, config.yaml and samples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from trainer.errors import DataError
from trainer.report.html import chosen, document, video, write_page
from trainer.report.plots import Line, chart, number

NAME = "run.html"
NUM_COLOURS = 8  # lines of a chart

Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A chart of the figures whose names match `figures`, and what they mean."""

    title: str
    figures: str  # a regular expression for whole names
    meaning: str


PLOTS = (
    Plot(
        title="Rewards",
        figures=r"reward_(real|rollouts)/.*",
        meaning="Mean reward of real clips and of the policy's rollouts, combined and by discriminator. Rollouts that "
        "come nearer to real clips are the aim. A refresh moves both, so compare them with each other.",
    ),
    Plot(
        title="Spread of advantages within a group",
        figures=r"advantage_spread/.*",
        meaning="Standard deviation of the advantages of one first frame's rollouts. At 0 the rollouts teach nothing.",
    ),
    Plot(
        title="Signal to noise of the rewards",
        figures=r"signal_to_noise/.*",
        meaning="How much rewards within a group differ, over what other query points would change. Below 1 training "
        "is mostly supervised fine-tuning.",
    ),
    Plot(
        title="Real or rollout: AUC of the rewards",
        figures=r"signal_auc/.*",
        meaning="Probability that a real clip has a higher reward than a rollout. At 0.5 they cannot be told apart.",
    ),
    Plot(
        title="Clipped",
        figures=r"signal/clipped_.*",
        meaning="Share of rewards and of advantages at a bound. Clips at a bound cannot be told apart.",
    ),
    Plot(
        title="Losses",
        figures=r"loss/(total|sft_term|aw_term)",
        meaning="The total loss, and its supervised and its reward-weighted part.",
    ),
    Plot(
        title="Gradients",
        figures=r"gradient/(norm|sft|aw)",
        meaning="Norm of the gradient before clipping, and of its parts where they are measured.",
    ),
    Plot(
        title="How much the clips move",
        figures=r"dynamics_(real|rollouts)/(total|object)_motion",
        meaning="Mean length of the optical flow, in frame heights per second. A policy that learns to stand still "
        "gains nothing.",
    ),
    Plot(
        title="Dynamic degree of the samples",
        figures=r"dynamic/share",
        meaning="Share of the sampled rollouts that VBench's rule calls dynamic.",
    ),
    Plot(
        title="Time spent waiting for rewards",
        figures=r"buffer/waited_share",
        meaning="Share of the time since the buffer before. If it is large, give the reward server more workers.",
    ),
    Plot(
        title="Lag",
        figures=r"buffer/lag_(mean|max)_steps",
        meaning="Optimizer steps that the policy had taken since it sampled a group.",
    ),
    Plot(
        title="Missing rewards and skipped clips",
        figures=r"buffer/(missing_rewards|clips_skipped)",
        meaning="Clips of a buffer without a reward, and clips that could not be read, so far.",
    ),
)


def write_report(folder: Path) -> Path:
    """Write the report of the run in `folder`, also of one that goes on. Raises DataError without metrics.jsonl."""
    return write_page(folder / NAME, report(folder))


def report(folder: Path) -> str:
    """The page as text."""
    figures, begin_s, end_s = read_figures(folder / "metrics.jsonl")
    plots = "".join(_plot(plot, figures) for plot in PLOTS)
    clips = "".join(_clip(path) for path in chosen(sorted((folder / "samples").glob("*.mp4"))))
    steps = max((points[-1][0] for points in figures.values() if points), default=0)
    buffers = len(figures.get("buffer/number", ()))
    told = f"{number(steps)} optimizer steps, {buffers} buffers, {_duration(end_s - begin_s)} from first to last figure"
    return document(
        folder.resolve().name,
        f"<h1>Run {escape(folder.resolve().name)}</h1><p>{told}.</p>"
        f'<main class="plots">{plots}</main>'
        + (
            f"<h2>Samples</h2><p>Each video shows a real clip and, to its right, a rollout from its first frame, "
            f'with points that were followed.</p><div class="clips">{clips}</div>'
            if clips
            else ""
        )
        + _last_values(figures)
        + _config(folder / "config.yaml"),
    )


def read_figures(path: Path) -> tuple[dict[str, Points], float, float]:
    """The finite values of every figure by step, and the times of the first and the last line.

    A resumed run may have taken a step twice: the later value counts. Raises DataError.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; give the `out` folder of a run") from error
    found: dict[str, dict[float, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time_s") and math.isfinite(value):
                found.setdefault(name, {})[line["step"]] = value
    times_s = [line["time_s"] for line in lines] or [0.0]
    return {name: sorted(values.items()) for name, values in sorted(found.items())}, min(times_s), max(times_s)


def _plot(plot: Plot, figures: Mapping[str, Points]) -> str:
    lines = [Line(name=name, points=points) for name, points in figures.items() if re.fullmatch(plot.figures, name)]
    lines = lines[:NUM_COLOURS]
    if not lines:
        return ""
    names = "".join(f'<li class="c{index}">{escape(line.name)}</li>' for index, line in enumerate(lines))
    return (
        f"<figure><h2>{plot.title}</h2>{chart(plot.title, lines)}<ul>{names}</ul>"
        f"<figcaption>{plot.meaning}</figcaption></figure>"
    )


def _clip(path: Path) -> str:
    named = re.match(r"buffer-(\d+)-slot-(\d+)", path.stem)
    told = f"buffer {int(named[1])}, clip {int(named[2])}" if named else path.stem
    return video(path, told)


def _last_values(figures: Mapping[str, Points]) -> str:
    rows = "".join(_row(name, points) for name, points in figures.items() if points)
    head = "<tr><th>figure</th><th>first</th><th>last</th><th>lowest</th><th>highest</th></tr>"
    return f"<details><summary>All figures</summary><table>{head}{rows}</table></details>"


def _row(name: str, points: Points) -> str:
    values = [value for _, value in points]
    cells = (values[0], values[-1], min(values), max(values))
    return f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{number(value)}</td>" for value in cells) + "</tr>"


def _config(path: Path) -> str:
    if not path.exists():
        return ""
    text = re.sub(r"://[^@/\s]*@", "://...@", path.read_text())  # of a Redis, whose password others need not see
    return f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>"


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours:.1f} h"
