"""Defines `score` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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

AnnotateFormat = Literal["mp4", "png"]


def score(
    paths: Annotated[list[str], typer.Argument(help="Clip files, folders (searched recursively) or quoted globs.")],
    *,
    fps: Fps = None,
    track: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The video track of a single file, counted from 0. The frames of its longest stretch are sent, with "
            "at most 640 pixels on a side.",
        ),
    ] = None,
    server: Server = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    json: JsonOrStdout = None,
    csv: Annotated[Path | None, typer.Option(help="Write CSV here.")] = None,
    html: HtmlFile = None,
    annotate: Annotated[
        Path | None,
        typer.Option(
            help="Write each clip into this folder with what the reward saw drawn on it: tracks (solid where visible, "
            "hollow where not), a haze where the residual is high, the curves, the rewards."
        ),
    ] = None,
    annotate_format: Annotated[
        AnnotateFormat, typer.Option(help="mp4: the whole clip. png: one sheet with some of its frames.")
    ] = "mp4",
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Score clips. A file that cannot be scored is listed with its error, and the exit code is then 1."""
    settings = client_settings_of(profile, checkpoint, key_file=api_key_file, ca=ca, cert=cert, cert_key=cert_key)
    from reward_server.evaluation import score as score_files  # noqa: PLC0415
    from reward_server.evaluation.drawings import Drawings  # noqa: PLC0415

    drawings = Drawings(folder=annotate, form=annotate_format) if annotate else None
    raise typer.Exit(
        score_files.run(
            paths,
            settings,
            server=server,
            json_path=json,
            csv_path=csv,
            fps=fps,
            track=track,
            drawings=drawings,
            html=html,
        )
    )


def compare(
    first: Annotated[str, typer.Argument(help="A clip file.")],
    second: Annotated[str, typer.Argument(help="Another clip file.")],
    *,
    draws: Annotated[int, typer.Option(min=2, help="Draws of query points with which each clip is scored.")] = 4,
    fps: Fps = None,
    server: Server = None,
    api_key_file: ApiKeyFile = None,
    ca: CaFile = None,
    cert: CertFile = None,
    cert_key: CertKeyFile = None,
    json: JsonOrStdout = None,
    profile: Profile = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Say which of two clips moves more really, by how much and with what error. The exit code is 0 if they differ, 3
    if they do not beyond the noise, and 1 if one cannot be scored."""
    settings = client_settings_of(profile, checkpoint, key_file=api_key_file, ca=ca, cert=cert, cert_key=cert_key)
    from reward_server.evaluation import compare as comparison  # noqa: PLC0415

    raise typer.Exit(comparison.run((first, second), settings, server=server, draws=draws, json_path=json, fps=fps))
