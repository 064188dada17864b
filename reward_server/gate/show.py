"""Shows a check to people: as a table on the terminal, and as the page of its report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from reward_server.evaluation.report import ABSENT, number
from reward_server.evaluation.score import shared_folder
from reward_server.gate.checked import PASSED, UNSCORED, Checked, CheckedClip
from reward_server.gate.rules import PercentileRule, Verdict
from reward_server.report.clips import Entry, Tone, WorstFirst
from reward_server.report.page import Page, Scale, Tile, shown
from reward_server.report.stills import stills

TONES: dict[Verdict, Tone] = {Verdict.PASSED: "good", Verdict.BELOW: "bad", Verdict.UNSCORED: "unsure"}
LABELS = {Verdict.PASSED: "passed", Verdict.BELOW: "below", Verdict.UNSCORED: "not scored"}
STYLES = {Verdict.PASSED: "green", Verdict.BELOW: "bold red", Verdict.UNSCORED: "yellow"}


def table(checked: Checked) -> Table:
    """A table with one row per clip, in the order of the files."""
    folder = shared_folder([clip.path for clip in checked.clips])
    drawn = Table(title=escape(shown(f"clips in {folder}: {checked.rule.told}")), title_justify="left")
    drawn.add_column("clip", overflow="fold")
    drawn.add_column("combined", justify="right")
    drawn.add_column("percentile", justify="right")
    if checked.gold:
        drawn.add_column("combined before", justify="right")
        drawn.add_column("verdict before")
    drawn.add_column("verdict")
    drawn.add_column("why", overflow="fold")
    for clip in checked.clips:
        before = [number(clip.before.combined), LABELS[clip.before.verdict]] if clip.before else []
        verdict = f"[{STYLES[clip.verdict]}]{LABELS[clip.verdict]}[/]" + (", changed" if clip.changed else "")
        drawn.add_row(
            escape(shown(_name(clip, folder))),
            *_numbers(clip),
            *before,
            verdict,
            escape(_why(clip)),
        )
    return drawn


def entry_of(clip: CheckedClip, folder: Path, fps: float | None) -> Entry:
    """The clip in a report: those whose verdict changed first, then those below, each by their value.

    Its name is relative to the folder that all clips share.
    """
    reward, tone = clip.outcome.reward, TONES[clip.verdict]
    label = LABELS[clip.verdict]
    if clip.changed and clip.before:
        label = f"{LABELS[clip.before.verdict]} → {label}"
    value = clip.judgement.value if clip.judgement.value is not None else reward.combined if reward else 0.0
    return Entry(
        name=_name(clip, folder),
        outcome=clip.outcome,
        order=(not clip.changed, clip.verdict is Verdict.PASSED, value, reward.combined if reward else 0.0),
        label=label,
        tone=tone,
        reason=_why(clip),
        draw=partial(stills, clip.path, fps=fps),
    )


def page(checked: Checked, worst: WorstFirst) -> Page:
    """The report of a check whose clips are in `worst`."""
    entries = worst.entries()
    folder = shared_folder([clip.path for clip in checked.clips])
    by_name = {_name(clip, folder): clip.judgement.value for clip in checked.clips}
    values = [by_name[entry.name] for entry in entries]
    changed = [Tile(count=len(checked.changed), label="changed", tone="bad")] if checked.gold else []
    tiles = [Tile(count=num, label=LABELS[verdict], tone=TONES[verdict]) for verdict, num in checked.counts.items()]
    tones: dict[int, Tone] = {PASSED: "good", UNSCORED: "unsure"}
    order = "Below the threshold first, then by value."
    return Page(
        command="check",
        headline=checked.headline,
        tone=tones.get(checked.exit_code, "bad"),
        lead=[
            f"Clips in {folder}. The rule: {checked.rule.told}.",
            *drift(checked),
            *(f"{note}." for note in checked.notes),
        ],
        tiles=[Tile(count=len(checked.clips), label="clips"), *changed, *tiles],
        scale=_scale(checked, values),
        entries=entries,
        values=values,
        order=f"Changed verdicts first. {order}" if checked.gold else order,
        model=checked.model,
        where=checked.where,
    )


def drift(checked: Checked) -> list[str]:
    """What the gold file was scored by, and what scored it now; nothing without a gold file."""
    if checked.gold is None:
        return []
    before, now = checked.gold.model, checked.model
    if before.weights_digest == now.weights_digest and before.preprocessing_digest == now.preprocessing_digest:
        return [f"The same discriminators as in the gold file scored it again ({now.discriminator_version})."]
    told = f"Discriminators {before.discriminator_version} (sha256 {before.weights_digest[:12]}) then"
    return [f"{told}, {now.discriminator_version} (sha256 {now.weights_digest[:12]}) now."]


def _scale(checked: Checked, values: Sequence[float | None]) -> Scale:
    threshold = checked.rule.threshold
    if isinstance(checked.rule, PercentileRule):
        return Scale(low=0, high=100, label="percentile among real clips", threshold=threshold, percentiles=True)
    known = [value for value in values if value is not None]
    return Scale.around(known, label="combined reward", threshold=threshold)


def _name(clip: CheckedClip, folder: Path) -> str:
    return str(clip.path.resolve().relative_to(folder))


def _numbers(clip: CheckedClip) -> tuple[str, str]:
    reward = clip.outcome.reward
    if reward is None:
        return ABSENT, ABSENT
    percentile = reward.standing.combined_percentile if reward.standing else None
    return number(reward.combined), number(percentile, 1)


def _why(clip: CheckedClip) -> str:
    before = clip.before
    if clip.changed and before and clip.outcome.reward:
        was = f"was {LABELS[before.verdict]} with a combined reward of {before.combined:.2f}"
        return f"{was}; {clip.judgement.reason}" if clip.judgement.reason else was
    return clip.judgement.reason
