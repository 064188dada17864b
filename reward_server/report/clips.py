"""Keeps the clips of a report while they are scored, and the explanations of the worst ones only.

An explanation takes up to a megabyte. So a command adds each clip as it is scored, and the report draws the worst.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from protos.types import Outcome, Reward
from reward_server.report.stills import Still

MOST_DRAWN = 24  # clips whose frames are shown; the others are in the table
Tone = Literal["bad", "good", "unsure", "plain"]
Draw = Callable[[Reward, int], list[Still]]  # the stills of one window of an explained reward


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One clip of a report.

    name     as the user knows it; it is shown with control characters escaped
    order    the lowest is shown first: the worst clip
    label    its verdict or set in a word or two, and `tone` how that is coloured
    reason   why it has this verdict; may be empty
    draw     draws the frames of one window; None if frames cannot be had
    """

    name: str
    outcome: Outcome
    order: tuple[float, ...]
    label: str = ""
    tone: Tone = "plain"
    reason: str = ""
    draw: Draw | None = None

    @property
    def explained(self) -> bool:
        return bool(self.outcome.reward and self.outcome.reward.explanation)


class WorstFirst:
    """The entries of a report; of those with an explanation, only the `most` worst keep it."""

    def __init__(self, most: int = MOST_DRAWN) -> None:
        self._most = most
        self._explained: list[Entry] = []
        self._others: list[Entry] = []

    def add(self, entry: Entry) -> None:
        if not entry.explained:
            self._others.append(_bare(entry))
            return
        self._explained = sorted([*self._explained, entry], key=lambda one: one.order)
        if len(self._explained) > self._most:
            self._others.append(_bare(self._explained.pop()))

    def entries(self) -> list[Entry]:
        """The scored entries, the worst first, and then those that could not be scored, as they were added."""
        every = [*self._explained, *self._others]
        scored = sorted((entry for entry in every if entry.outcome.reward), key=lambda one: one.order)
        return [*scored, *(entry for entry in self._others if not entry.outcome.reward)]


def _bare(entry: Entry) -> Entry:
    """The entry without its explanation and without what it takes to draw it, which may be the whole clip."""
    reward = entry.outcome.reward
    outcome = replace(entry.outcome, reward=replace(reward, explanation=None)) if reward else entry.outcome
    return replace(entry, outcome=outcome, draw=None)
