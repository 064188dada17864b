"""Implements `motion-reward check`: scores clips, here or on a server, and says which of them pass.

The exit code is 0 if all pass, 1 if a clip is below the threshold (with a gold file: if a verdict changed), and 2 if a
clip could not be scored or the check could not be made. 2 wins over 1, as with grep and diff: an incomplete check says
nothing about what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from protos.types import Context, Outcome
from reward_server.data.shots import find_files
from reward_server.errors import BadRequest, UnreadableClip, error_outcome
from reward_server.evaluation.report import progress_bar
from reward_server.evaluation.score import FileOutcome, score_files, shared_folder
from reward_server.evaluation.scoring import RewardSource, open_scorer, without_explanation
from reward_server.gate.checked import Checked, CheckedClip
from reward_server.gate.gold import (
    Gold,
    GoldClip,
    GoldFile,
    GoldModel,
    GoldRule,
    clip_path,
    different,
    digest_of,
    gold_path,
    read_gold,
    write_gold,
)
from reward_server.gate.outputs import Outputs, write_outputs
from reward_server.gate.rules import MAX_REFUSED, AcceptedRule, PercentileRule, Rule, Verdict
from reward_server.gate.show import entry_of
from reward_server.report.clips import WorstFirst
from reward_server.settings import Settings

Done = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is checked: `paths` by one of both rules, or the set of a gold file by its own rule.

    `max_refused` is in per cent. `fps` is the frame rate of image sequences.
    """

    paths: Sequence[str] = ()
    min_percentile: float | None = None
    accepted: str | None = None
    max_refused: float = MAX_REFUSED
    gold: Path | None = None
    write_gold: Path | None = None
    fps: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """The files of one check. `before` holds the entries of a gold file by path.

    `stale` are files that are not those of the gold file. With `strict`, no accepted clip may fail.
    """

    files: Sequence[Path]
    accepted: Sequence[Path]
    before: dict[Path, GoldClip]
    stale: frozenset[Path] = frozenset()
    strict: bool = False


def run(wanted: Wanted, settings: Settings, *, server: str | None, outputs: Outputs) -> int:
    """Run the command: score, judge, print a table and write `outputs`. Returns the exit code.

    Raises BadRequest if a path names no clips, a gold file is none, or the accepted clips are too few.
    """
    gold = None
    if wanted.gold:
        gold = read_gold(wanted.gold)
        clips = gold_set(gold, wanted.gold)
        wanted = _as_before(wanted, gold)
    else:
        clips = _named_set(wanted)
    worst = WorstFirst()
    with open_scorer(settings, server) as scorer, progress_bar() as bar:
        task = bar.add_task("scoring", total=len(clips.accepted) + len(clips.files))
        checked = check(
            clips, wanted, scorer, gold=gold, worst=worst if outputs.html else None, done=lambda: bar.advance(task)
        )
    write_outputs(outputs, checked, worst)
    if wanted.write_gold:
        write_gold(wanted.write_gold, gold_of(checked, wanted, wanted.write_gold))
    return checked.exit_code


def check(
    clips: ClipSet,
    wanted: Wanted,
    scorer: RewardSource,
    *,
    gold: Gold | None = None,
    worst: WorstFirst | None = None,
    done: Done = lambda: None,
) -> Checked:
    """Score the clips and judge them. With `worst`, clips are explained, and the worst of them are kept there."""
    started = time.monotonic()
    rule, notes = _rule(clips, wanted, scorer, done)
    checked, folder = list[CheckedClip](), shared_folder(clips.files)
    for item in _outcomes(clips, scorer, wanted.fps, explain=worst is not None):
        one = CheckedClip(
            path=item.path,
            outcome=item.outcome,
            judgement=rule.judge(item.outcome),
            before=clips.before.get(item.path),
        )
        if worst is not None:
            worst.add(entry_of(one, folder, wanted.fps))
        checked.append(replace(one, outcome=without_explanation(item.outcome)))
        done()
    return Checked(
        rule=rule,
        model=scorer.model,
        where=scorer.where,
        clips=checked,
        accepted=clips.accepted,
        gold=gold,
        notes=[*notes, *_same(clips)],
        seconds=time.monotonic() - started,
    )


# --- which clips --------------------------------------------------------------------------------


def _named_set(wanted: Wanted) -> ClipSet:
    accepted = different(find_files([wanted.accepted], wanted.fps)) if wanted.accepted else []
    return ClipSet(files=find_files(wanted.paths, wanted.fps), accepted=accepted, before={})


