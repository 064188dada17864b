"""Draws frames of an evaluation's clips, one row a clip: the real one, the base's sample, the checkpoint's sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image, ImageSequence

KINDS = ("real", "base", "checkpoint")  # from left to right in the evaluation's side-by-side clips
LINE_PX = 2  # between them
NUM_COLOURS = 128  # in the file's palette


def draw(evaluation: Path, out: Path, num: int) -> Path:
    """Draw the first `num` clips of the folder. Raises FileNotFoundError if it has no side-by-side clips."""
    paths = sorted(evaluation.glob("*-real-base-checkpoint.gif"))[:num]
    if not paths:
        raise FileNotFoundError(f"{evaluation} has no side-by-side clips; run `python -m trainer evaluate --to` first")
    rows = [(kind, clip) for path in paths for kind, clip in zip(KINDS, _parts(path), strict=True)]
    num_frames = len(rows[0][1])
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    figure = Figure(figsize=(1.25 * num_frames, 0.88 * len(rows)), dpi=90, layout=layout)
    for panels, (kind, clip) in zip(figure.subplots(len(rows), num_frames, squeeze=False), rows, strict=True):
        for panel, image in zip(panels, clip, strict=True):
            panel.imshow(image, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
        panels[0].set_ylabel(kind, fontsize=10)
    FigureCanvasAgg(figure)  # no display, no global figure
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    Image.open(out).convert("RGB").quantize(NUM_COLOURS).save(out, optimize=True)
    return out


def _parts(path: Path) -> list[NDArray[np.uint8]]:
    """The three clips of a side-by-side gif, [T,H,W,3] each."""
    with Image.open(path) as file:
        frames = np.stack([np.asarray(image.convert("RGB")) for image in ImageSequence.Iterator(file)])
    width = (frames.shape[2] - 2 * LINE_PX) // 3
    return [frames[:, :, at * (width + LINE_PX) :][:, :, :width] for at in range(3)]
