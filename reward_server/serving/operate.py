"""Runs `motion-reward versions` and `motion-reward jobs`: asks a running server over HTTP, and prints tables.

The server's private Redis is known to the server alone, so these commands go through its door.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from protos.client.api_key import ApiKey
from protos.client.http_transport import HttpTransport
from protos.client.tls import tls_of
from reward_server.errors import BadRequest
from reward_server.settings import Settings


@contextmanager
def server_at(url: str | None, settings: Settings) -> Iterator[HttpTransport]:
    """The HTTP door at the URL, by default at settings.http. Raises BadRequest for a URL of another kind."""
    address = url or f"http{'s' if settings.tls_cert else ''}://{settings.http}"
    if not address.startswith(("http://", "https://")):
        raise BadRequest(f"'{address}' is no HTTP address, and only HTTP has these operations; give http://HOST:PORT")
    key = settings.api_key
    tls = tls_of(address, ca=settings.ca, cert=settings.cert, cert_key=settings.cert_key)
    transport = HttpTransport(address, api_key=ApiKey(key.get_secret_value()) if key else None, tls=tls)
    try:
        yield transport
    finally:
        transport.close()


def versions_table(server: HttpTransport, run_id: str) -> Table:
    """The versions of a run, or of all runs if `run_id` is empty."""
    table = _table("run", "version", "number", "parent", "published", "clips", "AUC", "bound", "")
    for run in server.ask("GET", "/v1/versions", query={"run_id": run_id})["runs"]:
        for version in run["versions"]:
            table.add_row(
                run["run_id"],
                version["name"],
                str(version["number"]),
                version["parent"],
                told_time(version["published_s"]),
                f"{version['num_real']} + {version['num_rollouts']}",
                f"{version['auc_instantaneous']:.3f}, {version['auc_long_term']:.3f}",
                str(version["bound"]),
                "latest" if version["name"] == run["latest"] else "",
            )
        if run["latest"] not in [version["name"] for version in run["versions"]]:
            table.add_row(run["run_id"], run["latest"], *[""] * 6, "latest (rolled back to the base version)")
    return table


def version_text(server: HttpTransport, name: str) -> str:
    """A version and its training record as JSON."""
    return _json(server.ask("GET", "/v1/version", query={"name": name}))


def roll_back(server: HttpTransport, run_id: str, version: str) -> str:
    """Roll the run back, and say what changed."""
    answer = server.ask("POST", "/v1/versions/rollback", body={"run_id": run_id, "version": version})
    if answer["before"] == answer["latest"]:
        return f"'{version}' is already the latest version of run '{run_id}'"
    return f"new clips of run '{run_id}' are scored by '{version}', and no longer by '{answer['before']}'"


def letters_table(server: HttpTransport, run_id: str) -> Table:
    """The dead letters of a run, or all of them if `run_id` is empty."""
    table = _table("job", "run", "group", "ended", "attempts", "clip", "reason")
    for letter in server.ask("GET", "/v1/dead-letters", query={"run_id": run_id})["letters"]:
        size = f"{letter['num_bytes']} bytes" if letter["num_bytes"] else "not kept"
        table.add_row(
            letter["job_id"],
            letter["run_id"],
            letter["context"]["group_id"],
            told_time(letter["ended_s"]),
            str(letter["attempts"]),
            size,
            letter["reason"],
        )
    return table


def letter_text(server: HttpTransport, job_id: str) -> str:
    """A dead letter as JSON."""
    return _json(server.ask("GET", "/v1/dead-letter", query={"job_id": job_id}))


def which_letters(job_ids: Sequence[str], run_id: str, every: bool) -> dict[str, Any]:
    """The body that chooses dead letters. Raises BadRequest unless exactly one of the three is given."""
    given = {"job_ids": list(job_ids), "run_id": run_id, "all": every}
    chosen = {name: value for name, value in given.items() if value}
    if len(chosen) != 1:
        raise BadRequest("name jobs, or give --run, or give --all: exactly one of the three")
    return chosen


def replay(server: HttpTransport, which: dict[str, Any]) -> list[str]:
    """Replay dead letters. A line for each."""
    answer = server.ask("POST", "/v1/dead-letters/replay", body=which)
    lines = [f"{job_id} is replayed as {new_id}" for job_id, new_id in answer["jobs"].items()]
    lines += [f"{job_id} cannot be replayed: its clip is not kept any more" for job_id in answer["gone"]]
    return lines or ["no dead letters"]


def drop(server: HttpTransport, which: dict[str, Any]) -> str:
    """Drop dead letters, and say how many there were."""
    return f"dropped {server.ask('POST', '/v1/dead-letters/drop', body=which)['dropped']} dead letters"


def told_time(since_epoch_s: float) -> str:
    return datetime.fromtimestamp(since_epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _json(value: dict[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, indent=2)
