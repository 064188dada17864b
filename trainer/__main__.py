"""The command line: `python -m trainer train | rollout | evaluate | report`.

Each command but `report` takes `--config` and overrides `section.key=value`. `train --print-config` prints the whole
configuration as YAML, which `--config` can read back.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.logging import RichHandler
from stamina.instrumentation import set_on_retry_hooks

app = typer.Typer(help="SHIFT: fine-tune an image-to-video model with motion rewards.", no_args_is_help=True)

ConfigSource = Annotated[str | None, typer.Option("--config", help="A preset (tiny, svd, wan) or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value, for instance seed=1.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the whole configuration as YAML and exit.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint folder. Default: the latest of the run in `out`.")]


@app.command()
def train(*, config: ConfigSource = None, overrides: Overrides = None, print_config: PrintConfig = False) -> None:
    """Train a policy, or resume the run in `out`.

    For several processes, start it with accelerate launch (GPUs) or torchrun (CPUs) and -m trainer.
    """
    from trainer.config import load, to_yaml  # noqa: PLC0415 - diffusers is slow to import; --help should not wait

    settings = load(config, overrides or ())
    if print_config:
        typer.echo(to_yaml(settings), nl=False)
        return
    from trainer.train import run_training  # noqa: PLC0415

    progress = run_training(settings)
    message = f"trained {progress.step} steps; checkpoints and samples are in {settings.out}"
    if settings.refresh.enabled:
        message += f"; to evaluate with the last discriminators, set evaluate.discriminator_version={progress.version}"
    typer.echo(message)


@app.command()
def rollout(
    *,
    to: Annotated[Path, typer.Option(help="Folder for the clips and for rollouts.jsonl, which lists them.")],
    real_to: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the matching real clips, in the policy's form and through its VAE, under the same names."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder. Default: the base model itself.")] = None,
    lossless: Annotated[bool, typer.Option(help="Write clips as .safetensors tensors instead of mp4.")] = False,
    split: Annotated[
        Literal["train", "held_out"], typer.Option(help="Data split that first frames come from.")
    ] = "train",
    config: ConfigSource = None,
    overrides: Overrides = None,
) -> None:
    """Write rollouts of a policy as clips: evaluate.per_clip rollouts of each of evaluate.num_clips first frames.

    With --real-to it also writes the matching real clips, for `motion-reward pretrain --real REAL_TO --generated TO`.
    """
    from trainer.config import load  # noqa: PLC0415
    from trainer.evaluate import write_rollouts  # noqa: PLC0415

    settings = load(config, overrides or ())
    num = write_rollouts(settings, to, real_to=real_to, checkpoint=checkpoint, lossless=lossless, split=split)
    typer.echo(f"wrote {num} clips to {to}")


@app.command()
def evaluate(
    *,
    to: Annotated[Path, typer.Option(help="Folder for evaluation.json, .csv and side-by-side clips.")],
    checkpoint: Checkpoint = None,
    config: ConfigSource = None,
    overrides: Overrides = None,
) -> None:
    """Compare a checkpoint with its base on held-out first frames. The last line is the summary as JSON.

    It reports rewards per discriminator, dynamic degree, and speeds and accelerations along point tracks, with 95 %
    intervals.
    """
    from trainer.config import load  # noqa: PLC0415
    from trainer.evaluate import evaluate_checkpoint  # noqa: PLC0415

    typer.echo(evaluate_checkpoint(load(config, overrides or ()), to, checkpoint=checkpoint))


@app.command()
def report(*, folder: Annotated[Path, typer.Argument(help="The `out` folder of a run.")]) -> None:
    """Write run.html of a run, also of one that goes on: curves, what they mean, and sample clips in one file."""
    from trainer.report.page import write_report  # noqa: PLC0415

    typer.echo(f"wrote {write_report(folder)}")


def main() -> None:
    """Run the command line. An error that the user can act on is printed as one line, without a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    set_on_retry_hooks(())  # rewards/patient_client.py logs its retries itself
    from protos.client import RewardClientError  # noqa: PLC0415
    from trainer.errors import TrainerError  # noqa: PLC0415

    try:
        app()
    except (TrainerError, RewardClientError) as error:
        logging.getLogger("trainer").debug("", exc_info=True)
        typer.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
