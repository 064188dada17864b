"""Defines the command line: `motion-reward COMMAND`, or `python -m reward_server COMMAND`."""

from __future__ import annotations

import sys

import typer

from reward_server.commands import check, jobs, judging, keys, models, scoring, serving, training, versions
from reward_server.errors import BadRequest, RewardServerError

app = typer.Typer(
    help="Motion-realism rewards for video clips.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they could hold secrets
)
for command in (
    serving.serve,
    serving.worker,
    scoring.score,
    scoring.compare,
    check.check,
    training.pretrain,
    training.reference,
    judging.sanity,
    judging.evaluate,
    judging.attack,
    judging.bench,
):
    app.command()(command)
for name, commands in (
    ("models", models.models),
    ("versions", versions.versions),
    ("jobs", jobs.jobs),
    ("keys", keys.keys),
):
    app.add_typer(commands, name=name, no_args_is_help=True)


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
