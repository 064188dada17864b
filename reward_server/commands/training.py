"""Defines `pretrain` and `reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reward_server.commands.options import Checkpoint, Fps, Profile, settings_of

RealFolders = Annotated[
    list[Path], typer.Option(help="Folder of real clips, or folder with a manifest.jsonl; may be repeated.")
]
NewCheckpoint = Annotated[Path, typer.Option(help="Checkpoint to write (.safetensors).")]
GeneratedFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of clips that your model generated (default: real clips with motion faults)."),
]
GeneratedShare = Annotated[
    float,
    typer.Option(
        min=0.01,
        max=1,
        help="Share of the negatives' loss that --generated clips take; the rest are real clips with motion "
        "faults. 1: generated clips alone.",
    ),
]
Work = Annotated[
    Path, typer.Option(help="Folder for features, logs and training state; the same folder resumes the run.")
]
Steps = Annotated[
    int,
    typer.Option(
        min=1, help="Maximum number of optimizer steps; embedded's instantaneous discriminator takes half of it."
    ),
]
TrainingSeed = Annotated[int, typer.Option(min=0, help="Seed of views, faults, batches and dropout.")]
LeftOut = Annotated[
    list[str] | None,
    typer.Option(help="A fault to leave out of training, to test the discriminators on an unseen one."),
]
StopAuc = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Stop at this held-out AUC; 0: off. Default: 0.98 against generated clips alone, 0 against faults.",
    ),
]
InstanceNoise = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Noise on real and other clips alike, in deviations of each input channel. Default: 0.1 against generated "
        "clips alone, 0 against faults.",
    ),
]
LabelSmoothing = Annotated[
    float, typer.Option(min=0, max=0.5, help="How far the targets of the loss are from 1 and 0.")
]
LogitPenalty = Annotated[float, typer.Option(min=0, help="Weight of the mean squared logit in the loss.")]


def pretrain(
    *,
    real: RealFolders,
    out: NewCheckpoint,
    generated: GeneratedFolder = None,
    generated_share: GeneratedShare = 1.0,
    fps: Fps = None,
    profile: Profile = None,
    work: Work = Path("runs/pretrain"),
    steps: Steps = 3600,
    seed: TrainingSeed = 0,
    leave_out: LeftOut = None,
    stop_auc: StopAuc = None,
    instance_noise: InstanceNoise = None,
    label_smoothing: LabelSmoothing = 0.0,
    logit_penalty: LogitPenalty = 0.0,
) -> None:
    """Train the discriminators on real clips against generated ones, or against the same clips with motion faults."""
    settings = settings_of(profile=profile)
    from reward_server.pipeline import compute_of  # noqa: PLC0415
    from reward_server.training.pretrain import pretrain as run  # noqa: PLC0415
    from reward_server.training.pretrain_config import Restraint, configs  # noqa: PLC0415

    restraint = Restraint.of(
        generated_alone=generated is not None and generated_share == 1,
        stop_auc=stop_auc,
        instance_noise=instance_noise,
        label_smoothing=label_smoothing,
        logit_penalty=logit_penalty,
    )
    cache_config, training = configs(settings.profile, steps=steps, seed=seed)
    figures = run(
        real=real,
        generated=generated,
        generated_share=generated_share,
        out=out,
        work=work,
        cache_config=cache_config,
        training={name: restraint.on(config) for name, config in training.items()},
        models=settings.models_folder,
        device=settings.device,
        compute=compute_of(settings),
        left_out=leave_out or (),
        fps=fps,
    )
    typer.echo(
        f"wrote {out}; mean of held-out AUC and share of pairs ordered right: "
        + ", ".join(f"{name} {mean:.3f}" for name, mean in figures.items())
    )


def reference(
    *,
    real: Annotated[
        list[str],
        typer.Option(
            help="Real clips that the discriminators were not trained on: a folder, file or quoted glob; may be "
            "repeated. Of a manifest, the held-out clips."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (.safetensors): the same weights with the table.")],
    checkpoint: Checkpoint = None,
    profile: Profile = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of query points and faults.")] = 0,
) -> None:
    """Write the discriminators with a reference table: which rewards real clips get, and real clips with faults. Then
    every reward comes with a percentile."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.training import reference_table  # noqa: PLC0415

    table = reference_table.run(real, settings, out=out, seed=seed)
    typer.echo("\n".join([*reference_table.summary(table), f"wrote {out}"]))
