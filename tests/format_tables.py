"""Writes the tables of formats and odd files in docs/formats.md: `make docs`, or `python -m tests.format_tables`.

A test compares the page with what this program would write.
"""

from __future__ import annotations

from tests.documents import ROOT, script_of_tables
from tests.odd_table import FORMS, ODD, Odd

PAGE = ROOT / "docs" / "formats.md"


def formats_table() -> str:
    rows = ["| format | how it is read | when it is refused | tests |", "|---|---|---|---|"]
    for name, form in FORMS.items():
        files = [odd for odd in ODD.values() if odd.form == name]
        codes = sorted({odd.code for odd in files if not odd.frames})
        told = f" ({', '.join(f'`{code}`' for code in codes)})" if codes else ""
        counted = [f"{len(files)} [odd file{'s' * (len(files) > 1)}](#odd-files)"] if files else []
        tests = ", ".join([*counted, *(f"`{test}`" for test in form.also)])
        rows.append(f"| {name} | {form.read} | {form.refused}{told} | {tests or 'none'} |")
    return "\n".join(rows) + "\n"


def odd_table() -> str:
    rows = ["| file | read as | refused |", "|---|---|---|"]
    rows += [f"| {name} | {_read_as(odd)} | {_refused(odd)} |" for name, odd in ODD.items()]
    return "\n".join(rows) + "\n"


def _read_as(odd: Odd) -> str:
    if not odd.frames:
        return ""
    height, width = odd.size
    parts = [f"{odd.frames} frames at {odd.fps:g} fps, {width}x{height}" if odd.fps else f"{odd.frames} frame"]
    if odd.stretches > 1:
        parts.append(f"in {odd.stretches} stretches")
    return ", ".join([*parts, *(f"`{code}`" for code in (*odd.warnings, *odd.seen))])


def _refused(odd: Odd) -> str:
    words = odd.words.replace("\\", "")
    return f'`{odd.code}`: "{words}"' if odd.code else ""


def generated(text: str) -> str:
    """The page with its tables written anew."""
    return script_of_tables().filled(text, {"formats": formats_table(), "odd files": odd_table()})


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text()))
