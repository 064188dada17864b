"""Writes a proof's results: a table and verdicts as text, plots, side-by-side clips, and a summary for a JSON line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.proof.arms import MEASURES
from experiments.proof.plots import plot_loophole, plot_reward
from experiments.proof.scenes import FPS, NUM_FRAMES, SIDE_PX
from experiments.proof.verdicts import Table, Verdict, ablations, verdicts
from protos.types import Clip
from trainer.data import find_sources
from trainer.video import ClipForm, read_clip, side_by_side, write_clip

Records = Sequence[Mapping[str, Any]]
"""Records of one arm in one stream each, as `arms.run_arm` writes them."""

COLUMNS = ("reward", "speed_px", "look_error", "size_drift", "glow", "flicker")
SHOWN = ("base", "sft", "replay", "shift-mid", "shift-high", "no-anchor", "fixed", "refreshed")
ENLARGED = 6


def table_of(records: Records) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Means as arm -> measure -> [streams, first frames]."""
    streams: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: int(record["stream"])):
        streams.setdefault(record["arm"], []).append(record)
    return {
        name: {m: np.array([[np.mean(row[m]) for row in record["rows"]] for record in ran]) for m in MEASURES}
        for name, ran in streams.items()
    }


def write_report(records: Records, folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write report.txt, plots and clips to `folder`. Returns the summary."""
    table = table_of(records)
    found = verdicts(table)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_arm_lines(table), "", *verdict_lines(found), "", *_ablation_lines(table)]
    (folder / "report.txt").write_text("\n".join(lines) + "\n")
    plot_reward(table, records, folder / "reward.png")
    plot_loophole(table, records, folder / "loophole.png")
    write_clips([name for name in SHOWN if name in table], folder)
    return {
        **about,
        "arms": {name: {m: round(float(values[m].mean()), 4) for m in COLUMNS} for name, values in table.items()},
        "verdicts": {verdict.name: plain(verdict) for verdict in found},
        "time_over_sft": time_over_sft(records),
        "holds": all(verdict.holds for verdict in found),
    }


def plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON values."""
    of = verdict.interval
    numbers = {"mean": of.mean, "low": of.low, "high": of.high} if of else {}
    return {"holds": verdict.holds, **{name: round(value, 4) for name, value in numbers.items()}}


def time_over_sft(records: Records) -> dict[str, float]:
    """Seconds of each arm's training over those of supervised fine-tuning, averaged over streams."""
    seconds: dict[str, list[float]] = {}
    for record in records:
        seconds.setdefault(record["arm"], []).append(record["seconds"])
    means = {name: float(np.mean(values)) for name, values in seconds.items() if name != "base"}
    return {name: round(value / means["sft"], 2) for name, value in means.items()} if "sft" in means else {}


def _arm_lines(table: Table) -> list[str]:
    """The mean of each measure, and the reward of each stream."""
    lines = ["arm".ljust(14) + "".join(name.rjust(12) for name in COLUMNS) + "   reward by stream"]
    for name, values in table.items():
        means = "".join(f"{values[column].mean():12.3f}" for column in COLUMNS)
        streams = ", ".join(f"{mean:.3f}" for mean in values["reward"].mean(axis=1))
        lines.append(f"{name:14}{means}   {streams}")
    return lines


def verdict_lines(found: Sequence[Verdict]) -> list[str]:
    """One line per verdict."""
    word = {True: "holds", False: "FAILS", None: "not run"}
    return [f"{word[v.holds]:8}{v.name:24} {v.interval or ''!s:26}   {v.claim}" for v in found]


def _ablation_lines(table: Table) -> list[str]:
    return ["reward minus shift-mid's:"] + [f"  {name:14} {value}" for name, value in ablations(table).items()]


def write_clips(names: Sequence[str], folder: Path, arms: Path | None = None) -> None:
    """Write an mp4, a gif and a png of three moments: a row per held-out first frame, a column per arm.

    `arms` holds the arms' results; by default it stands beside `folder`.
    """
    arms = arms or folder.parent / "arms"
    form = ClipForm(num_frames=NUM_FRAMES, fps=FPS, height_px=SIDE_PX, width_px=SIDE_PX)
    columns = [find_sources([str(arms / f"{name}-0" / "clips")], "train") for name in names]
    rows = [
        side_by_side([read_clip(source.path, form) for source in sources]).frames
        for sources in zip(*columns, strict=True)
    ]
    frames = np.concatenate(rows, axis=2).repeat(ENLARGED, axis=2).repeat(ENLARGED, axis=3)
    write_clip(folder / "clips.mp4", Clip(frames=frames, fps=FPS))
    images = [Image.fromarray(_titled(frame.transpose(1, 2, 0), names)) for frame in frames]
    images[0].save(folder / "clips.gif", save_all=True, append_images=images[1:], duration=round(1000 / FPS), loop=0)
    moments = [np.asarray(images[t]) for t in (0, NUM_FRAMES // 2, NUM_FRAMES - 1)]
    Image.fromarray(np.concatenate(moments, axis=0)).save(folder / "clips.png")


def _titled(image: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.uint8]:
    """The image with the arms' names above their columns."""
    bar = np.full((18, image.shape[1], 3), 255, np.uint8)
    for at, name in enumerate(names):
        place = (at * (SIDE_PX + 2) * ENLARGED + 2, 13)
        cv2.putText(bar, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, image], axis=0)
