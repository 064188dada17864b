"""Writes what a check found: the table or JSON on standard output, and the files that were asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from reward_server.evaluation.report import write_json
from reward_server.gate.checked import Checked
from reward_server.gate.junit import write_junit
from reward_server.gate.show import drift, page, table
from reward_server.report.clips import WorstFirst
from reward_server.report.page import shown, write_page


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files to write; None means that one is not wanted. `json` may be `-`, standard output without the table."""

    json: Path | None = None
    junit: Path | None = None
    html: Path | None = None


def write_outputs(outputs: Outputs, checked: Checked, worst: WorstFirst) -> None:
    """Write them all. `worst` holds the clips of the HTML report. Raises OSError."""
    if outputs.json == Path("-"):
        print(json.dumps(checked.as_json(), indent=1, allow_nan=False))
    else:
        write_json(outputs.json, checked.as_json())
        told = [*drift(checked), *checked.notes, checked.headline]
        Console().print(table(checked))
        Console().print(*map(shown, told), sep="\n", markup=False, highlight=False, soft_wrap=True)
    write_junit(outputs.junit, checked)
    if outputs.html is not None:
        write_page(outputs.html, page(checked, worst))
