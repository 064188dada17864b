"""The README fits a page and begins with what a visitor needs. What holds for every document is in test_docs.py."""

from __future__ import annotations

import re

from tests.documents import ROOT, Document

README = Document(path=ROOT / "README.md")


def test_it_is_one_page() -> None:
    assert len(README.text.splitlines()) <= 170


def test_it_leads_to_every_page_of_the_documentation() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {link.partition("#")[0] for link in README.links()}


def test_the_two_commands_come_before_anything_else_is_run() -> None:
    first, second, *_ = (words for words in README.commands())
    assert (first[:2], second[:2]) == (["make", "demo"], ["make", "test"])


def test_it_names_the_licences_of_all_weights() -> None:
    assert all(re.search(licence, README.text) for licence in ("Apache-2.0", r"CC-BY-NC 4\.0", "BSD-3-Clause"))
