"""Defines `keys`: the API keys of a server."""

from __future__ import annotations

from typing import Annotated

import typer

from reward_server.commands.options import KeysFile, settings_of

keys = typer.Typer(help="API keys of the server. Once there is one, both doors require a key.")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for, for instance the name of a machine or a person.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do; may be repeated: score, refresh, metrics, or admin, which is everything on the runs "
            "of all keys (default: score and refresh)."
        ),
    ] = None,
    max_jobs: Annotated[int, typer.Option(min=0, help="Largest number of its unfinished jobs; 0 means no limit.")] = 0,
    max_bytes: Annotated[int, typer.Option(min=0, help="Largest number of their payload bytes; 0 means no limit.")] = 0,
    max_cost: Annotated[
        float, typer.Option(min=0, help="Largest number of their pixels, over all frames; 0 means no limit.")
    ] = 0,
    keys_file: KeysFile = None,
) -> None:
    """Create an API key and print it. It is shown only now: the file keeps its hash."""
    from reward_server.doors.key_file import KeyFile, Scope  # noqa: PLC0415
    from reward_server.queue.quota import Quota  # noqa: PLC0415

    given = scope or [Scope.SCORE, Scope.REFRESH]
    if unknown := set(given) - set(Scope):
        raise typer.BadParameter(f"there is no scope {sorted(unknown)}; give some of {', '.join(Scope)}")
    file = KeyFile(settings_of(keys_file=keys_file).keys_path)
    quota = Quota(jobs=max_jobs, bytes=max_bytes, cost=max_cost)
    typer.echo(file.create(name, tuple(Scope(each) for each in given), quota))


@keys.command("list")
def list_keys(*, keys_file: KeysFile = None) -> None:
    """List the keys: id, scopes, when they were created and revoked, quota, name."""
    from reward_server.doors.key_file import KeyFile  # noqa: PLC0415

    for key in KeyFile(settings_of(keys_file=keys_file).keys_path).read():
        state = f"revoked {key.revoked}" if key.revoked else "valid"
        typer.echo(f"{key.id}  {','.join(key.scopes)}  created {key.created}  {state}  {key.quota}  {key.name}")


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")], *, keys_file: KeysFile = None
) -> None:
    """Make a key invalid. Running servers refuse it at once."""
    from reward_server.doors.key_file import KeyFile  # noqa: PLC0415

    key = KeyFile(settings_of(keys_file=keys_file).keys_path).revoke(key_id)
    typer.echo(f"revoked {key.id} ({key.name})")
