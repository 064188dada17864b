"""The command line: `motion-reward COMMAND`, also `python -m reward_server COMMAND`.

Every command is a few lines that hand over to a module, imported only then: the doors start without
torch, and `--help` without anything. Options override the environment's MOTION_REWARD_* settings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from reward_server.errors import BadRequest, RewardServerError
from reward_server.settings import Settings

app = typer.Typer(help="Motion-realism rewards for video clips.", no_args_is_help=True, add_completion=False)
models = typer.Typer(help="Weights of the shift profiles' frozen networks, which are not ours to ship.")
app.add_typer(models, name="models", no_args_is_help=True)

Profile = Annotated[
    str | None,
    typer.Option(
        help="What scores: embedded needs no GPU and no download; shift (24 frames of 320x576 at 14 fps) and "
        "shift-wan (49 of 480x832 at 24 fps) are the paper's system, see `models pull` and `pretrain`."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights of the discriminators; none: those the profile ships, or PROFILE-discriminators of models."
    ),
]
ModelsFolder = Annotated[
    Path | None, typer.Option(help="Folder of frozen networks' weights; none: `models` in the data folder.")
]
Server = Annotated[str | None, typer.Option(help="Score at grpc://HOST:PORT or http://HOST:PORT, not in this process.")]
RedisUrl = Annotated[str | None, typer.Option(help="redis:// URL of the queue.")]
Workers = Annotated[int, typer.Option(min=0, help="Worker processes to keep alive.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of query points, faults and resampling.")]
JsonFile = Annotated[Path | None, typer.Option(help="Write JSON here, a record per clip included.")]
CsvFile = Annotated[Path | None, typer.Option(help="Write CSV here, a line per clip.")]
PlotFolder = Annotated[Path | None, typer.Option(help="Write plots into this folder.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]


@app.command()
def serve(
    *,
    http: Annotated[str | None, typer.Option(help="HOST:PORT of the HTTP door [127.0.0.1:8000].")] = None,
    grpc: Annotated[str | None, typer.Option(help="HOST:PORT of the gRPC door [127.0.0.1:50051].")] = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
    redis_url: RedisUrl = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the private Redis lives if no URL is given.")] = None,
    workers: Workers = 1,
    log_level: LogLevel = None,
) -> None:
    """Serve both doors with workers of their own; starts a private Redis unless --redis-url is given."""
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
    workers: Annotated[int, typer.Option(min=1, help="Worker processes to keep alive.")] = 1,
    log_level: LogLevel = None,
    end_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Score the jobs of a queue, without doors."""
    settings = settings_of(redis_url=redis_url, profile=profile, checkpoint=checkpoint, log_level=log_level)
    from reward_server.serving.serve import run_workers  # noqa: PLC0415

    run_workers(settings, workers, end_with_parent=end_with_stdin)


@app.command()
def score(
    paths: Annotated[list[str], typer.Argument(help="Clip files, folders (searched at any depth) or quoted patterns.")],
    *,
    server: Server = None,
    json: Annotated[Path | None, typer.Option(help="Write JSON here; - for the standard output.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write CSV here.")] = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Score clips. A file that cannot be scored is a row with its error and makes the exit code 1."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import score as score_files  # noqa: PLC0415

    raise typer.Exit(score_files.run(paths, settings, server=server, json_path=json, csv_path=csv))


@app.command()
def pretrain(
    *,
    real: Annotated[list[Path], typer.Option(help="Folder of real clips, or of a manifest.jsonl; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write (.safetensors).")],
    generated: Annotated[
        Path | None, typer.Option(help="Folder of your model's clips; none: faults made here.")
    ] = None,
    profile: Profile = None,
    work: Annotated[Path, typer.Option(help="Features, logs and state of the run; the same folder resumes it.")] = Path(
        "runs/pretrain"
    ),
    steps: Annotated[
        int,
        typer.Option(min=1, help="Optimizer steps at most; of embedded's instantaneous discriminator half of them."),
    ] = 3600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of views, faults, batches and dropout.")] = 0,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="A fault not to train on, to see how the discriminators take what is new to them."),
    ] = None,
) -> None:
    """Train the discriminators on real clips against generated ones, or against motion faults of the real ones."""
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
    )
    typer.echo(
        f"wrote {out}; mean of held-out AUC and pairs: "
        + ", ".join(f"{name} {mean:.3f}" for name, mean in figures.items())
    )