def gold_set(gold: Gold, file: Path) -> ClipSet:
    """The clips of a gold file. Raises BadRequest if an accepted clip was changed or is missing."""
    before = {clip_path(clip.path, file): clip for clip in gold.clips}
    accepted = {clip_path(clip.path, file): clip.digest for clip in gold.rule.accepted}
    for path, digest in accepted.items():
        if digest_of(path) != digest:
            raise BadRequest(
                f"the accepted clip {path} is missing or not the one of {file}, so verdicts cannot be compared; "
                "restore it, or write a new gold file"
            )
    stale = frozenset(path for path, clip in before.items() if digest_of(path) not in (None, clip.digest))
    return ClipSet(files=list(before), accepted=list(accepted), before=before, stale=stale, strict=True)


def _as_before(wanted: Wanted, gold: Gold) -> Wanted:
    rule = gold.rule
    return replace(
        wanted, min_percentile=rule.min_percentile, max_refused=rule.max_refused or MAX_REFUSED, fps=gold.fps
    )


def _same(clips: ClipSet) -> list[str]:
    """A note if checked clips are among the accepted ones. In a gold set they are so on purpose."""
    if clips.before or not clips.accepted:
        return []
    accepted = {digest_of(path) for path in clips.accepted}
    num = sum(digest_of(path) in accepted for path in clips.files)
    return [f"{num} of the clips are among the accepted ones; the promise is about new clips"] if num else []


# --- scoring ------------------------------------------------------------------------------------


def _rule(clips: ClipSet, wanted: Wanted, scorer: RewardSource, done: Done) -> tuple[Rule, list[str]]:
    """The rule, and notes on how it came about. Raises BadRequest if accepted clips do not make one."""
    if wanted.min_percentile is not None:
        return PercentileRule(min_percentile=wanted.min_percentile), []
    rewards, failed = list[float](), list[str]()
    for item in score_files(clips.accepted, scorer, wanted.fps, _context(scorer)):
        if reward := item.outcome.reward:
            rewards.append(reward.combined)
        else:
            assert item.outcome.error
            failed.append(f"{item.path}: {item.outcome.error.code}: {item.outcome.error.message}")
        done()
    if failed and clips.strict:
        raise BadRequest(f"an accepted clip cannot be scored, so verdicts cannot be compared: {failed[0]}")
    notes = [f"{len(failed)} accepted clips could not be scored and are left out; {failed[0]}"] if failed else []
    return AcceptedRule.of(rewards, wanted.max_refused), notes


def _outcomes(clips: ClipSet, scorer: RewardSource, fps: float | None, *, explain: bool) -> Iterator[FileOutcome]:
    """The outcome of each file, in order. A file that is not the one of the gold file is not scored."""
    fresh = [path for path in clips.files if path not in clips.stale]
    scored = score_files(fresh, scorer, fps, _context(scorer, explain=explain))
    for path in clips.files:
        yield FileOutcome(path=path, outcome=_stale()) if path in clips.stale else next(scored)


def _context(scorer: RewardSource, *, explain: bool = False) -> Context:
    """One version of the discriminators for all clips: rewards of two versions must not be compared."""
    return Context(explain=explain, discriminator_version=scorer.model.discriminator_version)


def _stale() -> Outcome:
    told = "the file is not the one of the gold file: its sha256 is another; restore it, or write a new gold file"
    return error_outcome("", UnreadableClip(told), Context())


# --- the gold file ------------------------------------------------------------------------------


def gold_of(checked: Checked, wanted: Wanted, file: Path) -> Gold:
    """The gold file of a check. Raises BadRequest if a clip has no verdict."""
    if missing := [clip.path for clip in checked.clips if clip.verdict is Verdict.UNSCORED]:
        raise BadRequest(f"no gold file was written: {missing[0]} has no verdict; leave such clips out of the set")
    named = partial(gold_path, gold_file=file)
    accepted = [GoldFile(path=named(path), digest=digest_of(path) or "") for path in checked.accepted]
    by_accepted = isinstance(checked.rule, AcceptedRule)
    return Gold(
        model=GoldModel.of(checked.model),
        rule=GoldRule(
            min_percentile=wanted.min_percentile,
            max_refused=wanted.max_refused if by_accepted else None,
            accepted=tuple(accepted),
        ),
        fps=wanted.fps,
        clips=tuple(_gold_clip(clip, named(clip.path)) for clip in checked.clips),
    )


def _gold_clip(clip: CheckedClip, name: str) -> GoldClip:
    reward = clip.outcome.reward
    assert reward, "a clip with a verdict has a reward"
    return GoldClip(
        path=name,
        digest=digest_of(clip.path) or "",
        combined=reward.combined,
        instantaneous=reward.instantaneous,
        long_term=reward.long_term,
        combined_percentile=reward.standing.combined_percentile if reward.standing else None,
        verdict=clip.verdict,
    )
