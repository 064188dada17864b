"""Reads the project's documents for tests: prose, code blocks, commands, links and headings."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
CARDS = ("reward_server/weights/MODEL_CARD.md", "trainer/weights/toy-svd/README.md")
FURNITURE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", *CARDS)
NOT_RUN = "<!-- not run:"
FENCE = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)^```$", flags=re.M | re.S)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, its text, and whether the document marks it as not run."""

    language: str
    text: str
    marked: bool


@dataclass(frozen=True, kw_only=True)
class Document:
    """One of the project's Markdown files."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return FENCE.sub("", self.text)

    @property
    def current(self) -> str:
        """The prose without old names, which stand in the first column of tables from `before` to `now`."""
        kept, gone = [], False
        for line in self.prose.splitlines():
            gone = line.startswith("| before ") or (gone and line.startswith("|"))
            kept.append(line.partition("|")[2].partition("|")[2] if gone else line)
        return "\n".join(kept)

    def blocks(self, language: str) -> list[Block]:
        """Every fenced block of a language, in order."""
        found = (Block(language=kind, text=text, marked=bool(mark)) for mark, kind, text in FENCE.findall(self.text))
        return [block for block in found if block.language == language]

    def commands(self) -> Iterator[list[str]]:
        """The words of each command in the `sh` blocks, with the words of the array CONFIG where they are used."""
        for block in self.blocks("sh"):
            text = re.sub(r"\\\n", " ", block.text)
            if config := re.search(r"^CONFIG=\((.*)\)$", text, flags=re.M):
                text = text.replace(config[0], "").replace('"${CONFIG[@]}"', config[1])
            for line in text.splitlines():
                if words := shlex.split(line, comments=True):
                    yield [word for word in words if word != "&"]

    def links(self) -> list[str]:
        """Targets of links and images, without URLs."""
        return re.findall(r"\]\((?!https?:)([^)\s]+)\)", self.prose)

    def anchors(self) -> set[str]:
        """Names for `#...` links: the headings, converted as code hosts do it."""
        headings = re.findall(r"^#+ (.+)$", self.prose, flags=re.M)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def documents() -> list[Document]:
    """README, the other top-level documents and every page of docs/."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    return [Document(path=path) for path in (*(ROOT / name for name in FURNITURE), *pages)]


def script_of_tables() -> ModuleType:
    """docs/tables.py, which is a script outside the packages."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
