"""Tests TAP-Vid's metrics by hand, the trackers, and the command on a real scene."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.tracker import (
    classical_tracker,
    cotracker3,
    main,
    network_tracker,
    summary,
    track_scores,
)
from experiments.recipe.gl import RenderingUnavailable, import_mujoco
from protos.types import Clip
from reward_server.errors import NotReady
from reward_server.models.published import COTRACKER3
from reward_server.models.store import store
from reward_server.motion import random_queries
from tests.frozen import random_cotracker
from tests.media import texture


def still(num_frames: int, num_points: int) -> np.ndarray:
    return np.full((num_frames, num_points, 2), 100.0)


def test_metrics_by_hand() -> None:
    """Two frames count. Three points are off by 0.5, 3 and 20 px, a fourth is occluded. All but the second are
    predicted visible.

    The first point is within every threshold, the second from 4 px up, the third never.
    """
    truth = still(3, 4)
    tracks = truth.copy()
    tracks[1:, 0, 0] += 0.5
    tracks[1:, 1, 1] -= 3.0
    tracks[1:, 2, 0] += 20.0
    visible = np.ones((3, 4), bool)
    visible[1:, 3] = False
    predicted = np.ones((3, 4), bool)
    predicted[1:, 1] = False
    scores = track_scores(truth, visible, tracks, predicted)
    assert scores.delta == pytest.approx((1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3))
    assert scores.delta_avg == pytest.approx((2 * 1 / 3 + 3 * 2 / 3) / 5)
    assert scores.occlusion_accuracy == pytest.approx(2 / 4)  # wrong for the second and the fourth
    # Each frame has one true positive. The third and the fourth are false positives, the second a false negative.
    assert scores.jaccard == pytest.approx((1 / (3 + 2),) * 5)
    assert scores.average_jaccard == pytest.approx(0.2)


def test_perfect_tracks_score_one_without_the_query_frame() -> None:
    truth, visible = still(5, 3), np.ones((5, 3), bool)
    tracks, predicted = truth.copy(), visible.copy()
    tracks[0] += 50
    predicted[0] = False
    scores = track_scores(truth, visible, tracks, predicted)
    assert (scores.average_jaccard, scores.delta_avg, scores.occlusion_accuracy) == (1.0, 1.0, 1.0)


def test_a_threshold_excludes_its_own_distance() -> None:
    truth, visible = still(2, 1), np.ones((2, 1), bool)
    assert track_scores(truth, visible, truth + np.array([4.0, 0.0]), visible).delta == (0, 0, 0, 1, 1)


def test_the_position_of_an_occluded_point_does_not_matter() -> None:
    truth, visible = still(3, 2), np.ones((3, 2), bool)
    visible[1:, 1] = False
    truth[1:, 1] = np.nan  # behind the camera
    tracks = still(3, 2)
    assert track_scores(truth, visible, tracks, visible).average_jaccard == 1.0
    assert track_scores(truth, visible, tracks, np.ones((3, 2), bool)).average_jaccard == pytest.approx(0.5)


def test_nothing_visible_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        track_scores(still(2, 1), np.zeros((2, 1), bool), still(2, 1), np.ones((2, 1), bool))


def test_a_summary_is_the_mean_over_scenes_and_an_interval() -> None:
    truth, visible = still(2, 1), np.ones((2, 1), bool)
    good, bad = (track_scores(truth, visible, truth + np.array([shift, 0.0]), visible) for shift in (0.0, 1.5))
    figures = summary([good, bad])
    assert figures["delta"] == pytest.approx([0.5, 1, 1, 1, 1])
    assert figures["delta_avg"] == pytest.approx(0.9)
    low, high = figures["delta_avg_ci95"]
    assert 0.8 <= low <= 0.9 <= high <= 1.0
    assert summary([good])["delta_avg_ci95"] is None


def shifting(num_frames: int = 6, step: int = 2) -> tuple[Clip, np.ndarray, np.ndarray]:
    """A texture that moves right by `step` px per frame, points on it, and their exact tracks."""
    wide = texture(1, 128, 192, seed=3)[0]
    frames = np.stack([wide[:, 40 - step * t : 168 - step * t] for t in range(num_frames)])
    points = random_queries(0, 40, 96, 80) + np.array([8, 16])
    truth = points[None] + np.array([step, 0])[None, None] * np.arange(num_frames)[:, None, None]
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=12.0), points, truth.astype(float)


def test_the_classical_tracker_follows_a_moving_texture() -> None:
    clip, points, truth = shifting()
    scores = track_scores(truth, np.ones(truth.shape[:2], bool), *classical_tracker(clip, points))
    assert scores.delta_avg > 0.9
    assert scores.average_jaccard > 0.85


def test_a_network_tracks_in_clip_pixels_and_keeps_the_query() -> None:
    clip, points, _ = shifting(num_frames=3)
    network = random_cotracker(height_px=64, width_px=96).eval()
    with torch.inference_mode():
        for parameter in network.updateformer.parameters():
            parameter.zero_()  # no update: tracks stay at their queries
    tracks, visible = network_tracker(network, "cpu")(clip, points)
    np.testing.assert_allclose(tracks, np.repeat(points[None], 3, axis=0), atol=1e-3)
    assert visible[0].all()
    assert not visible[1:].any()  # sigmoid(0) is below the threshold


def test_cotracker3_is_measured_only_as_it_was_pulled(tmp_path: Path) -> None:
    assert cotracker3(tmp_path, "cpu") is None
    store(COTRACKER3, tmp_path, random_cotracker().state_dict(), source="random", source_sha256="random")
    assert cotracker3(tmp_path, "cpu") is not None
    with (tmp_path / COTRACKER3.converted).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(NotReady, match="changed since it was pulled"):
        cotracker3(tmp_path, "cpu")


@pytest.mark.slow
def test_the_command_measures_both_trackers_on_scenes(tmp_path: Path) -> None:
    try:
        import_mujoco()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    store(COTRACKER3, tmp_path, random_cotracker().state_dict(), source="random", source_sha256="random")
    options = ["--scenes", "1", "--frames", "3", "--points", "24", "--models-dir", tmp_path]
    options += ["--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv"]
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [*map(str, options)])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["trackers"].keys() == {"classical", "cotracker3"}
    assert last["not_measured"] == []
    assert last["trackers"]["classical"]["delta_avg"] > last["trackers"]["cotracker3"]["average_jaccard"]
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row["tracker"] for row in rows] == ["classical", "cotracker3"]
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["scenes"][0]["delta_avg"] == pytest.approx(float(rows[0]["delta_avg"]))
