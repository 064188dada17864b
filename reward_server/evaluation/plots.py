"""Draws the plots of `sanity`, `evaluate` and `attack` with matplotlib's Agg canvas, so without a display.

Legend: C ladders, D faults, R rungs (the real clip, then STRENGTHS), 3 rewards in the order of REWARDS.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullFormatter

from protos.types import REWARDS
from reward_server.evaluation.by_motion import Band
from reward_server.evaluation.report import Figures
from reward_server.evaluation.validity import AMOUNT, Discrimination, Judged
from reward_server.faults import NAMES, STRENGTHS
from reward_server.stats import Floats, auc, roc

COLOURS = {"combined": "black", "instantaneous": "tab:blue", "long_term": "tab:orange"}
NUM_BINS = 24

SharesByValue = Mapping[str, Mapping[str, Mapping[str, float | None]]]  # by value, disguise and kind


def ladder(path: Path, rewards_CDR3: Floats) -> None:
    """Plot reward against strength, one panel per fault: mean over ladders, and the 10th to 90th percentile."""
    rows = -(-len(NAMES) // 4)
    figure = Figure(figsize=(14, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, 4, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, name, rewards_CR3 in zip(panels, NAMES, rewards_CDR3.transpose(1, 0, 2, 3), strict=False):
        for reward_name, rewards_CR in zip(REWARDS, rewards_CR3.transpose(2, 0, 1), strict=True):
            _spread(panel, reward_name, rewards_CR)
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.supxlabel("strength of the fault (0: the real clip)")
    figure.supylabel("reward: mean, 10th to 90th percentile")
    _save(figure, path)


def shares(path: Path, figures: Sequence[Figures]) -> None:
    """Draw heat maps of the share of pairs ordered right, by fault and strength, one panel per reward."""
    names = list(dict.fromkeys(row.name for row in figures))
    figure = Figure(figsize=(13, 1.5 + 0.4 * len(names)), layout="constrained")
    for panel, reward_name in zip(figure.subplots(1, len(REWARDS), sharey=True), REWARDS, strict=True):
        rows = [row for row in figures if row.reward_name == reward_name]
        fractions = [[share.fraction for share in row.by_strength] for row in rows]
        drawn = _heat_map(panel, fractions)
        panel.set_xticks(range(len(STRENGTHS)), [f"{strength:g}" for strength in STRENGTHS])
        panel.set_yticks(range(len(names)), names)
        panel.set(title=reward_name, xlabel="strength")
    figure.colorbar(drawn, label="% of pairs with the real clip above")
    _save(figure, path)


def histograms(path: Path, real: Mapping[str, Floats], generated: Mapping[str, Floats]) -> None:
    """Draw the histograms of each reward or statistic over both sets, one panel each."""
    figure = Figure(figsize=(14, 3 * -(-len(real) // 4)), layout="constrained")
    panels = figure.subplots(-(-len(real) // 4), 4, squeeze=False).ravel()
    for panel, (name, values) in zip(panels, real.items(), strict=False):
        bins = np.histogram_bin_edges(np.concatenate([values, generated[name]]), NUM_BINS)
        for label, colour, side in (("real", "tab:green", values), ("generated", "tab:red", generated[name])):
            weights = np.full(side.size, 1 / side.size)
            panel.hist(side, bins=bins, weights=weights, alpha=0.5, color=colour, label=f"{label} ({side.size})")
        panel.set_title(name.replace("_", " "), fontsize=10)
    for panel in panels[len(real) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=8)
    figure.supylabel("share of the clips")
    _save(figure, path)


def roc_curves(path: Path, real: Mapping[str, Floats], generated: Mapping[str, Floats]) -> None:
    """Draw the ROC curve of each reward (solid) and of each floor (dotted)."""
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    for name, values in real.items():
        false_rate, true_rate = roc(values, generated[name])
        label = f"{name.replace('_', ' ')} ({auc(values, generated[name]):.2f})"
        axes.plot(
            false_rate, true_rate, label=label, color=COLOURS.get(name), linestyle="-" if name in COLOURS else ":"
        )
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
    axes.set(xlabel="generated clips at or above the threshold", ylabel="real clips at or above it", aspect="equal")
    axes.legend(title="AUC, real above generated", fontsize=8, loc="lower right")
    _save(figure, path)


def validity(path: Path, judged: Sequence[Judged], rows: Sequence[Discrimination]) -> None:
    """Draw the AUC of the combined reward by generator, with its interval, and the reward against the amount."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    bars, cloud = figure.subplots(1, 2)
    shown = [row for row in rows if row.value == REWARDS[0] and row.control == "all" and row.found.auc is not None]
    for y, row in enumerate(reversed(shown)):
        bars.plot(row.found.auc, y, "o", color="black")
        if row.found.interval:
            bars.hlines(y, row.found.interval.low, row.found.interval.high, color="black")
    names = [f"{row.generator} ({row.num_generated})" for row in reversed(shown)]
    bars.set_yticks(range(len(names)), names, fontsize=8)
    bars.axvline(0.5, color="grey", linewidth=0.5)
    bars.set(xlim=(0, 1), xlabel="AUC of the combined reward, real above generated; 95 % over sources")
    for label, colour in (("real", "tab:green"), ("generated", "tab:red")):
        mine = [item.values for item in judged if item.clip.label == label and AMOUNT in item.values]
        amounts = [max(values[AMOUNT], 1e-3) for values in mine]
        cloud.plot(amounts, [values[REWARDS[0]] for values in mine], ".", color=colour, label=label)
    cloud.set(xscale="log", xlabel="amount of motion, short sides per second", ylabel="combined reward")
    cloud.xaxis.set_minor_formatter(NullFormatter())  # labels between powers of ten would overlap
    cloud.legend()
    _save(figure, path)


