"""Makes the HTML reports of `score`, `evaluate` and `sanity`: their entries, and what stands above them."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from protos.types import Outcome
from reward_server.evaluation.ladder import Rung
from reward_server.evaluation.report import Outputs, number
from reward_server.evaluation.scoring import RewardSource
from reward_server.report.clips import Draw, Entry, Tone, WorstFirst
from reward_server.report.page import Page, Plot, Scale, Tile
from reward_server.report.stills import stills

TONES: dict[str, Tone] = {"generated": "unsure"}


def file_entry(path: Path, outcome: Outcome, folder: Path, fps: float | None) -> Entry:
    """A file by its path below `folder`."""
    return _entry(str(path.resolve().relative_to(folder)), outcome, draw=partial(stills, path, fps=fps))


def set_entry(side: str, clip: str, outcome: Outcome, draw: Draw | None) -> Entry:
    """A clip of one set."""
    return _entry(clip, outcome, label=side, tone=TONES.get(side, "plain"), draw=draw)


def ladder_entry(real: Rung, copy: Rung) -> Entry:
    """The faulty copy of a ladder that comes nearest to its real clip, or lies above it; both have a reward.

    The order is the real clip's combined reward minus the copy's: below 0, a fault is preferred to the real clip.
    """
    assert real.outcome.reward and copy.outcome.reward
    own, other = real.outcome.reward.combined, copy.outcome.reward.combined
    above = other >= own
    return Entry(
        name=f"{real.clip} at {real.start_s:.2f} s, {copy.fault} {copy.strength:g}",
        outcome=copy.outcome,
        order=(own - other,),
        label="above its real clip" if above else "below its real clip",
        tone="bad" if above else "good",
        reason=f"the faulty copy has a combined reward of {other:.2f}, the real clip {own:.2f}",
        draw=copy.draw,
    )


def score_page(worst: WorstFirst, folder: Path, scorer: RewardSource) -> Page:
    entries = worst.entries()
    missing = _num_missing(entries)
    return Page(
        command="score",
        headline=f"{len(entries) - missing} of {len(entries)} clips have a reward",
        tone="unsure" if missing else "plain",
        lead=[f"Clips in {folder}."],
        tiles=_tiles(entries),
        scale=_scale(_rewards(entries)),
        entries=entries,
        values=_rewards(entries),
        order="By combined reward, the lowest first.",
        model=scorer.model,
        where=scorer.where,
    )


def evaluate_page(
    worst: WorstFirst,
    scorer: RewardSource,
    *,
    tables: Sequence[Table],
    plots: Sequence[Plot],
    lead: Sequence[str],
    sizes: Mapping[str, int],
    auc: float | None,
) -> Page:
    """The report of two sets, of which `sizes` are the numbers of clips, by name. `auc` is that of `combined`."""
    entries = worst.entries()
    counts = [Tile(count=size, label=side) for side, size in sizes.items()]
    return Page(
        command="evaluate",
        headline=f"AUC {number(auc)}: how often a real clip lies above a generated one",
        tone="plain",
        lead=lead,
        tiles=[*counts, *_missing_tile(entries)],
        scale=_scale(_rewards(entries)),
        entries=entries,
        values=_rewards(entries),
        order="By combined reward, the lowest first, real and generated clips together.",
        model=scorer.model,
        where=scorer.where,
        tables=tables,
        plots=plots,
    )


def sanity_page(
    worst: WorstFirst, scorer: RewardSource, *, tables: Sequence[Table], plots: Sequence[Plot], lead: Sequence[str]
) -> Page:
    entries = worst.entries()
    fooled, missing = sum(entry.tone == "bad" for entry in entries), _missing_tile(entries)
    ladders = len(entries) - _num_missing(entries)
    margins = [entry.order[0] if entry.outcome.reward else None for entry in entries]
    return Page(
        command="sanity",
        headline=f"In {fooled} of {ladders} ladders a faulty copy lies above its real clip",
        tone="bad" if fooled else "good",
        lead=["A ladder is a real clip with a copy for each fault and strength.", *lead],
        tiles=[Tile(count=ladders, label="ladders"), Tile(count=fooled, label="fooled", tone="bad"), *missing],
        scale=_scale(margins, label="real clip minus its best faulty copy, combined", threshold=0.0),
        entries=entries,
        values=margins,
        order="Of each ladder its best faulty copy, by how far it lies above the real clip. The frames are the copy's, "
        "as it was scored.",
        model=scorer.model,
        where=scorer.where,
        tables=tables,
        plots=plots,
    )


def drawn(draw: Callable[[Path], None], captions: Mapping[str, str], outputs: Outputs) -> list[Plot]:
    """Put the pictures that `draw` makes in a folder into that of `outputs`. Returns those of `captions`, for a page.

    They are drawn once, and not at all if neither is wanted.
    """
    if outputs.plots is None and outputs.html is None:
        return []
    with TemporaryDirectory() as folder:
        draw(Path(folder))
        if outputs.plots is not None:
            outputs.plots.mkdir(parents=True, exist_ok=True)
            for file in Path(folder).iterdir():
                shutil.copyfile(file, outputs.plots / file.name)
        files = {Path(folder) / name: caption for name, caption in captions.items()}
        return [Plot(uri=_png(file), caption=caption) for file, caption in files.items() if file.exists()]


def _png(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _entry(name: str, outcome: Outcome, *, draw: Draw | None, label: str = "", tone: Tone = "plain") -> Entry:
    if outcome.reward is None:
        assert outcome.error, "an outcome has a reward or an error"
        reason = f"{outcome.error.code}: {outcome.error.message}"
        return Entry(
            name=name, outcome=outcome, order=(0.0,), label=label or "not scored", tone="unsure", reason=reason
        )
    return Entry(name=name, outcome=outcome, order=(outcome.reward.combined,), label=label, tone=tone, draw=draw)


def _rewards(entries: Sequence[Entry]) -> list[float | None]:
    return [entry.outcome.reward.combined if entry.outcome.reward else None for entry in entries]


def _num_missing(entries: Sequence[Entry]) -> int:
    return sum(entry.outcome.reward is None for entry in entries)


def _tiles(entries: Sequence[Entry]) -> list[Tile]:
    return [Tile(count=len(entries), label="clips"), *_missing_tile(entries)]


def _missing_tile(entries: Sequence[Entry]) -> list[Tile]:
    missing = _num_missing(entries)
    return [Tile(count=missing, label="without a reward", tone="unsure")] if missing else []


def _scale(
    values: Sequence[float | None], *, label: str = "combined reward", threshold: float | None = None
) -> Scale | None:
    """An axis with room for all values and the threshold; None without values."""
    known = [value for value in values if value is not None]
    return Scale.around(known, label=label, threshold=threshold) if known else None
