"""Tests the figures of an evaluation: pairing by first frame, left-out samples, and distances between motions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protos.types import DYNAMICS
from trainer.measures.comparison import motion_distances, summarise
from trainer.measures.tracks import TrackMotion


def row(clip: int, kind: str, reward: float | None = None, **measures: Any) -> dict[str, Any]:
    given = dict.fromkeys(("combined", "instantaneous", "long_term"), reward)
    rest = {"flow_px": 1.0, "dynamic": True, "speed_px_s": None, "acceleration_px_s2": None}
    rest |= dict.fromkeys(DYNAMICS, None if reward is None else 0.5)
    return {
        "clip": clip,
        "kind": kind,
        "error": "" if reward is not None else "scoring_failed",
        **given,
        **rest,
        **measures,
    }


def motion(speeds: list[float], accelerations: list[float] | None = None) -> TrackMotion:
    return TrackMotion(speeds_px_s=np.array(speeds), accelerations_px_s2=np.array(accelerations or [0.0]))


def test_means_are_over_first_frames_differences_within_them() -> None:
    """Two samples of one first frame count as one."""
    rows = [row(0, "real", 5.0), row(0, "base", 1.0), row(0, "checkpoint", 2.0), row(0, "checkpoint", 4.0)]
    rows += [row(1, "real", 7.0), row(1, "base", 5.0), row(1, "checkpoint", 5.0)]
    found = summarise(rows)
    assert found["real"]["combined"]["mean"] == 6.0
    assert found["checkpoint"]["combined"]["mean"] == 4.0
    difference = found["checkpoint_minus_base"]["combined"]
    assert (difference["mean"], difference["low"], difference["high"]) == (1.0, 0.0, 2.0)
    assert (found["num_first_frames"], found["num_without_reward"]) == (2, 0)


def test_a_missing_reward_is_left_out_and_counted() -> None:
    rows = [row(0, "real", 1.0), row(0, "base", None), row(0, "checkpoint", 3.0)]
    rows += [row(1, "real", 1.0), row(1, "base", 1.0), row(1, "checkpoint", 2.0)]
    found = summarise(rows)
    assert found["checkpoint_minus_base"]["combined"] == {"mean": 1.0, "low": None, "high": None}
    assert found["num_without_reward"] == 1
    nothing = summarise([row(0, kind) for kind in ("real", "base", "checkpoint")])
    assert nothing["real"]["combined"] == {"mean": None, "low": None, "high": None}


def test_a_faster_motion_is_as_far_away_as_it_is_faster() -> None:
    """The base moves like the real clips and the checkpoint 3 px/s faster, in every first frame."""
    rows = [row(clip, kind) for clip in (0, 1, 2) for kind in ("real", "base", "checkpoint")]
    motions = [
        motion([clip + speed + shift for speed in (0.0, 2.0, 10.0)], [4.0 + 2 * shift])
        for clip in (0, 1, 2)
        for shift in (0.0, 0.0, 3.0)
    ]
    found = motion_distances(rows, motions)
    speeds, accelerations = found["speed_px_s"], found["acceleration_px_s2"]
    assert (speeds["base"], speeds["num_first_frames"]) == (0.0, 3)
    assert speeds["checkpoint"] == pytest.approx(3.0)
    difference = speeds["checkpoint_minus_base"]
    assert (difference["mean"], difference["low"], difference["high"]) == pytest.approx((3.0, 3.0, 3.0))
    assert accelerations["checkpoint"] == pytest.approx(6.0)


def test_clips_with_many_and_with_few_tracks_count_the_same() -> None:
    rows = [row(clip, kind) for clip in (0, 1) for kind in ("real", "base", "checkpoint")]
    motions = [motion([0.0])] * 2 + [motion([4.0] * 100)] + [motion([0.0])] * 3
    assert motion_distances(rows, motions)["speed_px_s"]["checkpoint"] == pytest.approx(2.0)


def test_first_frames_without_tracks_are_left_out() -> None:
    rows = [row(clip, kind) for clip in (0, 1) for kind in ("real", "base", "checkpoint")]
    motions = [motion([1.0]), motion([]), motion([50.0]), motion([1.0]), motion([2.0]), motion([1.0])]
    found = motion_distances(rows, motions)["speed_px_s"]
    assert (found["base"], found["checkpoint"], found["num_first_frames"]) == (1.0, 0.0, 1)
    bare = motion_distances(rows[:3], motions[:3])["speed_px_s"]
    assert (bare["base"], bare["checkpoint"], bare["checkpoint_minus_base"]["mean"]) == (None, None, None)
