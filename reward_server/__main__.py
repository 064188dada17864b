"""Defines the command line: `motion-reward COMMAND`, or `python -m reward_server COMMAND`.

Each command calls one function of another module and imports that module only when it runs. So the server
starts without torch, and `--help` imports no other module. Options override the MOTION_REWARD_* environment variables.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from reward_server.errors import BadRequest, RewardServerError
from reward_server.settings import Settings

app = typer.Typer(help="Motion-realism rewards for video clips.", no_args_is_help=True, add_completion=False)
models = typer.Typer(help="Weights of the frozen networks of shift and shift-wan; they are not shipped.")
app.add_typer(models, name="models", no_args_is_help=True)

Profile = Annotated[
    str | None,
    typer.Option(
        help="How clips are scored. embedded needs no GPU and no download. shift (24 frames of 320x576 at 14 fps) and "
        "shift-wan (49 frames of 480x832 at 24 fps) are the SHIFT paper's system; they need `models pull` and "
        "`pretrain` first."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Discriminator weights, a .safetensors file (default: those shipped with the profile, or "
        "PROFILE-discriminators.safetensors in the models folder)."
    ),
]
ModelsFolder = Annotated[
    Path | None, typer.Option(help="Folder with the frozen networks' weights (default: `models` in the data folder).")
]
Server = Annotated[
    str | None,
    typer.Option(help="Score on the server at grpc://HOST:PORT or http://HOST:PORT (default: in this process)."),
]
RedisUrl = Annotated[str | None, typer.Option(help="redis:// URL of the queue.")]
Workers = Annotated[int, typer.Option(min=0, help="Number of worker processes; one that dies is replaced.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of query points, faults and bootstrap resampling.")]
Fps = Annotated[
    float | None,
    typer.Option(
        min=0.01, help="Frame rate of image sequences: folders of png or jpg pictures, or quoted patterns of them."
    ),
]
JsonFile = Annotated[Path | None, typer.Option(help="Write a JSON report here, with one record per clip.")]
CsvFile = Annotated[Path | None, typer.Option(help="Write a CSV file here, with one line per clip.")]
PlotFolder = Annotated[Path | None, typer.Option(help="Write plots into this folder.")]
LogLevel = Annotated[str | None, typer.Option(help="Lowest level to log: debug, info, warning or error.")]


@app.command()
def serve(
    *,
    http: Annotated[str | None, typer.Option(help="HOST:PORT to serve HTTP on (default: 127.0.0.1:8000).")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT to serve gRPC on (default: 127.0.0.1:50051).")] = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
    redis_url: RedisUrl = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the models and the queue that is kept without --redis-url.")
    ] = None,
    workers: Workers = 1,
    log_level: LogLevel = None,
) -> None:
    """Serve rewards over HTTP and gRPC and run worker processes. Without --redis-url, start a private Redis."""
    settings = settings_of(
        http=http, grpc=grpc, profile=profile, checkpoint=checkpoint, redis_url=redis_url, data_dir=data_dir,
        log_level=log_level,
    )  # fmt: skip
    from reward_server.serving.serve import run_server  # noqa: PLC0415

    run_server(settings, workers)


@app.command()
def worker(
    *,
    redis_url: RedisUrl = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of worker processes; one that dies is replaced.")] = 1,
    log_level: LogLevel = None,
    end_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Run only workers: score the jobs that wait in the queue."""
    settings = settings_of(redis_url=redis_url, profile=profile, checkpoint=checkpoint, log_level=log_level)
    from reward_server.serving.serve import run_workers  # noqa: PLC0415

    run_workers(settings, workers, end_with_parent=end_with_stdin)


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help="Clip files, folders (searched recursively) or quoted globs.")],
    *,
    fps: Fps = None,
    server: Server = None,
    json: Annotated[Path | None, typer.Option(help="Write JSON here; - means standard output.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write CSV here.")] = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Score clips. A file that cannot be scored is listed with its error, and the exit code is then 1."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import score as score_files  # noqa: PLC0415

    raise typer.Exit(score_files.run(paths, settings, server=server, json_path=json, csv_path=csv, fps=fps))


