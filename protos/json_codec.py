"""Values of the contract as JSON and back: the bodies of the HTTP door have their shape from here.

A result is an Outcome as HTTP shows it: `id` and `outcome` name the job and its kind, and the
provenance stands beside the reward rather than inside it. Nothing is lost either way.
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
    """Any value of types.py as plain JSON data, field by field; enums as their value, absent ones as null."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def result_to_json(outcome: Outcome) -> dict[str, Any]:
    """{"id", "outcome", "reward", "provenance", "error", "context"}; absent ones are null."""
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
    """Raises ContractError("bad_json") where a field is missing or of another type."""
    try:
        reward = result["reward"] and {**result["reward"], "provenance": result["provenance"]}
        fields = {"job_id": result["id"], "kind": result["outcome"], "reward": reward}
        return from_json(Outcome, {**fields, "error": result["error"], "context": result["context"]})
    except (KeyError, TypeError) as error:
        raise ContractError(
            ErrorCode.BAD_JSON, f"not a result of this contract: {error!r}; update the client"
        ) from error


def from_json(kind: type[V], data: Any) -> V:
    """A value of types.py from what `to_json` made. Unknown fields are ignored: a newer server may send more."""
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
    if issubclass(kind, Enum) or (kind is float and type(data) is int):  # JSON writes 1.0 as 1 in some languages
        return kind(data)
    if type(data) is not kind:
        raise TypeError(f"{data!r} is not {kind.__name__}")
    return data
