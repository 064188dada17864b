"""The README does not lie: its Python runs as printed, its commands exist, its file tree is the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_server.serving.local import local_server
from reward_server.settings import Settings
from tests.media import texture, video

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)
ROOMS = ("benchmarks", "protos", "reward_server", "trainer")
TREE = dict(re.findall(rf"^((?:{'|'.join(ROOMS)})/\S+\.py) +(.+)$", README.partition("\n## The tree\n")[2], flags=re.M))


def modules() -> Iterator[Path]:
    for room in ROOMS:
        yield from (path for path in (ROOT / room).rglob("*.py") if "_pb2" not in path.name)


@pytest.mark.slow
def test_the_python_examples_run_as_printed(tmp_path: Path) -> None:
    assert len(PYTHON) >= 2
    (tmp_path / "clip.mp4").write_bytes(video(texture(24, 144, 256), fps=12))
    with local_server(Settings()) as server:
        for example in PYTHON:
            code = example.replace("grpc://127.0.0.1:50051", server.grpc_url)
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{code}\n{done.stderr}"
            assert "print(" not in code or done.stdout.startswith("ok "), done.stdout


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`motion-reward ([a-z-]+)", README))))
def test_a_command_that_is_named_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reward_server", command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets


def test_every_module_stands_in_the_file_tree_and_says_there_what_it_says_itself() -> None:
    found = {}
    for path in modules():
        text = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].rstrip(".")
        if path.name != "__init__.py" or len(path.read_text().splitlines()) > 1:
            found[str(path.relative_to(ROOT))] = text
    assert {name: TREE.get(name) for name in found} == found
    assert all((ROOT / name).is_file() for name in TREE)


def test_every_file_that_is_linked_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
