"""Turns YAML and `key=value` overrides into dataclasses, and dataclasses back into plain values.

This module knows no key itself. The keys come from the dataclass to be built; an error about an unknown key names the
nearest known ones.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_type_hints

import dacite
import yaml

from trainer.errors import ConfigError
from trainer.policies.protocol import PolicyError


def read(source: str, presets: Path) -> dict[str, Any]:
    """Read a preset (by name) or a YAML file (by path) as nested dicts.

    A file may start from a preset with `preset: NAME`; its own values take precedence. Raises ConfigError if `source`
    is neither of the two, is not YAML or does not hold keys and values.
    """
    data = _read_file(source, presets)
    base = data.pop("preset", None)
    return merged(read(base, presets), data) if base else data


def read_own(source: str, presets: Path) -> dict[str, Any]:
    """The values that a YAML file has besides those of its preset. None for a preset itself. Raises like `read`."""
    if (presets / f"{source}.yaml").is_file():
        return {}
    return {key: value for key, value in _read_file(source, presets).items() if key != "preset"}


def _read_file(source: str, presets: Path) -> dict[str, Any]:
    path = presets / f"{source}.yaml"
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        names = ", ".join(sorted(preset.stem for preset in presets.glob("*.yaml")))
        raise ConfigError(f"'{source}' is neither a preset ({names}) nor a YAML file; give one of the two")
    data = _yaml(path.read_text(), str(path)) or {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys and values at its top level, got {type(data).__name__}")
    return data


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data` with each override `section.key=value` applied; values are parsed as YAML. Changes `data` in place.

    Raises ConfigError if an override has no `=` or its value is not YAML.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"'{override}' is not key=value; write, for instance, loop.batch_clips=2")
        _put(data, key.split("."), _yaml(value, override))
    return data


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads 1e-5 as a number. YAML 1.1 would read it as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from error


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys of both. Where both have a value, that of `over` is taken."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def _put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = data.get(key)
        data[key] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        data = inner
    data[keys[-1]] = value


def built(kind: type, data: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `kind` made from `data`.

    Raises ConfigError for a value of the wrong type or out of range. Its message names the key, prefixed with `where`.
    """
    try:
        hooks: dict[Any, Callable[[Any], Any]] = {int: _bool_as_text, float: _number, tuple[str, ...]: _listed}
        return dacite.from_dict(kind, data, dacite.Config(type_hooks=hooks, cast=[Path, tuple], strict=True))
    except dacite.WrongTypeError as error:
        given = type(error.value).__name__
        wanted = _type_name(error.field_type)
        raise ConfigError(f"{where}{error.field_path} is {error.value!r} ({given}); give {wanted}") from error
    except (dacite.DaciteError, TypeError, PolicyError) as error:
        raise ConfigError(f"{where.rstrip('.') or 'the configuration'}: {error}") from error


def _bool_as_text(value: Any) -> Any:
    """Makes a bool fail as a number: Python would accept True as the int 1."""
    return str(value).lower() if isinstance(value, bool) else value


def _listed(value: Any) -> Any:
    """A single string becomes a list of one. Without this, `tuple` would split it into letters."""
    return [value] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    return float(value) if type(value) is int else _bool_as_text(value)


def _type_name(kind: Any) -> str:
    if getattr(kind, "__origin__", None) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def check_keys(kind: type, data: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError if `data` has a key that the dataclass `kind`, or a dataclass nested in it, does not have.

    The message names the key, prefixed with `where`, and the nearest known keys.
    """
    known = get_type_hints(kind)
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or sorted(known)
            hint = ", ".join(f"{where}{name}" for name in near)
            raise ConfigError(f"there is no key '{where}{key}'; did you mean {hint}?")
        inner = _dataclass_in(known[key])
        if inner and isinstance(value, Mapping):
            check_keys(inner, value, f"{where}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def flat(data: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Flatten nested keys: `{"loop": {"passes": 3}}` becomes `{"loop.passes": 3}`. `where` is put before each key."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return found


def plain(value: Any) -> Any:
    """`value` in types that YAML and JSON can write: tuples become lists, enums their values, paths strings."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
