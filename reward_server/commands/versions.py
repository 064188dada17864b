"""Defines `versions`: the discriminator versions of training runs, on a server."""

from __future__ import annotations

from typing import Annotated

import typer

from reward_server.commands.options import HttpServer, settings_of

versions = typer.Typer(help="Discriminator versions that the refreshes of training runs published, on a server.")


@versions.command("list")
def list_versions(
    *,
    run: Annotated[str, typer.Option(help="Only this run (default: every run that has versions).")] = "",
    server: HttpServer = None,
) -> None:
    """List the versions of runs, the latest first: those that can be pinned and rolled back to."""
    from rich.console import Console  # noqa: PLC0415

    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        Console().print(operate.versions_table(door, run))


@versions.command("show")
def show_version(
    version: Annotated[str, typer.Argument(help="Name of the version.")], *, server: HttpServer = None
) -> None:
    """Print a version as JSON: its parent, digests, training record, and what is bound to it."""
    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        typer.echo(operate.version_text(door, version))


@versions.command("rollback")
def roll_version_back(
    run: Annotated[str, typer.Argument(help="The run.")],
    version: Annotated[str, typer.Argument(help="One of its versions, or the base version that it began with.")],
    *,
    server: HttpServer = None,
) -> None:
    """Make an earlier version of a run its latest again. What is bound to another version stays bound."""
    from reward_server.serving import operate  # noqa: PLC0415

    with operate.server_at(server, settings_of()) as door:
        typer.echo(operate.roll_back(door, run, version))
