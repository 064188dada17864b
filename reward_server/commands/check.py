"""Defines `check`."""

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
    Fps,
    HtmlFile,
    JsonOrStdout,
    Profile,
    Server,
    client_settings_of,
)
from reward_server.errors import RewardServerError

Clips = Annotated[list[str] | None, typer.Argument(help="Clip files, folders (searched recursively) or quoted globs.")]
MinPercentile = Annotated[
    float | None, typer.Option(min=0, max=100, help="A clip passes from this percentile among real clips on.")
]
Accepted = Annotated[
    str | None,
    typer.Option(
        help="Folder with good clips of your own, at least 19: the threshold is made of their rewards, so that few "
        "good clips are refused."
    ),
]
MaxRefused = Annotated[
    float | None,
    typer.Option(min=0.1, max=50, help="Per cent of good clips that --accepted may refuse. [default: 5]"),
]
GoldFile = Annotated[
    Path | None,
    typer.Option(help="Instead of PATHS: score the set of this gold file again, and say whose verdict changed."),
]
NewGoldFile = Annotated[
    Path | None, typer.Option(help="Write the clips with their rewards and verdicts into this gold file.")
]
JunitFile = Annotated[Path | None, typer.Option(help="Write a JUnit XML report here, for CI.")]


def check(
    paths: Clips = None,
    *,
    min_percentile: MinPercentile = None,
    accepted: Accepted = None,
    max_refused: MaxRefused = None,
    gold: GoldFile = None,
    write_gold: NewGoldFile = None,
    fps: Fps = None,
    server: Server = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    json: JsonOrStdout = None,
    junit: JunitFile = None,
    html: HtmlFile = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Say which clips pass. The exit code is 0 if all do, 1 if one is below the threshold (with --gold: if a verdict
    changed), and 2 if a clip could not be scored or the check not be made. 2 wins over 1."""
    _check_rules(min_percentile, accepted, max_refused, gold)
    _check_clips(paths, gold, fps)
    from protos.client.errors import RewardClientError  # noqa: PLC0415
    from reward_server.gate import check as gate  # noqa: PLC0415
    from reward_server.gate.outputs import Outputs  # noqa: PLC0415
    from reward_server.gate.rules import MAX_REFUSED  # noqa: PLC0415

    wanted = gate.Wanted(
        paths=paths or (),
        min_percentile=min_percentile,
        accepted=accepted,
        max_refused=MAX_REFUSED if max_refused is None else max_refused,
        gold=gold,
        write_gold=write_gold,
        fps=fps,
    )
    try:
        settings = client_settings_of(profile, checkpoint, key_file=api_key_file, ca=ca, cert=cert, cert_key=cert_key)
        code = gate.run(wanted, settings, server=server, outputs=Outputs(json=json, junit=junit, html=html))
    except (RewardServerError, RewardClientError, OSError) as error:  # `main` would exit with 1, which is a verdict
        typer.echo(f"motion-reward: {error}", err=True)
        code = 2
    raise typer.Exit(code)


def _check_rules(
    min_percentile: float | None, accepted: str | None, max_refused: float | None, gold: Path | None
) -> None:
    """Raises BadParameter, with exit code 2, unless the options name one rule."""
    if [min_percentile, accepted, gold].count(None) != 2:
        raise typer.BadParameter("give one of --min-percentile, --accepted and --gold")
    if max_refused is not None and accepted is None:
        raise typer.BadParameter("--max-refused goes with --accepted alone")


def _check_clips(paths: list[str] | None, gold: Path | None, fps: float | None) -> None:
    """Raises BadParameter, with exit code 2, unless the options name one set of clips."""
    if bool(paths) == (gold is not None):
        raise typer.BadParameter("give the clips to check, or --gold alone, which names its own")
    if fps is not None and gold is not None:
        raise typer.BadParameter("a gold file has its own frame rate; leave --fps out")