@app.command()
def pretrain(
    *,
    real: Annotated[
        list[Path], typer.Option(help="Folder of real clips, or folder with a manifest.jsonl; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (.safetensors).")],
    generated: Annotated[
        Path | None,
        typer.Option(help="Folder of clips that your model generated (default: real clips with motion faults)."),
    ] = None,
    fps: Fps = None,
    profile: Profile = None,
    work: Annotated[
        Path, typer.Option(help="Folder for features, logs and training state; the same folder resumes the run.")
    ] = Path("runs/pretrain"),
    steps: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of optimizer steps; embedded's instantaneous discriminator takes half of it."
        ),
    ] = 3600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of views, faults, batches and dropout.")] = 0,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="A fault to leave out of training, to test the discriminators on an unseen one."),
    ] = None,
) -> None:
    """Train the discriminators on real clips against generated ones, or against the same clips with motion faults."""
    settings = settings_of(profile=profile)
    from reward_server.pipeline import compute_of  # noqa: PLC0415
    from reward_server.training import pretrain as pretraining  # noqa: PLC0415

    cache_config, training = pretraining.configs(settings.profile, steps=steps, seed=seed)
    figures = pretraining.pretrain(
        real=real,
        generated=generated,
        out=out,
        work=work,
        cache_config=cache_config,
        training=training,
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


@app.command()
def sanity(
    paths: Annotated[
        list[str],
        typer.Argument(help="Real clips: files, folders or quoted globs. With a manifest.jsonl, its held-out clips."),
    ],
    *,
    fps: Fps = None,
    server: Server = None,
    windows: Annotated[int, typer.Option(min=1, help="Maximum number of windows per clip, evenly spaced.")] = 1,
    plain: Annotated[
        bool, typer.Option(help="Do not add noise, flicker and compression to each clip, drawn anew for each.")
    ] = False,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Check that motion faults lower the reward, for every fault and strength. The last output line is JSON."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import sanity as ladder  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot)
    raise typer.Exit(
        ladder.run(
            paths, settings, server=server, windows=windows, seed=seed, captured=not plain, fps=fps, outputs=outputs
        )
    )


@app.command()
def evaluate(
    *,
    real: Annotated[
        list[str] | None, typer.Option(help="Real clips: a folder, file or quoted glob; may be repeated.")
    ] = None,
    generated: Annotated[list[str] | None, typer.Option(help="Generated clips, given in the same way.")] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            help="Instead of both: a folder with index.csv (path, label, generator, source_repo), and with human.csv "
            "and pairs.csv if there are ratings and judged pairs."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --labelled, only the clips with this `split`.")] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for the scores of --labelled; the same folder resumes the run.")
    ] = Path("runs/evaluate"),
    matched: Annotated[
        bool,
        typer.Option(
            help="First bring both sets to the same rate, length, size, sharpness and codec, and leave clips out until "
            "the rate says nothing about the set."
        ),
    ] = False,
    fps: Fps = None,
    server: Server = None,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Compute the AUC of real against generated clips, for rewards and plain statistics. Of a labelled folder, also
    the agreement with people and with judged pairs. The last line is JSON."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import evaluate as evaluation  # noqa: PLC0415
    from reward_server.evaluation import labelled as validity  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot)
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


@app.command()
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
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Try to raise the reward of real clips without mending their motion: by disguised freezes and glides, and by a
    search. The last output line is JSON."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import attack as attacks  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415
    from reward_server.evaluation.search import Budget  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot)
    allowed = Budget(evaluations=budget, population=population)
    raise typer.Exit(attacks.run(real, settings, server=server, budget=allowed, work=work, seed=seed, outputs=outputs))


@app.command()
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


