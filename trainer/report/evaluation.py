"""Makes `evaluation.html` of the files that `python -m trainer evaluate` writes into its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.measures.comparison import KINDS, MEASURES
from trainer.report.html import chosen, document, video, write_page
from trainer.report.plots import number

NAME = "evaluation.html"
DIFFERENCE = "checkpoint_minus_base"
MEANINGS = {
    "combined": "weighted mean of the next two rewards; high is real motion",
    "instantaneous": "reward of what flow does not explain between neighbouring frames",
    "long_term": "reward of the point tracks through the clip",
    "flow_px": "flow of the fastest 5 % of pixels, in px per pair of frames",
    "dynamic": "share of clips that VBench's rule calls dynamic, as the trainer measures it",
    "speed_px_s": "mean speed of tracks, in px/s",
    "acceleration_px_s2": "mean acceleration of tracks, in px/s^2",
    "total_motion": "mean flow, in frame heights per second",
    "camera_motion": "the part of it that one homography explains",
    "object_motion": "the part that it does not explain",
    "dynamic_degree": "VBench's dynamic degree as the server measured it",
    "tracks_alive": "share of tracks that live to the end",
}


def write_evaluation(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page of an evaluation with this summary and these rows into its folder."""
    return write_page(folder / NAME, evaluation(folder, summary, rows))


def evaluation(folder: Path, summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page as text: the figures first, then clips, those of which the checkpoint lost most reward first."""
    shown = _shown(folder)
    clips = "".join(_clip(folder, clip, rows) for clip in _worst_first(rows) if _file(folder, clip) in shown)
    told = (
        f"{summary['num_first_frames']} held-out first frames, {summary['num_without_reward']} clips without a reward"
    )
    return document(
        "Evaluation",
        f"<h1>Evaluation of {escape(str(summary['checkpoint_folder']))}</h1><p>{told}. Rewards of the versions "
        f"{escape(', '.join(summary['discriminator_versions']) or 'none')}.</p>"
        "<p>Means over first frames, with bootstrap intervals of 95 % in brackets. A checkpoint that moves less than "
        "its base has lost motion, whatever its reward says. Rewards compare clips of one first frame; they do not "
        "rank models of other evaluations.</p>"
        + _figures(summary)
        + "<h2>Clips</h2><p>From left to right: the real clip, the base's sample, the checkpoint's sample.</p>"
        + f'<div class="clips">{clips}</div>'
        + f"<details><summary>All figures</summary><pre>{escape(json.dumps(summary, indent=1))}</pre></details>",
    )


def _figures(summary: Mapping[str, Any]) -> str:
    columns = (*KINDS, DIFFERENCE)
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    body = "".join(
        f"<tr><td>{measure}: {escape(MEANINGS[measure])}</td>"
        + "".join(f"<td>{_told(summary[name][measure])}</td>" for name in columns)
        + "</tr>"
        for measure in MEASURES
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"


def _told(interval: Mapping[str, float | None]) -> str:
    mean, low, high = interval["mean"], interval["low"], interval["high"]
    if mean is None:
        return "unknown"
    return number(mean) + ("" if low is None or high is None else f" ({number(low)}..{number(high)})")


def _worst_first(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The first frames, by the mean reward of the checkpoint minus that of the base. Those without one come first."""
    gains = {clip: _gain(rows, clip) for clip in {row["clip"] for row in rows}}
    return sorted(gains, key=lambda clip: (gains[clip] is not None, gains[clip] or 0.0, clip))


def _gain(rows: Sequence[Mapping[str, Any]], clip: int) -> float | None:
    base, checkpoint = _mean(rows, clip, "base"), _mean(rows, clip, "checkpoint")
    return None if base is None or checkpoint is None else checkpoint - base


def _mean(rows: Sequence[Mapping[str, Any]], clip: int, kind: str) -> float | None:
    found = [row["combined"] for row in rows if (row["clip"], row["kind"]) == (clip, kind)]
    known = [float(value) for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _file(folder: Path, clip: int) -> Path:
    return folder / f"{clip:05d}-real-base-checkpoint.mp4"


def _shown(folder: Path) -> set[Path]:
    return set(chosen(sorted(folder.glob("*-real-base-checkpoint.mp4"))))


def _clip(folder: Path, clip: int, rows: Sequence[Mapping[str, Any]]) -> str:
    means = {kind: _mean(rows, clip, kind) for kind in KINDS}
    told = ", ".join(f"{kind} {'no reward' if mean is None else number(mean)}" for kind, mean in means.items())
    return video(_file(folder, clip), f"first frame {clip}: {told}")
