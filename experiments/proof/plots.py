"""Draws the proof's plots: rewards and speeds of all arms, use of the loophole, discriminator logits, several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from experiments.proof.verdicts import GRID, Table, interval

matplotlib.use("Agg")

COLOURS = {
    "base": "black",
    "sft": "#d95f02",
    "replay": "grey",
    "shift-low": "#9ecae1",
    "shift-mid": "#4292c6",
    "shift-high": "#08306b",
    "fixed": "#c0504d",
    "refreshed": "#4292c6",
    "regression": "#54a24b",
    "shift-fixed": "#c0504d",
    "shift-refreshed": "#4292c6",
    "known": "#54a24b",
}


def plot_reward(table: Table, records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Level 1: reward of fresh rollouts by arm, rewards by buffer, and speeds."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2))
    _bars(left, table, [name for name in table if name not in ("fixed", "refreshed")][::-1], "reward")
    left.set_xlabel("reward of fresh rollouts (optimum 0), 95 % interval")
    for name in ("replay", *GRID):
        _history(middle, records, name, "reward_rollouts/combined", style="o-", label=name)
    middle.set(xlabel="buffer", ylabel="mean reward of its rollouts")
    if middle.lines:
        middle.legend()
    for name in ("base", *GRID):
        if name in table:
            speeds = table[name]["speed_px"].ravel()
            bins = np.linspace(0, 2, 17).tolist()
            right.hist(speeds, bins=bins, histtype="step", label=name, color=COLOURS[name])
    right.set(xlabel="tracked speed, px per frame", ylabel="first frames")
    if right.patches:
        right.legend()
    _save(figure, path)


def plot_loophole(table: Table, records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Level 1: glow of fresh rollouts by arm, and the flawed discriminator's logits by buffer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    _bars(left, table, [name for name in ("refreshed", "fixed", "sft", "base") if name in table], "glow")
    left.set_xlabel("glow of fresh rollouts, grey levels, 95 % interval")
    for name in ("fixed", "refreshed"):
        _history(right, records, name, "reward_rollouts/combined", style="o-", label=f"{name}, rollouts")
        _history(right, records, name, "reward_real/combined", style="s:", label=f"{name}, real")
    right.set(xlabel="buffer", ylabel="mean logit")
    if right.lines:
        right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves, not over them
    _save(figure, path)


def plot_motion(
    samples: Mapping[str, Mapping[str, NDArray[np.float64]]],
    data_px: Sequence[float],
    records: Sequence[Mapping[str, Any]],
    path: Path,
) -> None:
    """Level 3: speeds by arm beside the data's, their distributions, and rewards by buffer. Samples are [S,N,R]."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2))
    table = {arm: {"speed_px": of["speed_px"].mean(axis=2)} for arm, of in samples.items()}
    _bars(left, table, list(table)[::-1], "speed_px")
    left.axvline(float(np.mean(data_px)), color="black", linestyle=":", label="data")
    left.set_xlabel("speed of fresh rollouts, px per frame, 95 % interval")
    left.legend()
    levels = np.linspace(0, 1, 101)
    for name in ("base", "sft", "shift-mid", "shift-high"):
        if name in samples:
            middle.plot(np.quantile(samples[name]["speed_px"], levels), levels, label=name, color=COLOURS[name])
    middle.plot(np.quantile(data_px, levels), levels, "k:", label="data")
    middle.set(xlabel="speed, px per frame", ylabel="share of rollouts that are slower")
    middle.legend()
    for name in ("shift-fixed", "shift-mid", "shift-high"):
        _history(right, records, name, "reward_rollouts/combined", style="o-", label=f"{name}, rollouts")
        _history(right, records, name, "reward_real/combined", style="s:", label=f"{name}, real")
    right.set(xlabel="buffer", ylabel="mean reward")
    if right.lines:
        right.legend()
    _save(figure, path)


def plot_seeds(
    tables: Mapping[int, Table], data: Mapping[int, Mapping[str, float]], arms: Sequence[str], path: Path
) -> None:
    """Level 3 over data seeds: speed and look error by arm, one mark per stream and seed, with the data on top."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    rows = ["data", *arms]
    names = (("speed_px", "speed, px per frame"), ("look_error", "look error"))
    for panel, (measure, title) in zip(axes, names, strict=True):
        for number, (seed, table) in enumerate(tables.items()):
            colour, offset = f"C{number}", 0.2 * (number - (len(tables) - 1) / 2)
            panel.plot(data[seed][measure], offset, "k|", markersize=12)
            panel.plot(data[seed][measure], offset, "o", color=colour, label=f"seed {seed}")
            for row, arm in enumerate(arms, 1):
                streams = table[arm][measure].mean(axis=1)
                panel.plot(streams, [row + offset] * len(streams), "o-", color=colour, markersize=4)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xlabel(title)
        panel.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend()
    _save(figure, path)


def plot_histograms(
    samples: Sequence[Mapping[str, Mapping[str, NDArray[np.float64]]]],
    data_px: Sequence[NDArray[np.float64]],
    arms: Sequence[str],
    bins: NDArray[np.float64],
    path: Path,
) -> None:
    """Third plan: a histogram of speeds for each arm, all seeds together, over that of the speeds to reach."""
    figure, panels = plt.subplots(1, len(arms), figsize=(2.6 * len(arms), 3), sharey=True, squeeze=False)
    reach = np.concatenate(list(data_px))
    for panel, arm in zip(panels[0], arms, strict=True):
        speeds = np.concatenate([of[arm]["speed_px"].ravel() for of in samples])
        for values, style in ((reach, {"color": "lightgrey"}), (speeds, {"histtype": "step", "linewidth": 1.8})):
            weights = np.full(len(values), 100 / len(values))
            colour = {} if "color" in style else {"color": COLOURS.get(arm, "#4292c6")}
            panel.hist(values.clip(bins[0], bins[-1]), bins=bins.tolist(), weights=weights, **style, **colour)
        panel.set(title=arm, xlabel="speed, px per frame")
    panels[0][0].set_ylabel("% (grey: to reach)")
    _save(figure, path)


def plot_gains(rows: Mapping[str, Mapping[str, Sequence[float]]], seeds: Sequence[int], path: Path) -> None:
    """Third plan: speed, distance of the speeds and look error by arm, one mark for each seed."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 0.4 * len(rows) + 1.6), sharey=True)
    names = (
        ("speed_px", "speed, px per frame"),
        ("distance_px", "distance of speeds, px"),
        ("look_error", "look error"),
    )
    for panel, (measure, title) in zip(axes, names, strict=True):
        for at, seed in enumerate(seeds):
            panel.plot([of[measure][at] for of in rows.values()], range(len(rows)), "o", label=f"seed {seed}")
        panel.set_yticks(range(len(rows)), list(rows))
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
    axes[0].invert_yaxis()
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the marks, not over them
    _save(figure, path)


def _bars(axes: Any, table: Table, names: Sequence[str], measure: str) -> None:
    """Draw horizontal bars with intervals, the last name on top."""
    found = [interval(table[name][measure]) for name in names]
    spans = np.array([[one.mean - one.low for one in found], [one.high - one.mean for one in found]])
    axes.barh(names, [one.mean for one in found], xerr=spans, color="#7a9cc6")


def _history(axes: Any, records: Sequence[Mapping[str, Any]], arm: str, key: str, *, style: str, label: str) -> None:
    """Draw a line for each stream of an arm over its buffers, with one label for all."""
    for record in records:
        if record["arm"] == arm and record["history"][key]:
            shown = label if record["stream"] == 0 else None
            axes.plot(record["history"][key], style, color=COLOURS[arm], label=shown)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
