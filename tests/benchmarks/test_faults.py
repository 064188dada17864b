"""The accounts of benchmarks/faults can fail: a made-up log with each break is counted, and a good one is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.faults.accounts import Accepted, Admitted, Answered, Event, Failed, Harm, Kept, Submitted, counted
from protos.types import OutcomeKind

GOOD: list[Event] = [
    Submitted(clip="a", group="r/g", level=3.0),
    Submitted(clip="b", group="r/g", level=4.0),
    Submitted(clip="bomb", kind=OutcomeKind.INVALID, codes=frozenset({"clip_too_large"})),
    Submitted(clip="never accepted"),
    *(Accepted(clip=clip, job=f"job {clip}") for clip in ("a", "b", "bomb", "a")),
    Answered(job="job a", kind=OutcomeKind.OK, version="v1", level=3.0, at_s=2.0),
    Answered(job="job a", kind=OutcomeKind.OK, version="v1", level=3.0, at_s=2.5),
    Answered(job="job b", kind=OutcomeKind.OK, version="v1", level=4.0, at_s=3.0),
    Answered(job="job bomb", kind=OutcomeKind.INVALID, code="clip_too_large", at_s=3.5),
    Kept(run="r", job="job a"),
    Kept(run="r", job="job b"),
    Admitted(jobs=3),
    Harm(what="worker", at_s=1.0, jobs=("job b",)),
    Harm(what="redis", at_s=1.5),
]
LAST = len(GOOD)


def edited(at: int, **changes: object) -> list[Event]:
    return [*GOOD[:at], replace(GOOD[at], **changes), *GOOD[at + 1 :]]  # type: ignore[arg-type]


def test_a_good_log_breaks_no_goal() -> None:
    counts = counted(GOOD)
    assert (counts.submitted, counts.accepted, counts.answered) == (4, 3, 3)
    assert counts.broken_goals == [] and counts.reasons == () and counts.recovery_s == (2.0, 0.5)


BROKEN: dict[str, tuple[list[Event], str, int]] = {
    "an accepted clip has no answer": ([event for event in GOOD if getattr(event, "job", "") != "job b"]
        + [Accepted(clip="b", job="job b")], "lost", 1),
    "a job is gone": (edited(11, code="gone", kind=OutcomeKind.FAILED), "lost", 1),
    "a clip has two jobs": ([*GOOD, Accepted(clip="a", job="other"), Admitted(jobs=4)], "duplicated", 1),
    "a job has two outcomes": (edited(9, level=9.0), "duplicated", 1),
    "a run has an outcome twice": ([*GOOD, Kept(run="r", job="job a")], "duplicated", 1),
    "redis has a job that nobody was told of": ([*GOOD, Admitted(jobs=5)], "duplicated", 2),
    "a group has two versions": (edited(10, version="v2"), "mixed_groups", 1),
    "a good clip failed": (edited(10, kind=OutcomeKind.FAILED, code="attempts_exhausted"), "failed_by_us", 1),
    "a good clip timed out": (edited(10, kind=OutcomeKind.TIMEOUT, code="deadline_passed"), "failed_by_us", 1),
    "a clip got the reward of another": (edited(10, level=3.0), "failed_by_us", 1),
    "a bomb was scored": (edited(11, kind=OutcomeKind.OK), "failed_by_us", 1),
    "a bomb is blamed on something else": (edited(11, code="unreadable_clip"), "failed_by_us", 1),
    "a call failed": ([*GOOD, Failed(what="HTTP 500")], "failed_by_us", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_break_is_counted_where_it_belongs(name: str) -> None:
    log, count, num = BROKEN[name]
    counts = counted(log)
    assert counts.broken_goals == [count] and getattr(counts, count) == num == len(counts.reasons)
