"""Reads the tables of the terminal, so that a report shows the same figures with the same titles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, kw_only=True)
class TableView:
    """A table as text. `numeric` says of each column whether it is aligned to the right, `ends` of each row whether a
    line follows it."""

    title: str
    heads: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    ends: tuple[bool, ...]
    caption: str


def view(table: Table) -> TableView:
    """The text of a rich table. Its cells must be text, as those of `figure_table` are."""
    columns = [tuple(_text(cell) for cell in column.cells) for column in table.columns]
    return TableView(
        title=_text(table.title),
        heads=tuple(_text(column.header) for column in table.columns),
        numeric=tuple(column.justify == "right" for column in table.columns),
        rows=tuple(zip(*columns, strict=True)),
        ends=tuple(row.end_section for row in table.rows),
        caption=_text(table.caption),
    )


def views(tables: Iterable[Table]) -> tuple[TableView, ...]:
    return tuple(map(view, tables))


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return (cell if isinstance(cell, Text) else Text.from_markup(str(cell))).plain
