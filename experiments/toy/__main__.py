"""The command line: `python -m experiments.toy base | clips | picture`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from experiments.toy.base import SIZES, train_toy
from experiments.toy.picture import draw
from experiments.toy.scenes import draw_clips
from trainer.policies.shipped import digest_of
from trainer.video import write_clip

app = typer.Typer(help="Make the toy base that the package ships, and clips for it.", no_args_is_help=True)

Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]


@app.command()
def base(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the base. It is replaced.")],
    seed: Seed = 0,
    size: Annotated[
        Literal["shipped", "smoke"],
        typer.Option(help="smoke: a quick test, whose samples are noise."),
    ] = "shipped",
) -> None:
    """Train the toy base on drawn scenes, with one thread, and write it with its card."""
    torch.set_num_threads(1)  # other numbers give other bits
    typer.echo(f"{out}: digest {digest_of(train_toy(out, SIZES[size], seed=seed))}")


@app.command()
def clips(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the clips.")],
    num: Annotated[int, typer.Option(min=1, help="Number of clips.")] = 32,
    seed: Seed = 1,
    pace: Annotated[float, typer.Option(min=0, help="How fast everything moves; the base was trained on 1.")] = 1.0,
) -> None:
    """Draw scenes to fine-tune the toy base on, as lossless clips in the form of the preset `tiny`."""
    for number, clip in enumerate(draw_clips(num, seed=seed, pace=pace)):
        write_clip(out / f"{number:05d}.safetensors", clip)
    typer.echo(f"wrote {num} clips to {out}")


@app.command()
def picture(
    *,
    evaluation: Annotated[Path, typer.Option(help="Folder that `python -m trainer evaluate` wrote.")],
    out: Annotated[Path, typer.Option(help="The picture, a .png file.")],
    num: Annotated[int, typer.Option(min=1, help="Number of first frames to show.")] = 3,
) -> None:
    """Draw frames of an evaluation's clips: the real one, the base's sample, and the checkpoint's sample."""
    typer.echo(f"wrote {draw(evaluation, out, num)}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    app()