@app.command()
def sanity(
    paths: Annotated[list[str], typer.Argument(help="Real clips: files, folders (of a manifest: held out), patterns.")],
    *,
    server: Server = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows per clip at most, evenly placed.")] = 1,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Fault real clips in every way and strength, and see whether the reward falls. One JSON line ends the output."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import sanity as ladder  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot)
    raise typer.Exit(ladder.run(paths, settings, server=server, windows=windows, seed=seed, outputs=outputs))


@app.command()
def evaluate(
    *,
    real: Annotated[list[str], typer.Option(help="Real clips: a folder, file or pattern; may be repeated.")],
    generated: Annotated[list[str], typer.Option(help="Generated clips, likewise.")],
    matched: Annotated[
        bool, typer.Option(help="Give both sets the same rate, length, size, sharpness, codec.")
    ] = False,
    server: Server = None,
    seed: Seed = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFolder = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """AUC of real against generated clips, beside what plain statistics reach. One JSON line ends the output."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import evaluate as evaluation  # noqa: PLC0415
    from reward_server.evaluation.report import Outputs  # noqa: PLC0415

    outputs = Outputs(json=json, csv=csv, plots=plot)
    raise typer.Exit(
        evaluation.run(real, generated, settings, server=server, matched=matched, seed=seed, outputs=outputs)
    )


@app.command()
def bench(
    *,
    quick: Annotated[bool, typer.Option(help="One clip size, fewer clips and rounds.")] = False,
    json: JsonFile = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Measure throughput, latency by stage and memory, in-process and served. One JSON line ends the output."""
    settings = settings_of(profile=profile, checkpoint=checkpoint)
    from reward_server.evaluation import bench as benchmark  # noqa: PLC0415

    raise typer.Exit(benchmark.run(settings, quick=quick, json_path=json))


@models.command("pull")
def pull_models(
    profile: Annotated[str, typer.Argument(help="shift; shift-wan runs on the same networks.")],
    *,
    cotracker: Annotated[
        Path | None, typer.Option(help="CoTracker3's scaled_offline.pth (or .safetensors) at hand; none: the hub's.")
    ] = None,
    sea_raft: Annotated[
        Path | None,
        typer.Option(
            help="SEA-RAFT's Tartan-C-T-TSKH-spring540x960-M (.pth or .safetensors) at hand, or an instantaneous "
            "checkpoint of SHIFT's reference code, which holds its own; none: the hub's."
        ),
    ] = None,
    replace: Annotated[bool, typer.Option(help="Take other weights than those pulled before.")] = False,
    models_dir: ModelsFolder = None,
) -> None:
    """Fetch the frozen networks, convert them to safetensors and pin their sha256; prints their licences."""
    if profile not in ("shift", "shift-wan"):
        raise BadRequest(f"profile '{profile}' has nothing to pull; `motion-reward models pull shift` does")
    settings = settings_of(models_dir=models_dir)
    from reward_server.models.pull import pull  # noqa: PLC0415

    pull(settings.models_folder, {"cotracker3": cotracker, "sea_raft": sea_raft}, replace=replace, tell=typer.echo)


@models.command("list")
def list_models(*, models_dir: ModelsFolder = None) -> None:
    """Show what is in the models folder, and whether it is still what was pulled."""
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
    long_term: Annotated[Path, typer.Option(help="Long-term checkpoint of it.")],
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write; none: where --profile looks for it.")] = None,
    profile: Annotated[
        str, typer.Option(help="shift or shift-wan: the size the discriminators were trained at.")
    ] = "shift",
    models_dir: ModelsFolder = None,
) -> None:
    """Turn discriminators trained with SHIFT's reference code into a checkpoint of ours, in full precision."""
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
    """The environment's settings under the options that were given. Exits with 2 naming what is wrong."""
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        causes = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter("; ".join(causes)) from error


def main() -> None:
    """What the user can mend is one line on the standard error: exit code 2 for a wrong use, else 1."""
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
