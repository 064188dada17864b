"""Records the result of every clip that a process submitted, as one JSON line on disk.

A result is on disk before its outcome is acknowledged. A resumed run reads the file and asks the server only for
clips that are not in it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from protos.types import Dynamics
from trainer.objective import ClipReward


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """A clip's reward, or the reason why it has none, and the seconds from its submission to its outcome."""

    scored: ClipReward | None
    error: str = ""
    latency_s: float = 0.0


class Journal(Mapping[str, ClipResult]):
    """Results by clip id, kept in the file at `path`. A last line that a crash cut off is dropped.

    `forgotten` counts by clip id how often `forget` dropped a missing reward so that it is requested again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._results: dict[str, ClipResult] = {}
        self.forgotten: Counter[str] = Counter()
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if not line.endswith(b"\n"):
                break
            self._know(json.loads(line))
            whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)

    def store(self, results: Mapping[str, ClipResult]) -> None:
        """Append results. Once this returns, they survive a crash of the machine."""
        self._write({"clip": clip_id, **asdict(result)} for clip_id, result in results.items())

    def forget(self, clip_ids: Iterable[str]) -> None:
        """Drop the results of those clips that have no reward. Only the count in `forgotten` remains."""
        lacking = [clip_id for clip_id in clip_ids if clip_id in self and self[clip_id].scored is None]
        self._write({"clip": clip_id, "forgotten": True} for clip_id in lacking)

    def _write(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._know(record)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _know(self, record: dict[str, Any]) -> None:
        clip_id = record["clip"]
        if "forgotten" in record:
            self._results.pop(clip_id, None)
            self.forgotten[clip_id] += 1
        else:
            scored = _reward(record["scored"]) if record["scored"] else None
            self._results[clip_id] = ClipResult(scored=scored, error=record["error"], latency_s=record["latency_s"])

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


def _reward(stored: Mapping[str, Any]) -> ClipReward:
    """A reward from its line. Lines of an older trainer have no dynamics."""
    dynamics = stored.get("dynamics")
    return ClipReward(**{**stored, "dynamics": Dynamics(**dynamics) if dynamics else None})
