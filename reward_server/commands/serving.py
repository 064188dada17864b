"""Defines `serve` and `worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reward_server.commands.options import Checkpoint, LogLevel, Profile, RedisUrl, Workers, settings_of


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
    allow_anyone: Annotated[
        bool | None, typer.Option("--allow-anyone", help="Serve without keys also off loopback.")
    ] = None,
    log_level: LogLevel = None,
) -> None:
    """Serve rewards over HTTP and gRPC and run worker processes. Without --redis-url, start a private Redis."""
    settings = settings_of(
        http=http, grpc=grpc, profile=profile, checkpoint=checkpoint, redis_url=redis_url, data_dir=data_dir,
        log_level=log_level, allow_anyone=allow_anyone,
    )  # fmt: skip
    from reward_server.serving.serve import run_server  # noqa: PLC0415

    run_server(settings, workers)


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
