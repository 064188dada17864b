"""Keeps the results of an interrupted run in a file of JSON lines, so that the next run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reward_server.errors import BadRequest


class KeptResults:
    """Results by key, one line {key, result} each in a file. Without a path nothing is kept.

    A killed run can leave half a line at the end, which is dropped. Raises BadRequest for any other line that is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._results: dict[str, Any] = {}
        if path and path.exists():
            lines = path.read_text(errors="replace").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            self._results = dict(_record(path, number, line) for number, line in enumerate(whole, 1))
            if len(whole) < len(lines):
                path.write_text("".join(whole))

    def get(self, key: str) -> Any | None:
        return self._results.get(key)

    def add(self, key: str, result: Any) -> None:
        """Keep a result, which `json` can write."""
        self._results[key] = result
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "result": result}, allow_nan=False) + "\n")


def _record(path: Path, number: int, line: str) -> tuple[str, Any]:
    try:
        record = json.loads(line)
        return record["key"], record["result"]
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(
            f"{path}, line {number} is no result of an earlier run ({error!r}); remove the line, or name another folder"
        ) from error
