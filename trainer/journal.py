"""What became of every clip that a process submitted, one JSON line each, on disk before the outcome is acknowledged.

A run that was killed reads it again and asks the server only for what is not in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainer.shift import Scored


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """A clip's reward, or why there is none; and the seconds from its submission to its outcome."""

    scored: Scored | None
    error: str = ""
    latency_s: float = 0.0


class Journal(Mapping[str, ClipResult]):
    """Results by clip id, kept in the file at `path`; a last line that was cut off by a crash is dropped."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._results: dict[str, ClipResult] = {}
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith(b"\n"):
                break
            clip_id, result = _parsed(json.loads(line))
            self._results[clip_id] = result
            whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def store(self, results: Mapping[str, ClipResult]) -> None:
        """Once it returns, the results survive a crash of the machine."""
        for clip_id, result in results.items():
            self._file.write(json.dumps({"clip": clip_id, **asdict(result)}).encode() + b"\n")
            self._results[clip_id] = result
        self._file.flush()
        os.fsync(self._file.fileno())

    def __getitem__(self, clip_id: str) -> ClipResult:
        return self._results[clip_id]

    def __iter__(self) -> Any:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _parsed(record: dict[str, Any]) -> tuple[str, ClipResult]:
    scored = Scored(**record["scored"]) if record["scored"] else None
    return record["clip"], ClipResult(scored=scored, error=record["error"], latency_s=record["latency_s"])
