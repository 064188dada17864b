"""Makes the training data: `python -m experiments.recipe clips | repositories | generated | scenes`, each in a folder.

`probe` checks the training clips made from them for shortcuts, and `gate` the trained discriminators.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.recipe.generated import generated_clips
from experiments.recipe.packages import fetch_available, fetch_clips
from experiments.recipe.render import render_all, scene_jobs
from experiments.recipe.repositories import repository_clips
from reward_server.data.manifest import Entry
from reward_server.errors import RewardServerError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder to fill; existing clips are kept.")]
Processes = Annotated[int, typer.Option(min=1, help="Number of processes.")]


@contextmanager
def _told() -> Iterator[None]:
    """End the command with the message of an expected error instead of a traceback."""
    try:
        yield
    except RewardServerError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def clips(out: Out) -> None:
    """Fetch the packages' camera clips and photographs, check them, and write the manifest of shots."""
    with _told():
        _tell(fetch_clips(out), out)


def _tell(entries: Sequence[Entry], out: Path) -> None:
    typer.echo(f"{len(entries)} shots of {len({entry.source for entry in entries})} camera clips in {out}")


@app.command()
def repositories(out: Out) -> None:
    """Fetch the camera clips of public repositories, check them, and write their manifest. It needs git and GitHub.

    What cannot be fetched is named and left out; without any clip there is no manifest.
    """
    with _told():
        entries, missing = fetch_available(out, repository_clips())
        for reason in missing:
            typer.echo(f"left out: {reason}", err=True)
        _tell(entries, out)


@app.command()
def generated(out: Out) -> None:
    """Fetch the packages' generated clips, check them, and write their manifest."""
    with _told():
        entries = fetch_clips(out, generated_clips())
        typer.echo(f"{len(entries)} clips of {len({entry.source for entry in entries})} generators in {out}")


@app.command()
def scenes(
    *,
    out: Out,
    num: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first scene; the others count up from it.")] = 0,
    frames: Annotated[int, typer.Option(min=8, help="Frames of each scene.")] = 32,
    processes: Processes = 2,
    photos: Annotated[Path | None, typer.Option(help="Folder `photos` from the step `clips`, for textures.")] = None,
) -> None:
    """Render simulated scenes."""
    with _told():
        jobs = scene_jobs(out, num=num, seed=seed, frames=frames, photos=photos)
        rendered = track(render_all(out, jobs, processes=processes), total=len(jobs), description=str(out))
        typer.echo(f"{sum(1 for _ in rendered)} clips in {out}")


@app.command()
def probe(
    *,
    real: Annotated[list[Path], typer.Option(help="Folder of real clips, as for `pretrain`. It may be repeated.")],
    views: Annotated[int, typer.Option(min=20, help="Views to test; each comes with its faulty twins.")] = 240,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the views, their twins and the test.")] = 0,
    processes: Processes = 2,
) -> None:
    """Check that real clips cannot be told from their faulty twins without looking at motion.

    It needs scikit-learn, which `make weights` installs with the tools for development.
    """
    from experiments.recipe.probe import LIMIT, probed_clips, separations  # noqa: PLC0415 - the other steps need less

    with _told():
        probed = probed_clips(real, num_views=views, seed=seed, processes=processes)
        figures = separations(probed, seed)
    table = Table("fault", "AUC without motion", title=f"{len(probed)} clips, on sources left out in turn")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}", end_section=name == "all")
    Console().print(table)
    typer.echo(json.dumps({"clips": len(probed), "limit": LIMIT, "auc": figures}))
    if figures["all"] > LIMIT:
        typer.echo(f"error: the data have a shortcut: AUC {figures['all']:.3f}, at most {LIMIT} is allowed", err=True)
        raise typer.Exit(1)


Report = Annotated[Path | None, typer.Option(help="Its report (--json), of the same discriminators.")]


@app.command()
def gate(
    *,
    checkpoint: Annotated[Path, typer.Option(help="The weights file that the reports must be of.")],
    sanity: Report = None,
    attack: Report = None,
    labelled: Report = None,
) -> None:
    """Check that new discriminators may be published, from the reports of `motion-reward sanity`, `attack` and
    `evaluate --labelled`. A figure that is not measured does not pass."""
    from experiments.recipe.gate import BOUNDS, file_digest, judged, read_report  # noqa: PLC0415

    with _told():
        trained_on = frozenset(item.package.name for item in repository_clips())
        reports = (read_report(path) for path in (sanity, attack, labelled))
        rows = judged(*reports, weights=file_digest(checkpoint), trained_on=trained_on)
    table = Table("figure", "value", "limit", "passed", title="May these discriminators be published?")
    for row in rows:
        limit = f"{BOUNDS[row.bound]}{row.limit:g}"
        value = "not measured" if row.value is None else f"{row.value:.3f}"
        table.add_row(row.name, value, limit, "yes" if row.passed else "NO")
    Console().print(table)
    typer.echo(json.dumps({"gate": [row.as_json() for row in rows]}))
    if failed := [row.name for row in rows if not row.passed]:
        typer.echo(f"error: not to be published; these figures miss: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
