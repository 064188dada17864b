"""Counts what became of the clips, from a log of events alone, so that each count can be tested with a made-up log."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from protos.types import OutcomeKind


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A clip that a client means to send until it is accepted, and how it must end."""

    clip: str
    group: str = ""  # with its run; the clips of a group must be judged by one version
    kind: OutcomeKind = OutcomeKind.OK
    codes: frozenset[str] = frozenset()  # allowed error codes; empty: any
    level: float = 0.0  # its reward


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """The server gave the clip a job. Also logged when the same clip is sent again."""

    clip: str
    job: str


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A job's outcome, as a door gave it."""

    job: str
    kind: OutcomeKind
    code: str = ""
    version: str = ""
    level: float = 0.0
    at_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A call that ended with a failure of the server (HTTP 500, INTERNAL), or refused what is right."""

    what: str


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One entry of a run's outcomes in Redis at the end."""

    run: str
    job: str


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """Redis's own count of jobs at the end."""

    jobs: int


@dataclass(frozen=True, kw_only=True)
class Harm:
    """A process was killed, when, and the jobs that it held. Without jobs, it is over at the next answer."""

    what: str
    at_s: float
    jobs: tuple[str, ...] = ()


Event = Submitted | Accepted | Answered | Failed | Kept | Admitted | Harm


class Log:
    """Collects events from several threads."""

    def __init__(self) -> None:
        self._lock, self._events = threading.Lock(), list[Event]()
        self.began_s = time.monotonic()

    def add(self, *events: Event) -> None:
        with self._lock:
            self._events += events

    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def events(self) -> Sequence[Event]:
        with self._lock:
            return tuple(self._events)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of the clips. The four goals are 0."""

    submitted: int
    accepted: int
    answered: int
    lost: int
    duplicated: int
    mixed_groups: int
    failed_by_us: int
    recovery_s: tuple[float, ...] = ()
    reasons: tuple[str, ...] = field(default=(), repr=False)  # of what is not 0 but should be

    @property
    def broken_goals(self) -> list[str]:
        return [name for name in ("lost", "duplicated", "mixed_groups", "failed_by_us") if getattr(self, name)]


def counted(events: Iterable[Event]) -> Counts:
    """The counts of a log.

    lost          accepted clips without an answer, or whose job the server does not know any more
    duplicated    further jobs or outcomes of one clip, and jobs that Redis counts but nobody was told of
    mixed_groups  groups whose clips were judged by several versions
    failed_by_us  clips that did not end as they must, among them wrong rewards, and calls that failed
    """
    log = list(events)
    clips = {event.clip: event for event in log if isinstance(event, Submitted)}
    jobs: dict[str, set[str]] = defaultdict(set)
    answers: dict[str, list[Answered]] = defaultdict(list)
    for event in log:
        if isinstance(event, Accepted):
            jobs[event.clip].add(event.job)
        elif isinstance(event, Answered):
            answers[event.job].append(event)
    clip_of = {job: clip for clip, of_clip in jobs.items() for job in of_clip}
    lost = [clip for clip, of_clip in jobs.items() if not any(_known(answers[job]) for job in of_clip)]
    duplicated = [*_extra_jobs(jobs), *_extra_outcomes(log, answers), *_untold(log, clip_of)]
    wrong = [
        f"{clip_of[job]}: {answer}"
        for job, of_job in answers.items()
        for answer in of_job[:1]
        if _known([answer]) and (why := clips.get(clip_of.get(job, ""))) and not _as_it_must(why, answer)
    ]
    wrong += [event.what for event in log if isinstance(event, Failed)]
    mixed = _mixed(clips, clip_of, answers)
    return Counts(
        submitted=len(clips),
        accepted=len(jobs),
        answered=len(jobs) - len(lost),
        lost=len(lost),
        duplicated=len(duplicated),
        mixed_groups=len(mixed),
        failed_by_us=len(wrong),
        recovery_s=tuple(_recoveries(log, answers)),
        reasons=(*(f"lost: {clip}" for clip in lost), *duplicated, *mixed, *(f"failed: {why}" for why in wrong)),
    )


def _known(answers: Sequence[Answered]) -> bool:
    """Whether there is an answer that is not "gone", which is what a door says of a job that Redis lost."""
    return any(answer.code != "gone" for answer in answers)


def _as_it_must(clip: Submitted, answer: Answered) -> bool:
    if answer.kind is not clip.kind:
        return False
    if clip.kind is OutcomeKind.OK:
        return answer.level == clip.level
    return not clip.codes or answer.code in clip.codes


def _extra_jobs(jobs: dict[str, set[str]]) -> list[str]:
    return [f"duplicated: {clip} has {len(of_clip)} jobs" for clip, of_clip in jobs.items() for _ in list(of_clip)[1:]]


def _extra_outcomes(log: Sequence[Event], answers: dict[str, list[Answered]]) -> list[str]:
    kept: dict[tuple[str, str], int] = defaultdict(int)
    for event in log:
        if isinstance(event, Kept):
            kept[event.run, event.job] += 1
    twice = [f"duplicated: {job} is {num} times in run {run}" for (run, job), num in kept.items() if num > 1]
    told = {job: {(a.kind, a.code, a.version, a.level) for a in of_job} for job, of_job in answers.items()}
    return twice + [f"duplicated: {job} has several outcomes: {found}" for job, found in told.items() if len(found) > 1]


def _untold(log: Sequence[Event], clip_of: dict[str, str]) -> list[str]:
    admitted = max((event.jobs for event in log if isinstance(event, Admitted)), default=0)
    return [f"duplicated: a job beyond the {len(clip_of)} that were told"] * (admitted - len(clip_of))


def _mixed(clips: dict[str, Submitted], clip_of: dict[str, str], answers: dict[str, list[Answered]]) -> list[str]:
    versions: dict[str, set[str]] = defaultdict(set)
    for job, of_job in answers.items():
        clip = clips.get(clip_of.get(job, ""))
        if clip and clip.group:
            versions[clip.group] |= {answer.version for answer in of_job if answer.kind is OutcomeKind.OK}
    return [
        f"mixed: group {group} was judged by {sorted(found)}" for group, found in versions.items() if len(found) > 1
    ]


def _recoveries(log: Sequence[Event], answers: dict[str, list[Answered]]) -> list[float]:
    """Seconds from each harm until the jobs it touched were answered."""
    times = sorted(answer.at_s for of_job in answers.values() for answer in of_job)
    found = []
    for event in log:
        if isinstance(event, Harm):
            ends = [answers[job][0].at_s for job in event.jobs if answers[job]]
            ends = ends or [at_s for at_s in times if at_s > event.at_s][:1]
            found += [max(0.0, max(ends) - event.at_s)] if ends else []
    return found
