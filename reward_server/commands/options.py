"""Defines the options that several commands share, and makes settings of them.

Options override the MOTION_REWARD_* environment variables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reward_server.errors import BadRequest
from reward_server.settings import Settings

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
    typer.Option(
        help="Score on the server at grpc://HOST:PORT or http://HOST:PORT, with TLS grpcs:// or https:// (default: in "
        "this process)."
    ),
]
HttpServer = Annotated[
    str | None,
    typer.Option(help="The server at http://HOST:PORT (default: MOTION_REWARD_HTTP, else http://127.0.0.1:8000)."),
]
ApiKeyFile = Annotated[
    Path | None, typer.Option(help="File with the API key for --server (default: MOTION_REWARD_API_KEY).")
]
CaFile = Annotated[
    Path | None, typer.Option(help="Certificates (PEM) to trust at --server https:// or grpcs:// (MOTION_REWARD_CA).")
]
CertFile = Annotated[
    Path | None, typer.Option(help="Certificate (PEM) to present to --server, if it asks (MOTION_REWARD_CERT).")
]
CertKeyFile = Annotated[
    Path | None, typer.Option(help="Private key of --cert (MOTION_REWARD_CERT_KEY; default: in the same file).")
]
KeysFile = Annotated[Path | None, typer.Option(help="File of keys (default: `keys.json` in the data folder).")]
RedisUrl = Annotated[str | None, typer.Option(help="redis:// URL of the queue.")]
Workers = Annotated[int, typer.Option(min=0, help="Number of worker processes; one that dies is replaced.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of query points, faults and bootstrap resampling.")]
Fps = Annotated[
    float | None,
    typer.Option(
        min=0.01, help="Frame rate of image sequences: folders of png or jpg pictures, or quoted patterns of them."
    ),
]
JsonOrStdout = Annotated[Path | None, typer.Option(help="Write JSON here; - means standard output.")]
JsonFile = Annotated[Path | None, typer.Option(help="Write a JSON report here, with one record per clip.")]
CsvFile = Annotated[Path | None, typer.Option(help="Write a CSV file here, with one line per clip.")]
HtmlFile = Annotated[
    Path | None,
    typer.Option(help="Write a report here, one HTML file: the worst clips first, with the frames that were bad."),
]
PlotFolder = Annotated[Path | None, typer.Option(help="Write plots into this folder.")]
LogLevel = Annotated[str | None, typer.Option(help="Lowest level to log: debug, info, warning or error.")]


def settings_of(**options: Any) -> Settings:
    """Settings from the environment, overridden by the options that are not None. A wrong value exits with code 2."""
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        causes = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise typer.BadParameter("; ".join(causes)) from error


def client_settings_of(
    profile: str | None,
    checkpoint: Path | None,
    *,
    key_file: Path | None,
    ca: Path | None,
    cert: Path | None,
    cert_key: Path | None,
) -> Settings:
    """Settings of a command that scores here or on a server, with what the server asks for."""
    return settings_of(
        profile=profile, checkpoint=checkpoint, api_key=_api_key_in(key_file), ca=ca, cert=cert, cert_key=cert_key
    )


def _api_key_in(file: Path | None) -> str | None:
    """The key in the file. Raises BadRequest for an empty file, and OSError."""
    from protos.client import read_api_key  # noqa: PLC0415

    try:
        return None if file is None else read_api_key(file)
    except ValueError as error:
        raise BadRequest(str(error)) from error
