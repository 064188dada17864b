"""Defines `models`: the weights of the frozen networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reward_server.commands.options import ModelsFolder, settings_of
from reward_server.errors import BadRequest

models = typer.Typer(help="Weights of the frozen networks of shift and shift-wan; they are not shipped.")


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
