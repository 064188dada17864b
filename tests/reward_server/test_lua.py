"""Tests the queue's Lua with a parser: it is valid, uses no undeclared name, and is part of the package."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from luaparser import ast, astnodes

from reward_server.queue import scripts
from reward_server.queue.scripts import GROUP, Script

ROOT = Path(__file__).parents[2]
LUA = ROOT / "reward_server" / "queue" / "lua"
SCRIPTS = [value for value in vars(scripts).values() if isinstance(value, Script)]
# The globals of Redis that our scripts use. Redis lets no script create other global variables.
GIVEN = frozenset(
    {"KEYS", "ARGV", "redis", "table", "math", "string", "unpack", "ipairs", "pairs", "tonumber", "cjson"}
)


def undeclared(text: str) -> list[str]:
    """Names that are neither local at their place nor given by Redis. Raises SyntaxException for invalid Lua."""
    return list(free_names(ast.parse(text).body, GIVEN))


def free_names(node: Any, known: frozenset[str]) -> Iterator[str]:
    """Names that a statement or an expression uses and that are not `known` around it."""
    if isinstance(node, astnodes.Name) and node.id not in known:
        yield node.id
    elif isinstance(node, astnodes.Block):
        for statement in node.body:
            if isinstance(statement, astnodes.LocalFunction):  # it may call itself
                known |= {statement.name.id}
            yield from free_names(statement, known)
            if isinstance(statement, astnodes.LocalAssign):  # its values cannot use its names
                known |= ids(statement.targets)
    elif not isinstance(node, astnodes.Name):
        for child, declared in parts(node):
            yield from free_names(child, known | ids(declared))


def parts(node: Any) -> list[tuple[Any, list[Any]]]:
    """The parts of a node that may use names, each with the names that the node declares for it."""
    found: list[tuple[Any, list[Any]]] = []
    match node:
        case astnodes.LocalAssign():
            found = [(node.values, [])]
        case astnodes.LocalFunction() | astnodes.AnonymousFunction():
            found = [(node.body, node.args)]
        case astnodes.Fornum():
            found = [([node.start, node.stop, node.step], []), (node.body, [node.target])]
        case astnodes.Forin():
            found = [(node.iter, []), (node.body, node.targets)]
        case astnodes.Index(notation=astnodes.IndexNotation.DOT) | astnodes.Field(between_brackets=False):
            found = [(node.value, [])]  # the name of a field, also after a dot, is not a variable
        case astnodes.Node():
            found = [(child, []) for name, child in vars(node).items() if not name.startswith("_")]
        case list():
            found = [(child, []) for child in node]
    return found


def ids(names: Iterable[Any]) -> frozenset[str]:
    return frozenset(name.id for name in names if isinstance(name, astnodes.Name))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_declares_every_name_it_uses(script: Script) -> None:
    assert undeclared(script.text) == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("local a = 1 return a", []),
        ("a = 1", ["a"]),
        ("return a", ["a"]),
        ("local a = a", ["a"]),
        ("local function f(x, ...) return f(x, ...) end return x", ["x"]),
        ("for _, v in ipairs(KEYS) do redis.call(v) end return v", ["v"]),
        ("for i = 1, n do ARGV[i] = {i = i, [j] = i} end", ["n", "j"]),
        ("if ARGV[1] then local a = 1 elseif b then return c else return a end", ["b", "c", "a"]),
        ("while now do drop(entry) end", ["now", "drop", "entry"]),
        ("local t = {} t.x = t.y.z return t[u]", ["u"]),
        ("return function(x) return not x == y end", ["y"]),
    ],
)
def test_undeclared_names_are_found(text: str, names: list[str]) -> None:
    assert sorted(undeclared(text)) == sorted(names)


@pytest.mark.parametrize("text", ["local x = = 1", "if x then return 1", "return (1", "for i do end", "local 1x = 2"])
def test_what_is_no_lua_is_refused(text: str) -> None:
    with pytest.raises(ast.SyntaxException):
        undeclared(text)


def test_every_file_is_part_of_a_script_and_of_the_package() -> None:
    files = {path.relative_to(LUA).as_posix() for path in LUA.rglob("*") if path.is_file()}
    assert files == {part for script in SCRIPTS for part in script.parts}
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {path for pattern in package_data["reward_server"] for path in (ROOT / "reward_server").glob(pattern)}
    assert {LUA / file for file in files} <= packaged


def test_the_group_has_its_name_from_python_alone() -> None:
    assert all(script.text.startswith(f"local group = '{GROUP}'\n") for script in SCRIPTS)
    assert not [path for path in LUA.rglob("*.lua") if f"local group = '{GROUP}'" in path.read_text()]
