"""Converts the contract's Python values to JSON and back. The bodies of the HTTP API have this form.

A result is an Outcome in the form of the HTTP API: `id` is the job's id, `outcome` is the outcome's
kind, and the provenance is next to the reward instead of inside it. Both directions are lossless, but
a result has no `cursor`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from typing import Any, TypeVar, cast

from protos.error_codes import ErrorCode
from protos.types import ContractError, Outcome

V = TypeVar("V")


def to_json(value: Any) -> Any:
    """A value of types.py as plain JSON data: an object of its fields, an enum's value, null for None."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def result_to_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as {"id", "outcome", "reward", "provenance", "error", "context"}. Absent parts are null."""
    fields = to_json(outcome)
    reward = fields["reward"]
    provenance = reward.pop("provenance") if reward else None
    return {
        "id": fields["job_id"],
        "outcome": fields["kind"],
        "reward": reward,
        "provenance": provenance,
        "error": fields["error"],
        "context": fields["context"],
    }


def result_from_json(result: dict[str, Any]) -> Outcome:
    """The outcome from a result. Raises ContractError("bad_json") if a field is missing or has another type."""
    try:
        reward = result["reward"] and {**result["reward"], "provenance": result["provenance"]}
        fields = {"job_id": result["id"], "kind": result["outcome"], "reward": reward}
        return from_json(Outcome, {**fields, "error": result["error"], "context": result["context"]})
    except (KeyError, TypeError) as error:
        raise ContractError(
            ErrorCode.BAD_JSON, f"not a result of this contract: {error!r}; update the client"
        ) from error


def from_json(kind: type[V], data: Any) -> V:
    """A value of types.py from the output of `to_json`. Raises ContractError, mostly "bad_json".

    Unknown fields are ignored, because a newer server may send more.
    """
    try:
        return cast(V, _value(kind, data))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ContractError):
            raise
        raise ContractError(ErrorCode.BAD_JSON, f"not a {kind.__name__} of this contract: {error!r}") from error


def _value(kind: Any, data: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # the contract's unions are `X | None`
        return None if data is None else _value(typing.get_args(kind)[0], data)
    if typing.get_origin(kind) is tuple:
        return tuple(_value(typing.get_args(kind)[0], item) for item in data)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = [field.name for field in dataclasses.fields(kind) if field.name in data]
        return cast(Any, kind)(**{name: _value(hints[name], data[name]) for name in names})
    if issubclass(kind, Enum) or (kind is float and type(data) is int):  # some languages write 1.0 as 1 in JSON
        return kind(data)
    if type(data) is not kind:
        raise TypeError(f"{data!r} is not {kind.__name__}")
    return data