@models.command("pull")
def pull_models(
    profile: Annotated[str, typer.Argument(help="shift or shift-wan; both use the same networks.")],
    *,
    cotracker: Annotated[
        Path | None,
        typer.Option(
            help="Local copy of CoTracker3's scaled_offline.pth, or its .safetensors (default: download from Hugging "
            "Face)."
        ),
    ] = None,
    sea_raft: Annotated[
        Path | None,
        typer.Option(
            help="Local copy of SEA-RAFT's Tartan-C-T-TSKH-spring540x960-M (.pth or .safetensors), or an instantaneous "
            "checkpoint of SHIFT's reference code, which contains a SEA-RAFT (default: download from Hugging Face)."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace weights that were pulled before.")] = False,
    models_dir: ModelsFolder = None,
) -> None:
    """Fetch the frozen networks, convert them to safetensors and pin their sha256. Print their licences."""
    if profile not in ("shift", "shift-wan"):
        raise BadRequest(
            f"profile '{profile}' has no frozen networks to pull; shift and shift-wan do: "
            "run `motion-reward models pull shift`"
        )
    settings = settings_of(models_dir=models_dir)
    from reward_server.models.pull import pull  # noqa: PLC0415

    pull(settings.models_folder, {"cotracker3": cotracker, "sea_raft": sea_raft}, replace=replace, tell=typer.echo)


@models.command("list")
def list_models(*, models_dir: ModelsFolder = None) -> None:
    """List the models folder, and check that each file is still the one that was pulled."""
    settings = settings_of(models_dir=models_dir)
    from rich.console import Console  # noqa: PLC0415

    from reward_server.models.pull import listing  # noqa: PLC0415
    from reward_server.profiles.discriminators import discriminators_file  # noqa: PLC0415

    discriminators = {
        name: discriminators_file(name, settings.models_folder) for name in ("embedded", "shift", "shift-wan")
    }
    Console().print(listing(settings.models_folder, discriminators))


@models.command("import-discriminators")
def import_reference_discriminators(
    *,
    instantaneous: Annotated[Path, typer.Option(help="Instantaneous checkpoint of SHIFT's reference code.")],
    long_term: Annotated[Path, typer.Option(help="Long-term checkpoint of SHIFT's reference code.")],
    out: Annotated[
        Path | None, typer.Option(help="Checkpoint to write (default: where the profile looks for it).")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="shift or shift-wan: the frame size at which the discriminators were trained.")
    ] = "shift",
    models_dir: ModelsFolder = None,
) -> None:
    """Convert discriminators trained with SHIFT's reference code to this server's format, in full precision."""
    settings = settings_of(profile=profile, models_dir=models_dir)
    from reward_server.profiles import load_profile  # noqa: PLC0415
    from reward_server.profiles.discriminators import discriminators_file  # noqa: PLC0415
    from reward_server.training.reference_discriminators import import_discriminators  # noqa: PLC0415

    folder = settings.models_folder
    out = out or discriminators_file(settings.profile, folder)
    version = import_discriminators(
        load_profile(settings.profile, folder),
        instantaneous=instantaneous,
        long_term=long_term,
        models=folder,
        out=out,
    )
    typer.echo(f"wrote {out}, version {version}")


def settings_of(**options: Any) -> Settings:
    """Settings from the environment, overridden by the options that are not None. A wrong value exits with code 2."""
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        causes = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter("; ".join(causes)) from error


def main() -> None:
    """Run the command line. An expected error prints one line to stderr and exits with 2 (wrong usage) or 1 (other)."""
    from protos.client.errors import RewardClientError  # noqa: PLC0415
    from reward_server import log  # noqa: PLC0415

    log.configure("warning")  # serve and worker set their own level
    try:
        app(prog_name="motion-reward")
    except (RewardServerError, RewardClientError, OSError) as error:
        typer.echo(f"motion-reward: {error}", err=True)
        sys.exit(2 if isinstance(error, BadRequest) else 1)


if __name__ == "__main__":
    main()
