"""Tests the kinds of real clips and the curve of reward against motion on cases worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reward_server.evaluation import by_motion, plots
from reward_server.evaluation.by_motion import (
    CAMERA,
    KINDS,
    MOVING,
    SLOW,
    STILL,
    Moved,
    curve,
    kind_of,
    kinds,
    moved_of,
    named_kinds,
)


def moved(total: float, objects: float | None = None, reward: float = 0.0, group: str = "real") -> Moved:
    return Moved(group=group, reward=reward, total=total, objects=total if objects is None else objects)


@pytest.mark.parametrize(
    ("total", "objects", "kind"),
    [
        (0.0, 0.0, STILL),
        (0.019, 0.019, STILL),
        (0.03, 0.03, "hardly moves"),
        (0.5, 0.1, CAMERA),
        (0.15, 0.1, SLOW),
        (0.5, 0.3, MOVING),
    ],
)
def test_the_kind_of_a_clip_follows_from_its_dynamics(total: float, objects: float, kind: str) -> None:
    assert kind_of(moved(total, objects)) == kind


def test_a_kind_far_below_the_other_real_clips_is_unfair_unless_nothing_moves() -> None:
    clips = [moved(0.5, reward=number) for number in range(8)] + [moved(0.15, reward=-1), moved(0.01, reward=-2)]
    found = {row.kind: row for row in kinds(clips)}
    assert list(found) == list(KINDS)
    assert (found[SLOW].num, found[SLOW].median) == (1, -1)
    assert found[SLOW].percentile == pytest.approx(15)
    assert not found[SLOW].fair
    assert found[STILL].percentile == pytest.approx(5)
    assert found[STILL].fair
    assert found[MOVING].percentile == pytest.approx(60)
    assert found[CAMERA].median is None
    assert found[CAMERA].fair


def test_kinds_that_an_index_names_are_told_in_a_table_of_their_own() -> None:
    clips = [moved(0.5, reward=number) for number in range(8)]
    assert named_kinds(clips) == []
    faces = [replace(clip, named="faces") for clip in clips[:3]]
    (found,) = named_kinds([*faces, *clips[3:]])
    assert (found.kind, found.num, found.median, found.fair) == ("faces", 3, 1, False)
    assert found.percentile == pytest.approx(18.75)
    assert len(by_motion.tables([*faces, *clips[3:]])) == len(by_motion.tables(clips)) + 1


def test_the_curve_has_the_quartiles_of_each_band_and_group() -> None:
    clips = [moved(0.3, reward=reward) for reward in (1, 2, 3)] + [moved(2.0, reward=5, group="boiling")]
    bands = {(row.group, row.low): row for row in curve(clips)}
    middle = bands["real", 0.2]
    assert (middle.num, middle.lower, middle.median, middle.upper) == (3, 1.5, 2, 2.5)
    assert bands["boiling", 1.0].median == 5
    assert bands["boiling", 1.0].high is None
    assert bands["real", 1.0].num == 0
    assert bands["real", 1.0].median is None
    assert sum(row.num for row in bands.values()) == 4


def test_clips_without_a_reward_or_dynamics_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"set": "real", "combined": 1.0, "total_motion": 0.5, "object_motion": 0.4},
        {"set": "real", "combined": None, "total_motion": None, "object_motion": None},
        {"set": "generated", "combined": 2.0, "total_motion": 0.1, "object_motion": 0.1},
    ]
    clips = moved_of(rows, "set")
    assert [(clip.group, clip.reward) for clip in clips] == [("real", 1.0), ("generated", 2.0)]
    plots.reward_by_motion(tmp_path / "by_motion.png", curve(clips))
    assert (tmp_path / "by_motion.png").stat().st_size > 1000
    assert len(by_motion.tables(clips)) == 2
