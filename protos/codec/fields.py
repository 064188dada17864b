"""Copies fields between values and messages that name them alike."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

V = TypeVar("V")


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a value by name."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def value_of(kind: type[V], message: Any, **given: Any) -> V:
    """A `kind` from a message with the same field names. Fields in `given` are taken from there."""
    names = [field.name for field in dataclasses.fields(kind) if field.name not in given]  # type: ignore[arg-type]
    values = {name: getattr(message, name) for name in names}
    repeated = {name: tuple(v) for name, v in values.items() if not isinstance(v, (str, bytes, int, float))}
    return kind(**{**values, **repeated, **given})