def reward_by_motion(path: Path, bands: Sequence[Band]) -> None:
    """Draw the median reward by band of motion, with its quartiles: one panel per group, the real clips in each."""
    groups = list(dict.fromkeys(band.group for band in bands))
    others = [group for group in groups if group != "real"] or groups
    columns = min(4, len(others))
    figure = Figure(figsize=(3.5 * columns + 1, 3 * -(-len(others) // columns)), layout="constrained")
    panels = figure.subplots(-(-len(others) // columns), columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, others, strict=False):
        for group, colour in (("real", "tab:green"), (name, "tab:red")):
            known = [b for b in bands if b.group == group and b.median is not None]
            lower, median, upper = ([getattr(b, key) for b in known] for key in ("lower", "median", "upper"))
            places = [max(b.low, 0.01) for b in known]
            panel.plot(places, median, ".-", color=colour, label=group)
            panel.fill_between(places, lower, upper, color=colour, alpha=0.12, linewidth=0)
        panel.set(xscale="log", title=name)
        panel.xaxis.set_minor_formatter(NullFormatter())  # labels between powers of ten would overlap
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    for panel in panels[len(others) :]:
        panel.set_axis_off()
    figure.supxlabel("total motion, frame heights per second: lower end of the band")
    figure.supylabel("combined reward: median and quartiles")
    _save(figure, path)


def resistance(path: Path, plain: SharesByValue, same: SharesByValue) -> None:
    """Draw heat maps of shares 0..1 by disguise and kind: one column of panels per value, one row per comparison."""
    figure = Figure(figsize=(3.4 * len(plain), 11), layout="constrained")
    panels = figure.subplots(2, len(plain), sharey=True, squeeze=False)
    titles = ("real clip", "real clip under the same disguise")
    for row, by_value, title in zip(panels, (plain, same), titles, strict=True):
        for panel, (value, by_disguise) in zip(row, by_value.items(), strict=True):
            kinds = list(next(iter(by_disguise.values())))
            drawn = _heat_map(panel, [list(by_kind.values()) for by_kind in by_disguise.values()], low=0)
            panel.set_xticks(range(len(kinds)), kinds, rotation=45)
            panel.set_yticks(range(len(by_disguise)), list(by_disguise))
            panel.set_title(value.replace("_", " "))
        row[0].set_ylabel(f"% of clips with the {title} above")
    figure.colorbar(drawn, ax=panels)
    _save(figure, path)


def gains(path: Path, by_search: Mapping[str, Floats], limit: float) -> None:
    """Draw one point per clip and search, with the mean, and a line at `limit`."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for at, values in enumerate(by_search.values()):
        known = values[~np.isnan(values)]
        spread = at + 0.25 * (np.arange(known.size) / max(1, known.size - 1) - 0.5)
        axes.plot(spread, known, "o", alpha=0.6)
        if known.size:
            axes.hlines(known.mean(), at - 0.25, at + 0.25, color="black")
    axes.axhline(limit, color="tab:red", linestyle=":", label=f"{limit:g}")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xticks(range(len(by_search)), list(by_search))
    axes.set_ylabel("(found - real) / (real - strong faults)")
    axes.set_title("What the searches gained, one point per clip")
    axes.legend()
    _save(figure, path)


def _spread(panel: Axes, reward_name: str, rewards_CR: Floats) -> None:
    strengths = (0.0, *STRENGTHS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a rung without any reward is NaN and leaves a gap in the line
        middle = np.nanmean(rewards_CR, axis=0)
        low, high = np.nanpercentile(rewards_CR, [10, 90], axis=0)
    panel.plot(strengths, middle, color=COLOURS[reward_name], marker=".", label=reward_name.replace("_", " "))
    panel.fill_between(strengths, low, high, color=COLOURS[reward_name], alpha=0.12, linewidth=0)


def _heat_map(panel: Axes, fractions: Sequence[Sequence[float | None]], *, low: float = 50) -> AxesImage:
    """Draw shares 0..1 as per cent, in figures and in colours from `low` to 100."""
    percents = 100 * np.array(fractions, dtype=np.float64)  # None, an absent fraction, becomes NaN
    for (y, x), value in np.ndenumerate(percents):
        panel.text(x, y, "–" if np.isnan(value) else f"{value:.0f}", ha="center", va="center", fontsize=8)
    return panel.imshow(percents, vmin=low, vmax=100, cmap="RdYlGn", aspect="auto", alpha=0.7)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)
