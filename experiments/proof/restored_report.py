"""Writes the report of the third plan: tables and verdicts as text, two plots and clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.proof.learned import ScoredGroups, partial_correlation
from experiments.proof.plots import plot_gains, plot_histograms
from experiments.proof.report import plain, time_over_sft, verdict_lines, write_clips
from experiments.proof.restored import SHIFT, SeedRuns, by_seed, distance, restored_verdicts, share_of
from experiments.proof.restoring import PartName
from reward_server.stats import auc

SHOWN = ("base", "sft", "replay", "known", SHIFT, "shift-fixed")
BINS = np.linspace(0, 2, 11)  # of the histogram, px per frame


def write_restored(part: PartName, runs: Sequence[SeedRuns], folder: Path) -> dict[str, Any]:
    """Write report.txt, histograms.png, gains.png and the first seed's clips to `folder`. Returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    found = restored_verdicts(part, runs)
    arms = _in_order(arm for arm in runs[0].samples if all(arm in run.samples for run in runs))
    rows = {arm: _figures(part, runs, arm) for arm in arms}
    lines = [
        *_arm_lines(runs, rows),
        "",
        *_histogram_lines(runs, arms),
        "",
        *verdict_lines(found),
        "",
        *_recipe_lines(runs),
    ]
    (folder / "report.txt").write_text("\n".join(lines) + "\n")
    plot_histograms([run.samples for run in runs], [run.data_px for run in runs], arms, BINS, folder / "histograms.png")
    plot_gains(rows, [run.seed for run in runs], folder / "gains.png")
    write_clips([arm for arm in SHOWN if arm in arms], folder, runs[0].folder / "arms")
    return {
        "arms": rows,
        "verdicts": {verdict.name: plain(verdict) for verdict in found},
        "time_over_sft": [time_over_sft(run.records) for run in runs],
        "yes": all(verdict.holds for verdict in found[:3]),
    }


def _in_order(arms: Iterable[str]) -> list[str]:
    """The arms as the report shows them: those of SHOWN first."""
    return sorted(arms, key=lambda arm: SHOWN.index(arm) if arm in SHOWN else len(SHOWN))


def _figures(part: PartName, runs: Sequence[SeedRuns], arm: str) -> dict[str, list[float]]:
    """An arm's figures, one value for each seed. `kept` is of the speed that sft loses."""
    found = {
        "speed_px": by_seed(runs, lambda samples, data_px: float(samples[arm]["speed_px"].mean())),
        "distance_px": by_seed(runs, lambda samples, data_px: distance(samples[arm], data_px)),
        "look_error": by_seed(runs, lambda samples, data_px: float(samples[arm]["look_error"].mean())),
    }
    if all("sft" in run.samples for run in runs):
        found["restored"] = by_seed(runs, share_of(arm, "data"))
        if part == "static" and all("base" in run.samples for run in runs):
            found["kept"] = by_seed(runs, share_of(arm, "base"))
    return {name: [round(value, 4) for value in values] for name, values in found.items()}


def _arm_lines(runs: Sequence[SeedRuns], rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    columns = list(next(iter(rows.values())))
    speeds = ", ".join(f"{run.data_px.mean():.3f}" for run in runs)
    lines = [
        f"of seeds {', '.join(str(run.seed) for run in runs)}; speeds to reach: {speeds} px per frame",
        "arm".ljust(17) + "".join(f"{name:24}" for name in columns),
    ]
    for arm, values in rows.items():
        cells = (", ".join(f"{value:.3f}" for value in values[name]) for name in columns)
        lines.append(f"{arm:17}" + "".join(f"{cell:24}" for cell in cells))
    return lines


def _histogram_lines(runs: Sequence[SeedRuns], arms: Sequence[str]) -> list[str]:
    """Percent of the rollouts in each bin of speed. What is faster than the last bin counts in it."""
    lines = ["speed, % in bins from".ljust(24) + "".join(f"{low:6.1f}" for low in BINS[:-1])]
    speeds = {"data": np.concatenate([run.data_px for run in runs])}
    speeds |= {arm: np.concatenate([run.samples[arm]["speed_px"].ravel() for run in runs]) for arm in arms}
    for name, values in speeds.items():
        counts, _ = np.histogram(values.clip(BINS[0], BINS[-1]), BINS)
        lines.append(f"{name:24}" + "".join(f"{100 * count / len(values):6.0f}" for count in counts))
    return lines


def _recipe_lines(runs: Sequence[SeedRuns]) -> list[str]:
    lines = [
        "recipe, reward".ljust(28) + "AUC, gap, spread in a group, correlation with speed at like look; a seed each"
    ]
    for name in runs[0].heads:
        for reward in runs[0].heads[name].rewards:
            cells = "   ".join(_recipe_cell(run.heads[name], reward) for run in runs if name in run.heads)
            lines.append(f"{name + ', ' + reward:28}{cells}")
    return lines


def _recipe_cell(scored: ScoredGroups, reward: str) -> str:
    rewards, of = scored.rewards[reward], scored.measures
    gap = float((rewards[:, 0] - rewards[:, 1:].mean(axis=1)).mean())
    spread = float(np.sqrt(rewards[:, 1:].var(axis=1, ddof=1).mean()))
    follows = partial_correlation(rewards, of["speed_px"], of["look_error"])
    return f"{auc(rewards[:, 0], rewards[:, 1:].ravel()):.2f} {gap:+.2f} {spread:.2f} {follows:+.2f}"
