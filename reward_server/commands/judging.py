"""Defines `sanity`, `evaluate`, `attack` and `bench`, which judge the rewards themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reward_server.commands.options import (
    ApiKeyFile,
    CaFile,
    CertFile,
    CertKeyFile,
    Checkpoint,
    CsvFile,
    Fps,
    HtmlFile,
    JsonFile,
    PlotFolder,
    Profile,
    Seed,
    Server,
    client_settings_of,
    settings_of,
)

Real = Annotated[list[str] | None, typer.Option(help="Real clips: a folder, file or quoted glob; may be repeated.")]
Generated = Annotated[list[str] | None, typer.Option(help="Generated clips, given in the same way.")]
LabelledFolder = Annotated[
    Path | None,
    typer.Option(
        help="Instead of both: a folder with index.csv (path, label, generator, source_repo), and with human.csv and "
        "pairs.csv if there are ratings and judged pairs."
    ),
]
Split = Annotated[str | None, typer.Option(help="Of --labelled, only the clips with this `split`.")]
LabelledWork = Annotated[
    Path, typer.Option(help="Folder for the scores of --labelled; the same folder resumes the run.")
]
Matched = Annotated[
    bool,
    typer.Option(
        help="First bring both sets to the same rate, length, size, sharpness and codec, and leave clips out until the "
        "rate says nothing about the set."
    ),
]


def sanity(
    paths: Annotated[
        list[str],
        typer.Argument(help="Real clips: files, folders or quoted globs. With a manifest.jsonl, its held-out clips."),
    ],
    *,
    fps: Fps = None,
    server: Server = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    windows: Annotated[int, typer.Option(min=1, help="Maximum number of windows per clip, evenly spaced.")] = 1,
    plain: Annotated[
        bool, typer.Option(help="Do not add noise, flicker and compression to each clip, drawn anew for each.")
    ] = False,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    html: HtmlFile = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Check that motion faults lower the reward, for every fault and strength. The last output line is JSON."""
    settings = client_settings_of(profile, checkpoint, key_file=api_key_file, ca=ca, cert=cert, cert_key=cert_key)
    from reward_server.evaluation import sanity as ladder  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot, html=html)
    raise typer.Exit(
        ladder.run(
            paths, settings, server=server, windows=windows, seed=seed, captured=not plain, fps=fps, outputs=outputs
        )
    )


def evaluate(
    *,
    real: Real = None,
    generated: Generated = None,
    labelled: LabelledFolder = None,
    split: Split = None,
    work: LabelledWork = Path("runs/evaluate"),
    matched: Matched = False,
    fps: Fps = None,
    server: Server = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    html: HtmlFile = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Compute the AUC of real against generated clips, for rewards and plain statistics. Of a labelled folder, also
    the agreement with people and with judged pairs. The last line is JSON."""
    settings = client_settings_of(profile, checkpoint, key_file=api_key_file, ca=ca, cert=cert, cert_key=cert_key)
    from reward_server.evaluation import evaluate as evaluation  # noqa: PLC0415
    from reward_server.evaluation import labelled as validity  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot, html=html)
    if labelled is None and real and generated and split is None:
        code = evaluation.run(
            real, generated, settings, server=server, matched=matched, seed=seed, fps=fps, outputs=outputs
        )
    elif labelled is not None and not real and not generated and fps is None:
        code = validity.run(
            labelled, settings, split=split, work=work, server=server, matched=matched, seed=seed, outputs=outputs
        )
    else:
        raise typer.BadParameter(
            "give both --real and --generated (with --fps for image sequences), or --labelled alone (with --split)"
        )
    raise typer.Exit(code)


def attack(
    *,
    real: Annotated[
        list[str],
        typer.Option(help="Real clips: a folder, file or quoted glob; may be repeated. Of a manifest, the held-out."),
    ],
    budget: Annotated[
        int, typer.Option(min=0, help="Clips scored in the searches on each real clip; 0 leaves the searches out.")
    ] = 96,
    population: Annotated[int, typer.Option(min=4, help="Clips per generation of a search.")] = 12,
    work: Annotated[Path, typer.Option(help="Folder for finished clips; the same folder resumes the run.")] = Path(
        "runs/attack"
    ),
    server: Server = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Try to raise the reward of real clips without mending their motion: by disguised freezes and glides, and by a
    search. The last output line is JSON."""
    settings = client_settings_of(profile, checkpoint, key_file=api_key_file, ca=ca, cert=cert, cert_key=cert_key)
    from reward_server.evaluation import attack as attacks  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415
    from reward_server.evaluation.search import Budget  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot)
    allowed = Budget(evaluations=budget, population=population)
    raise typer.Exit(attacks.run(real, settings, server=server, budget=allowed, work=work, seed=seed, outputs=outputs))


def bench(
    *,
    quick: Annotated[bool, typer.Option(help="Use one clip size, fewer clips and fewer rounds.")] = False,
    json: JsonFile = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Measure throughput, latency by stage and memory, in-process and served. The last output line is JSON."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import bench as benchmark  # noqa: PLC0415

    raise typer.Exit(benchmark.run(settings, quick=quick, json_path=json))
