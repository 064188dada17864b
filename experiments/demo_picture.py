"""Draws the demo's picture: frames of the real clip and of one faulty copy with point tracks, and bars of all rewards.

`draw(path, window, rewards)` writes a PNG. T frames, N points, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from protos.types import Clip
from reward_server.faults import with_fault
from reward_server.profiles.embedded import EmbeddedProfile

FAULT = "wobbled"  # fault of the copy that is shown, at full strength
COLUMNS = 3  # frames shown of each clip
POINTS_ACROSS = 16
NUM_COLOURS = 128  # in the file's palette
REAL, FULL, HALF = "#2a9d8f", "#d1495b", "#edae9f"


def draw(path: Path, window: Clip, rewards: Mapping[str, float]) -> None:
    """Draw the picture to `path`. `rewards` are combined rewards by the names of `experiments.demo.twins_of`."""
    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, COLUMNS + 1, width_ratios=[1.0] * COLUMNS + [1.35])
    twin = with_fault(window, FAULT, 1.0, seed=0)
    for row, (clip, title) in enumerate(
        [(window, f"real clip: reward {rewards['real']:.2f}"), (twin, f"{FAULT}: reward {rewards[f'{FAULT} 1']:.2f}")]
    ):
        panels = [figure.add_subplot(grid[row, column]) for column in range(COLUMNS)]
        _frames(panels, clip)
        panels[0].set_title(title, loc="left", fontsize=11)
    _bars(figure.add_subplot(grid[:, COLUMNS]), rewards)
    FigureCanvasAgg(figure)  # needs no display and no global figure
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize(NUM_COLOURS).save(path, optimize=True)


def _frames(panels: list[Axes], clip: Clip) -> None:
    """Draw frames over the clip's length. Each track runs from the first frame, as long as its point is followed."""
    tracks_TN2, followed_TN = _tracks(clip)
    colours = colormaps["turbo"](tracks_TN2[0, :, 1] / clip.frames.shape[2])
    moments = np.linspace(0, len(clip.frames) - 1, len(panels)).round().astype(int)
    for panel, t in zip(panels, moments, strict=True):
        panel.imshow(clip.frames[t].transpose(1, 2, 0))
        seen = followed_TN[: t + 1].all(axis=0)
        tails = LineCollection(list(tracks_TN2[: t + 1, seen].transpose(1, 0, 2)), colors=colours[seen], linewidths=1.6)
        panel.add_collection(tails)
        x, y = tracks_TN2[t, seen].T
        panel.scatter(x, y, s=5, c=colours[seen])
        panel.set(xlim=(0, clip.frames.shape[3]), ylim=(clip.frames.shape[2], 0), xticks=[], yticks=[])
        panel.set_xlabel(f"{t / clip.fps:.1f} s", fontsize=9)


def _tracks(clip: Clip) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tracks [T,N,2] of a grid of points from the embedded profile's estimators, and where each is followed [T,N]."""
    height, width = clip.frames.shape[2:]
    spacing = width / POINTS_ACROSS
    x, y = np.meshgrid(np.arange(spacing / 2, width, spacing), np.arange(spacing / 2, height, spacing))
    motion = EmbeddedProfile().estimators.estimate(clip, np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64))
    return motion.tracks.numpy(), motion.visibility.numpy() > 0.5


def _bars(panel: Axes, rewards: Mapping[str, float]) -> None:
    """Draw a row for each fault, the lowest reward at full strength at the bottom, and the real clip's on top."""
    faults = sorted({name.split()[0] for name in rewards if name != "real"}, key=lambda name: rewards[f"{name} 1"])
    rows = np.arange(len(faults))
    panel.barh(rows - 0.2, [rewards[f"{name} 1"] for name in faults], 0.38, color=FULL, label="full strength")
    panel.barh(rows + 0.2, [rewards[f"{name} 0.5"] for name in faults], 0.38, color=HALF, label="half strength")
    panel.barh(len(faults), rewards["real"], 0.7, color=REAL)
    panel.axvline(rewards["real"], color=REAL, linestyle="--", linewidth=1)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks([*rows, len(faults)], [*(name.replace("_", " ") for name in faults), "real clip"], fontsize=9)
    panel.set_title("combined reward", loc="left", fontsize=11)
    panel.legend(loc="upper left", bbox_to_anchor=(0, 0.92), fontsize=9, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
