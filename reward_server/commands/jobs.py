"""Defines `jobs`: the dead letters of a server."""

from __future__ import annotations

from typing import Annotated

import typer

from reward_server.commands.options import HttpServer, settings_of

jobs = typer.Typer(help="Dead letters of a server: jobs that were given up because their workers died.")

NamedJobs = Annotated[list[str] | None, typer.Argument(help="Ids of jobs.", show_default=False)]
OfRun = Annotated[str, typer.Option("--run", help="The dead letters of this run.")]
Every = Annotated[bool, typer.Option("--all", help="All dead letters.")]


@jobs.command("list")
def list_jobs(
    *,
    run: Annotated[str, typer.Option(help="Only this run (default: all).")] = "",
    server: HttpServer = None,
) -> None:
    """List dead letters, the oldest first."""
    from rich.console import Console  # noqa: PLC0415

    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        Console().print(operate.letters_table(door, run))


@jobs.command("show")
def show_job(job: Annotated[str, typer.Argument(help="Id of the job.")], *, server: HttpServer = None) -> None:
    """Print a dead letter as JSON: why the job was given up, and its context."""
    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        typer.echo(operate.letter_text(door, job))


@jobs.command("replay")
def replay_jobs(job: NamedJobs = None, *, run: OfRun = "", every: Every = False, server: HttpServer = None) -> None:
    """Submit the clips of dead letters again, each as a new job, and drop the letters."""
    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        for line in operate.replay(door, operate.which_letters(job or [], run, every)):
            typer.echo(line)


@jobs.command("drop")
def drop_jobs(job: NamedJobs = None, *, run: OfRun = "", every: Every = False, server: HttpServer = None) -> None:
    """Remove dead letters and their clips."""
    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        typer.echo(operate.drop(door, operate.which_letters(job or [], run, every)))
