"""Judges new discriminators by the reports about them, before they are published: the recipe's last step, `gate`.

The reports are the JSON files of `motion-reward sanity`, `attack` and `evaluate --labelled`. A figure that a report
does not hold has not been shown to be good, so it fails like one that misses its limit. Two figures are left out on
purpose, because stillness raises them: the plain correlation with people's ratings, and all judged pairs together.
Reports of other weights, and labelled clips of repositories that the recipe trains on, are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reward_server.errors import BadRequest
from reward_server.evaluation.attack import BEST
from reward_server.faults import STRENGTHS

COMBINED = "combined"
STRONGEST = str(STRENGTHS[-1])
HELD, GLIDES = ("static", "frozen", "stutter", "damped"), ("zoom", "pan", "turn", "depth")

LEAST_EVALUATIONS = 48  # of both searches together, for a clip: two generations each
Bound = Literal["at_least", "at_most", "size_at_most"]
BOUNDS: Mapping[Bound, str] = {"at_least": "at least ", "at_most": "at most ", "size_at_most": "within +-"}

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One figure of the reports beside its limit. `value` is None if no report holds the figure."""

    name: str
    value: float | None
    limit: float
    bound: Bound = "at_least"

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        if self.bound == "at_least":
            return self.value >= self.limit
        return (abs(self.value) if self.bound == "size_at_most" else self.value) <= self.limit

    def as_json(self) -> dict[str, object]:
        return {"figure": self.name, "value": self.value, self.bound: self.limit, "passed": self.passed}


def read_report(path: Path | None) -> Document:
    """A report's JSON document, empty without a path. Raises BadRequest for a file that holds none."""
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{path} is not a report: {error}; write it with --json") from error
    if not isinstance(document, dict) or "model" not in document:
        raise BadRequest(f"{path} is not a report of discriminators: it names no model; write it with --json")
    return document


def file_digest(checkpoint: Path) -> str:
    """The SHA-256 of a weights file, as reports name it. Raises BadRequest if it cannot be read."""
    try:
        return hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    except OSError as error:
        raise BadRequest(f"{checkpoint} is no weights file: {error}; name one with --checkpoint") from error


def judged(
    sanity: Document, attack: Document, labelled: Document, *, weights: str = "", trained_on: Set[str] = frozenset()
) -> list[Judgement]:
    """Every figure of the gate.

    Raises BadRequest if the reports are of different discriminators, if `weights` is another digest than theirs, or
    if labelled clips are of a source that was `trained_on`.
    """
    _check_same(sanity, attack, labelled, weights=weights)
    _check_unseen(labelled, trained_on)
    return [*_faults(sanity), *_stillness(attack), *_search(attack), *_amounts(labelled), *_people(labelled)]


def _check_same(*documents: Document, weights: str) -> None:
    models = [document["model"] for document in documents if document]
    versions = {model["discriminator_version"] for model in models}
    if len(versions) > 1:
        raise BadRequest(f"the reports are of different discriminators, {sorted(versions)}; make them of one file")
    if weights and {model["weights_digest"] for model in models} - {weights}:
        raise BadRequest(
            f"the reports are of {sorted(versions)}, but not of these weights ({weights[:8]}...); make them again"
        )


def _check_unseen(labelled: Document, trained_on: Set[str]) -> None:
    known = {_repository(name) for name in trained_on}
    seen = {row["source"] for row in labelled.get("rows", ()) if _repository(row["source"]) in known}
    if seen:
        raise BadRequest(
            f"the labelled set holds clips of {sorted(seen)}, which the recipe trains on; leave them out, or name "
            "another split"
        )


def _repository(name: str) -> str:
    """A repository's owner and name, however it is written."""
    return name.casefold().removeprefix("https://").removeprefix("github.com/").strip("/").removesuffix(".git")


def _faults(sanity: Document) -> Iterator[Judgement]:
    """The share of clips above their own copies with faults at full strength, retimed ones left out."""
    row = _row(sanity.get("figures", ()), reward=COMBINED, name="all but retimed")
    share = row["by_strength"][STRONGEST]["fraction"] if row else None
    yield Judgement(name="real above strong faults", value=share, limit=0.95)


def _stillness(attack: Document) -> Iterator[Judgement]:
    """The share of clips above copies that hold the picture, or glide over it, under every disguise together."""
    rows = [row for row in attack.get("figures", ()) if row.get("value") == COMBINED]
    for name, kinds in (("real above held copies", HELD), ("real above glides", GLIDES)):
        shares = [row["plain"] for row in rows if row["kind"] in kinds]
        pairs = sum(share["pairs"] for share in shares)
        right = sum(share["right"] for share in shares)
        yield Judgement(name=name, value=right / pairs if pairs else None, limit=0.9)


def _search(attack: Document) -> Iterator[Judgement]:
    """What the searches gain on average, as a share of the way from a clip to its strong faults.

    A search of fewer than LEAST_EVALUATIONS has found nothing and shows nothing.
    """
    row = _row(attack.get("gains", ()), search=BEST)
    searched = row is not None and attack["budget"]["evaluations"] >= LEAST_EVALUATIONS
    yield Judgement(
        name="gain of the search", value=row["mean"] if row and searched else None, limit=0.25, bound="at_most"
    )


def _amounts(labelled: Document) -> Iterator[Judgement]:
    for label in ("real", "generated"):
        row = _row(labelled.get("amount", ()), value=COMBINED, label=label)
        rho = row["rho"] if row else None
        yield Judgement(name=f"correlation with amount, {label}", value=rho, limit=0.3, bound="size_at_most")


def _people(labelled: Document) -> Iterator[Judgement]:
    human = _row(labelled.get("human", ()), value=COMBINED, label="generated")
    given = human["given_amount"] if human else None
    yield Judgement(name="people's ratings, given amount", value=given, limit=0.4)
    alike = _row(labelled.get("pairs", ()), value=COMBINED, moves="alike")
    yield Judgement(name="judged pairs that move alike", value=alike["fraction"] if alike else None, limit=0.52)


def _row(rows: Sequence[Document], **wanted: str) -> Document | None:
    """The first row with these values."""
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)
