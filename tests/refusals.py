"""Finds the `raise` statements of files that no error passed, and whether a message tells what to do next."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

NEXT_STEPS = (
    "upload|re-encode|send|check|raise|cut|compress|scale|give|choose|leave|use|correct|crop|declare|write|keep|copy|"
    "lower|repair|split"
)
# `Recount` is caught by the reader itself, and an AssertionError would be a mistake of ours.
NO_REFUSALS = ("Recount", "AssertionError")


def tells_next_step(error: BaseException) -> bool:
    return re.search(rf"[;:,(] ?(or )?({NEXT_STEPS})", str(error)) is not None


def raises_not_reached(files: Iterable[Path], errors: Iterable[BaseException]) -> list[str]:
    """The places of the raise statements in `files` that none of the errors, their causes and contexts passed."""
    reached = {place for error in errors for place in _places(error)}
    return [
        f"{path.name}:{statement.lineno}"
        for path, statement in _raises(files)
        if not any(path == file and statement.lineno <= line <= _end(statement) for file, line in reached)
    ]


def _raises(files: Iterable[Path]) -> Iterator[tuple[Path, ast.Raise]]:
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc and _name(node.exc) not in NO_REFUSALS:
                yield path, node


def _name(raised: ast.expr | None) -> str:
    target = raised.func if isinstance(raised, ast.Call) else raised
    return target.id if isinstance(target, ast.Name) else ""


def _end(statement: ast.Raise) -> int:
    return statement.end_lineno or statement.lineno


def _places(error: BaseException | None) -> Iterator[tuple[Path, int]]:
    """The lines that the error, its cause and its context passed."""
    while error is not None:
        trace: TracebackType | None = error.__traceback__
        while trace is not None:
            yield Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
