"""Tests `attack`: its degenerate copies, its bounded searches, its figures with a reward that noise fools, and the
whole command."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from protos.types import Clip, Logits
from reward_server.data.shots import Shot
from reward_server.errors import BadRequest, DeadlinePassed, NotReady, error_outcome
from reward_server.evaluation import attack as command
from reward_server.evaluation import looks
from reward_server.evaluation.attacked import ROWS, STRONG, Attacked, attack
from reward_server.evaluation.degenerates import DISGUISES, KINDS, PLAIN, REAL, broken, disguised
from reward_server.evaluation.floors import VALUES
from reward_server.evaluation.kept import KeptResults
from reward_server.evaluation.report import Outputs
from reward_server.evaluation.search import LOOK, SEARCHES, Budget, Find, find, load_cma, transformed
from reward_server.settings import Settings
from reward_server.stats import Floats
from tests.media import texture, video
from tests.plain_scorer import PlainScorer

NUM_FRAMES = 10
SETTINGS = Settings()
NO_SEARCH = Budget(evaluations=0)
SUITE = len(ROWS) * len(DISGUISES) + len(STRONG)  # clips that are scored without a search


def moving(seed: int = 0, height: int = 64, width: int = 96) -> Clip:
    """A faint texture that moves by one pixel, and about three gray levels, per frame."""
    frames = texture(NUM_FRAMES, height, width, seed=seed, step=1) // 4 + 96
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=12)


def change(clip: Clip) -> Logits:
    """Rewards the mean change between frames, which noise raises as well as motion does."""
    levels = float(np.abs(np.diff(clip.frames.astype(np.float32), axis=0)).mean()) / 2
    return Logits(instantaneous=levels, long_term=levels)


@pytest.fixture(autouse=True)
def rewards_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.plain_scorer.unevenness", change)


# --- degenerate copies --------------------------------------------------------------------------


def test_kinds_break_the_motion_as_they_say():
    clip = moving()
    shown = {kind: broken(clip, kind).frames for kind in ROWS}
    source = [int(np.flatnonzero((clip.frames == frame).all((1, 2, 3)))[0]) for frame in shown["frozen"]]
    assert source == [0, 1, 2, 2, 2, 2, 2, 2, 8, 9]  # six of ten frames
    assert np.array_equal(shown[REAL], clip.frames)
    assert np.array_equal(shown["static"], clip.frames[[0] * NUM_FRAMES])
    assert np.array_equal(shown["stutter"], clip.frames[[0, 0, 0, 3, 3, 3, 6, 6, 6, 9]])
    assert np.array_equal(shown["zoom"][0], clip.frames[0])
    speeds = [np.abs(np.diff(shown["damped"].astype(int), axis=0)).mean((1, 2, 3))[at] for at in (0, -1)]
    assert speeds[0] > 5 * speeds[1]
    for glide in ("zoom", "pan", "turn", "depth"):
        assert (np.diff(shown[glide].astype(int), axis=0) != 0).any((1, 2, 3)).all()


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_disguise_changes_a_held_picture_a_little_and_differently_in_each_frame(disguise):
    still = broken(moving(), "static")
    hidden = disguised(still, disguise, 3)
    assert hidden.frames.shape == still.frames.shape
    assert np.array_equal(hidden.frames, disguised(still, disguise, 3).frames)
    changed = np.abs(hidden.frames.astype(int) - still.frames)
    assert changed.mean() < 9
    if disguise == PLAIN:
        assert not changed.any()
    elif not disguise.startswith("codec"):  # which has no seed, and codes still frames as copies
        assert not np.array_equal(hidden.frames, disguised(still, disguise, 4).frames)
        assert np.diff(hidden.frames.astype(int), axis=0).any((1, 2, 3)).any()


def test_noise_has_its_sigma():
    still = broken(moving(), "static")
    for sigma in (1, 5):
        noise = disguised(still, f"noise {sigma}", 0).frames.astype(float) - still.frames
        assert noise.std() == pytest.approx(math.sqrt(sigma**2 + 1 / 12), rel=0.02)  # and the rounding


# --- the search ---------------------------------------------------------------------------------


def test_neutral_values_change_nothing_and_broken_motion_is_held():
    clip = moving()
    assert np.array_equal(transformed(clip, {p.name: p.neutral for p in LOOK}, 0).frames, clip.frames)
    held = transformed(clip, {"held": 1}, 0).frames
    assert np.array_equal(held, clip.frames[[0] * NUM_FRAMES])
    half = transformed(clip, {"held": 0.5, "slowness": 0.0}, 0).frames
    assert np.array_equal(half, clip.frames[[0, 1, 2, 3, 4, 4, 4, 4, 4, 4]])


@pytest.mark.parametrize("name", SEARCHES)
def test_every_value_within_its_bounds_gives_a_clip(name):
    clip = moving(height=32, width=48)
    for end in ("low", "high"):
        found = transformed(clip, {p.name: getattr(p, end) for p in SEARCHES[name]}, 0)
        assert (found.frames.shape, found.fps) == (clip.frames.shape, clip.fps)


def brightness(clips: list[Clip]) -> Floats:
    return np.array([clip.frames.mean() for clip in clips])


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_keeps_to_its_bounds_and_its_budget_and_is_seeded(name, monkeypatch):
    tried: list[dict[str, float]] = []
    monkeypatch.setattr(
        "reward_server.evaluation.search.transformed", lambda clip, values, seed: tried.append(values) or clip
    )

    def score(clips: list[Clip]) -> Floats:
        return np.array([values["gamma"] + values["noise"] / 10 for values in tried[-len(clips) :]])

    budget = Budget(evaluations=65, population=8)
    found = find(moving(), name, score, budget, seed=1)
    assert found.evaluations == len(tried) == 32  # four generations: half of the budget, rounded down
    bounds = {p.name: (p.low, p.high) for p in SEARCHES[name]}
    assert all(bounds[key][0] <= value <= bounds[key][1] for values in tried for key, value in values.items())
    assert all(values.keys() == bounds.keys() for values in tried)
    rewards = [values["gamma"] + values["noise"] / 10 for values in tried]
    assert found.reward == max(rewards)
    assert found.values == tried[int(np.argmax(rewards))]
    state = np.random.get_state()[1].copy()
    assert find(moving(), name, score, budget, seed=1) == found != find(moving(), name, score, budget, seed=2)
    assert np.array_equal(state, np.random.get_state()[1])


def test_a_search_finds_a_brighter_clip():
    clip = moving(height=32, width=48)
    found = find(clip, "look", brightness, Budget(evaluations=64, population=8), seed=0)
    assert found.reward > clip.frames.mean()


def test_a_candidate_without_a_reward_is_counted_and_never_the_best():
    def score(clips: list[Clip]) -> Floats:
        return np.where(np.arange(len(clips)) % 2, math.nan, brightness(clips))

    clip = moving(height=32, width=48)
    found = find(clip, "look", score, Budget(evaluations=16, population=8), seed=0)
    assert (found.missing, math.isfinite(found.reward)) == (4, True)
    lost = find(clip, "look", lambda clips: np.full(len(clips), math.nan), Budget(evaluations=16, population=8), seed=0)
    assert (lost.reward, lost.missing) == (None, 8)


def test_a_budget_below_one_generation_of_each_search_is_refused():
    with pytest.raises(BadRequest, match="give 24 or more, or 0"):
        Budget(evaluations=23, population=12)
    assert (Budget(evaluations=24).generations, NO_SEARCH.generations) == (1, 0)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(NotReady, match="pip install cma"):
        load_cma()


# --- one clip -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two moving clips, one in which nothing moves, and a text file named like a video."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(2):
        write(folder / f"moving{seed}.mkv", moving(seed))
    write(folder / "still.mkv", broken(moving(), "static"))
    (folder / "broken.mkv").write_text("no video")
    return folder


def write(path: Path, clip: Clip) -> None:
    frames = np.ascontiguousarray(clip.frames.transpose(0, 2, 3, 1))
    path.write_bytes(video(frames, container="matroska", codec="ffv1", pix_fmt="bgr0", fps=12))


def attacked(
    path: Path, plain: PlainScorer, finished: KeptResults | None = None, budget: Budget = NO_SEARCH
) -> Attacked:
    return attack(Shot(path=path), plain.scorer, SETTINGS, finished or KeptResults(None), budget=budget)


def test_the_suite_and_both_searches_are_scored_as_one_group(folder):
    plain, steps = PlainScorer(), []
    budget = Budget(evaluations=8, population=4)
    shot = Shot(path=folder / "moving0.mkv")
    result = attack(shot, plain.scorer, SETTINGS, KeptResults(None), budget=budget, step=lambda: steps.append(1))
    assert len(plain.seen) == sum(result.outcomes.values()) == SUITE + 8
    assert len({submission.context for submission in plain.seen}) == 1
    assert len(steps) == command.STEPS_BESIDE_SEARCH + 2
    assert [one.search for one in result.finds] == list(SEARCHES)
    assert result.finds[0].reward >= result.real  # the search begins at the clip itself


def test_a_second_run_scores_nothing_again(folder, tmp_path):
    plain, path, kept = PlainScorer(), folder / "moving0.mkv", tmp_path / command.FINISHED
    first = attacked(path, plain, KeptResults(kept))
    scored = len(plain.seen)
    again = attacked(path, plain, KeptResults(kept))
    assert len(plain.seen) == scored
    assert again.as_json() == first.as_json()
    with kept.open("a") as file:
        file.write('{"key": "torn')  # a run that was killed while it wrote
    assert attacked(path, plain, KeptResults(kept)).as_json() == first.as_json()
    assert len(kept.read_text().splitlines()) == 1
    attacked(path, plain, KeptResults(kept), Budget(evaluations=8, population=4))  # another budget
    assert len(plain.seen) > scored
    assert len(kept.read_text().splitlines()) == 2
    with kept.open("a") as file:
        file.write("not a result\n")
    with pytest.raises(BadRequest, match=r"clips.jsonl, line 3 is no result of an earlier run"):
        KeptResults(kept)


def test_a_clip_with_copies_that_failed_is_attacked_again(folder, tmp_path, monkeypatch):
    plain, kept = PlainScorer(), tmp_path / command.FINISHED
    late = DeadlinePassed("too slow")
    with monkeypatch.context() as busy:
        busy.setattr(PlainScorer, "_outcome", lambda self, sent: error_outcome("", late, sent.context))
        lost = attacked(folder / "moving0.mkv", plain, KeptResults(kept))
    assert math.isnan(lost.real) and lost.outcomes == {"deadline_passed": SUITE}
    again = attacked(folder / "moving0.mkv", plain, KeptResults(kept))
    assert math.isfinite(again.real) and len(kept.read_text().splitlines()) == 1


def test_the_real_clip_is_not_compared_with_itself(folder):
    rows = command.resistance([attacked(folder / "moving0.mkv", PlainScorer())])
    (own,) = {row.plain.pairs for row in rows if (row.kind, row.disguise) == (REAL, PLAIN)}
    assert own == 0


def test_a_gain_is_measured_in_distances_to_the_strong_faults():
    values = np.full((len(ROWS), len(DISGUISES), len(VALUES)), 1.0)
    finds = tuple(Find(search=name, reward=reward, values={}, evaluations=1, missing=0) for name, reward in [
        ("look", 2.0), ("degenerate", None),
    ])  # fmt: skip
    result = Attacked(clip="a", motion=1.0, values=values, strong=-3.0, finds=finds)
    assert result.gain("look") == 0.25
    assert math.isnan(result.gain("degenerate"))
    assert math.isnan(Attacked(clip="a", motion=1.0, values=values, strong=1.0, finds=finds).gain("look"))
    look, degenerate, best = command.search_gains([result, Attacked(clip="b", error="no video")])
    assert (look.mean, look.large.right, look.large.pairs) == (0.25, 0, 1)
    assert (degenerate.mean, degenerate.large.pairs) == (None, 0)
    assert (best.mean, best.search) == (0.25, "best")


# --- the command --------------------------------------------------------------------------------


def test_the_command_shows_what_fools_a_reward_and_counts_what_it_leaves_out(folder, tmp_path, monkeypatch):
    plain = PlainScorer()

    @contextmanager
    def opened(settings: Settings, server: str | None) -> Iterator[object]:
        yield plain.scorer

    monkeypatch.setattr(command, "open_scorer", opened)
    text, outputs = io.StringIO(), Outputs(json=tmp_path / "a.json", csv=tmp_path / "a.csv", plots=tmp_path)
    code = command.run([str(folder)], SETTINGS, budget=NO_SEARCH, outputs=outputs, console=Console(file=text, width=80))
    assert code == 1  # broken.mkv
    assert len(plain.seen) == 2 * SUITE
    shown, last = text.getvalue(), json.loads(text.getvalue().splitlines()[-1])
    assert "…" not in shown and all(name in shown for name in (*KINDS, *DISGUISES))
    assert [Path(name).name for name in last["left_out"]["still"]] == ["still.mkv"]
    assert [Path(name).name for name in last["left_out"]["undecodable"]] == ["broken.mkv"]
    assert (last["clips"], last["outcomes"]) == (4, {"ok": 2 * SUITE, "unreadable_clip": 1})
    rows = {(row["value"], row["kind"], row["disguise"]): row for row in last["figures"]}
    held = {name: rows["combined", "static", name] for name in DISGUISES}
    assert held[PLAIN]["plain"]["right"] == held["noise 0.5"]["plain"]["right"] == 2
    assert held["noise 5"]["plain"]["right"] == held["noise 10"]["plain"]["right"] == 0
    assert held["noise 5"]["plain"]["pairs"] == held["noise 5"]["same"]["pairs"] == 2
    assert held["noise 5"]["same"]["right"] == 2  # the real clip with the same noise changes more
    assert rows["warp_likeness", "static", PLAIN]["plain"]["right"] == 0  # a held picture warps best
    assert rows["combined", REAL, "noise 5"]["same"]["pairs"] == 0
    assert json.loads(outputs.json.read_text())["figures"] == last["figures"]
    with outputs.csv.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(ROWS) * len(DISGUISES) + 2
    for name in ("suite.png", "gains.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 400


def test_a_path_without_clips_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="check the path"):
        command.run([str(tmp_path / "none")], SETTINGS, budget=NO_SEARCH, outputs=Outputs())


@pytest.mark.parametrize("kind", ["pan", "turn", "depth"])
def test_no_mirrored_border_enters_a_glide(kind):
    rising = np.broadcast_to(np.linspace(0, 240, 160, dtype=np.float32), (6, 3, 90, 160)).round().astype(np.uint8)
    shown = broken(Clip(frames=rising.copy(), fps=8.0), kind).frames.astype(int)
    assert np.diff(shown[:, 0], axis=-1).min() >= -1  # a mirror image falls


def test_sliding_moves_what_the_relief_calls_near_farther():
    frames = looks.frames_of(moving())[:2]
    height, width = frames.shape[1:3]
    flat = np.ones((height, width), np.float32)
    panned = looks.camera(frames, pan_x=[0, 4 / width])
    inner = np.s_[:, 8:-8, 8:-8]
    assert np.abs(looks.slid(frames, [0, 4 / width], flat) - panned)[inner].max() < 1
    near_below = np.where(np.arange(height) < height // 2, 0, 1).astype(np.float32)[:, None] * flat
    slid = looks.slid(frames, [0, 4 / width], near_below)[inner]
    assert np.array_equal(slid[:, : height // 2 - 8], frames[inner][:, : height // 2 - 8])
    assert np.abs(slid[1, height // 2 - 8 :] - panned[inner][1, height // 2 - 8 :]).max() < 1


def test_a_relief_is_nearer_where_the_picture_is_bright_or_low():
    picture = np.zeros((40, 60, 3), np.float32)
    picture[:, 30:] = 255
    depth = looks.relief(picture)
    assert (depth.min(), depth.max()) == (0.5, 1.5)
    assert (depth[:, 50] > depth[:, 10]).all()
    assert (np.diff(depth, axis=0) > 0).all()
    assert np.isfinite(looks.relief(np.zeros((40, 60, 3), np.float32))).all()


def test_a_shrunk_and_a_coded_clip_keep_their_frames():
    frames = looks.frames_of(moving())
    assert looks.rescaled(frames, [0.6] * NUM_FRAMES).shape == looks.coded(frames, 12.0, 28).shape == frames.shape
