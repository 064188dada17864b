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
    """`rewards`: combined rewards by name, "real" and "FAULT STRENGTH", as `experiments.demo.twins_of` names them."""
    figure = Figure(figsize=(12, 4.6), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.6, 1])[0]
    panels = left.subplots(2, COLUMNS)
    twin = with_fault(window, FAULT, 1.0, seed=0)
    for row, clip, name, reward in (
        (panels[0], window, "real clip", rewards["real"]),
        (panels[1], twin, f"{FAULT} copy", rewards[f"{FAULT} 1"]),
    ):
        _frames(list(row), clip)
        row[0].set_title(f"{name}: reward {reward:.2f}", loc="left", fontsize=12)
    left.supxlabel("coloured lines: paths of tracked points since the first frame", fontsize=11)
    _bars(right.subplots(), rewards)
    FigureCanvasAgg(figure)  # no display, no global figure
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize(NUM_COLOURS).save(path, optimize=True)


def _frames(panels: list[Axes], clip: Clip) -> None:
    """Draw frames over the clip's length. Each track runs from the first frame, as long as its point is followed."""
    tracks_TN2, followed_TN = _tracks(clip)
    rows = tracks_TN2[0, :, 1] / clip.frames.shape[2]
    colours = colormaps["turbo"](0.15 + 0.75 * rows)  # without the two dark ends
    moments = np.linspace(0, len(clip.frames) - 1, len(panels)).round().astype(int)
    for panel, t in zip(panels, moments, strict=True):
        panel.imshow(clip.frames[t].transpose(1, 2, 0))
        seen = followed_TN[: t + 1].all(axis=0)
        tails = LineCollection(list(tracks_TN2[: t + 1, seen].transpose(1, 0, 2)), colors=colours[seen], linewidths=1.3)
        panel.add_collection(tails)
        x, y = tracks_TN2[t, seen].T
        panel.scatter(x, y, s=4, c=colours[seen])
        panel.set(xlim=(0, clip.frames.shape[3]), ylim=(clip.frames.shape[2], 0), xticks=[], yticks=[])
        panel.set_xlabel(f"{t / clip.fps:.1f} s", fontsize=11)


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
    panel.axvline(rewards["real"], color=REAL, linestyle="--", linewidth=1.2, label="real clip")
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_yticks([*rows, len(faults)], [*(name.replace("_", " ") for name in faults), "real clip"], fontsize=11)
    panel.tick_params(axis="x", labelsize=11)
    panel.set_xlabel("higher: motion looks more real", fontsize=11)
    panel.set_title("combined reward", loc="left", fontsize=12)
    panel.legend(loc="upper left", bbox_to_anchor=(0, 0.92), fontsize=11, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
