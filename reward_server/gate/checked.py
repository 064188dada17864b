"""Defines the result of one check: each clip with its verdict, the counts, and the exit code that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protos.json_codec import result_to_json, to_json
from protos.types import Model, Outcome
from reward_server.gate.gold import Gold, GoldClip
from reward_server.gate.rules import AcceptedRule, Judgement, Rule, Verdict

PASSED, BELOW, UNSCORED = 0, 1, 2  # exit codes


@dataclass(frozen=True, kw_only=True)
class CheckedClip:
    """One clip with its outcome and verdict. `before` is its entry of the gold file; None without one."""

    path: Path
    outcome: Outcome
    judgement: Judgement
    before: GoldClip | None = None

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def changed(self) -> bool:
        """Whether the clip has another verdict than in the gold file. A clip without a reward has none."""
        return self.before is not None and self.verdict not in (Verdict.UNSCORED, self.before.verdict)

    def as_json(self) -> dict[str, Any]:
        verdict = {"path": str(self.path), "verdict": self.verdict.value, "value": self.judgement.value}
        verdict |= {"reason": self.judgement.reason}
        before = {"changed": self.changed, "before": to_json(self.before)} if self.before else {}
        return {**verdict, **before, **result_to_json(self.outcome)}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """All clips of one check, in the order of the files, and what they were judged by.

    `gold` is the gold file's content if its set was scored again. `notes` are sentences for people. `seconds` is the
    time that scoring took.
    """

    rule: Rule
    model: Model
    where: str
    clips: Sequence[CheckedClip]
    accepted: Sequence[Path] = ()
    gold: Gold | None = None
    notes: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def counts(self) -> dict[Verdict, int]:
        return {verdict: sum(clip.verdict is verdict for clip in self.clips) for verdict in Verdict}

    @property
    def changed(self) -> list[CheckedClip]:
        return [clip for clip in self.clips if clip.changed]

    @property
    def exit_code(self) -> int:
        """UNSCORED if a clip has no verdict, whatever the others have; else BELOW if one is below, or has changed."""
        if self.counts[Verdict.UNSCORED]:
            return UNSCORED
        failed = self.changed if self.gold else [clip for clip in self.clips if clip.verdict is Verdict.BELOW]
        return BELOW if failed else PASSED

    @property
    def headline(self) -> str:
        """The result in one sentence."""
        counts, total = self.counts, len(self.clips)
        missing = f"; {counts[Verdict.UNSCORED]} could not be scored" if counts[Verdict.UNSCORED] else ""
        if self.gold:
            return f"{len(self.changed)} of {total} clips changed their verdict{missing}"
        return f"{counts[Verdict.BELOW]} of {total} clips are below the threshold{missing}"

    def as_json(self) -> dict[str, Any]:
        """The JSON report. Its own keys stand beside each clip's result in the form of the HTTP API."""
        rule = {"kind": "accepted" if isinstance(self.rule, AcceptedRule) else "percentile"}
        drift = {"gold": {"model": to_json(self.gold.model), "changed": len(self.changed)}} if self.gold else {}
        return {
            "exit_code": self.exit_code,
            "counts": {verdict.value: number for verdict, number in self.counts.items()},
            "rule": {**rule, **to_json(self.rule), "threshold": self.rule.threshold, "told": self.rule.told},
            **drift,
            "model": to_json(self.model),
            "scored_by": self.where,
            "notes": list(self.notes),
            "clips": [clip.as_json() for clip in self.clips],
        }
