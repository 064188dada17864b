"""Tests the sanity ladder: its rank statistics exactly, its figures on rewards set by hand, and the whole command."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from protos.codec import tensor_to_clip
from protos.types import Context, Outcome
from reward_server.data.manifest import Entry, write_manifest
from reward_server.data.shots import Shot, find_files, find_shots
from reward_server.decoding.decode import decode
from reward_server.errors import BadRequest
from reward_server.evaluation import plots, report, sanity
from reward_server.evaluation.ladder import (
    CSV_COLUMNS,
    REAL,
    RETIMED,
    Rung,
    ladder_figures,
    ladder_table,
    levels_of,
    num_still,
    reward_array,
    rung_row,
)
from reward_server.evaluation.report import Outputs
from reward_server.evaluation.sanity import climb
from reward_server.evaluation.scoring import count_outcomes, derived_seed
from reward_server.faults import HELD_OUT, LEAST_DIFFERENCE, NAMES, STRENGTHS, difference, with_fault
from reward_server.settings import Settings
from reward_server.stats import Share, falling, ordered
from tests.media import texture, video
from tests.plain_scorer import SAMPLING, PlainScorer
from tests.running import open_doors, working

RUNGS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEVELS = levels_of()
SETTINGS = Settings()


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([5, 4, 3, 2, 1], 1.0),
        ([1, 2, 3, 4, 5], -1.0),
        ([5, 3, 4, 2, 1], 0.9),  # one swap of neighbours: 1 - 6 * 2 / (5 * 24)
        ([9, 9, 9, 9, 9], 0.0),  # no change is no order
        ([2, 2, 1, 1, 1], math.sqrt(3) / 2),  # ranks of the fall 1.5 1.5 4 4 4: 7.5 / sqrt(10 * 7.5)
    ],
)
def test_falling_is_spearman_with_ties_sharing_ranks(rewards, expected):
    assert falling(RUNGS, rewards) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(-4, 4), min_size=3, max_size=9))
@settings(deadline=None)
def test_falling_is_the_correlation_of_mean_ranks(rewards):
    def ranks(values):
        return [sum(o < v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]

    strengths = [float(i) for i in range(len(rewards))]
    x, y = ranks(strengths), ranks([-value for value in rewards])
    mean = (len(x) + 1) / 2
    above = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    below = math.sqrt(sum((a - mean) ** 2 for a in x) * sum((b - mean) ** 2 for b in y))
    assert falling(strengths, rewards) == pytest.approx(above / below if below else 0.0, abs=1e-12)


def test_falling_needs_three_rewards_and_one_per_strength():
    assert falling([0, 1], [1, 0]) is None
    with pytest.raises(ValueError, match="give one each"):
        falling([0, 1, 2], [1, 0])


def test_a_tie_counts_as_wrong_and_a_missing_reward_not_at_all():
    nan = math.nan
    assert ordered([2, 2, 2, nan], [1, 2, 3, 0]) == Share(right=1, pairs=3)
    assert ordered([[1], [nan]], [[0, nan], [0, 0]]) == Share(right=1, pairs=1)
    assert Share(right=0, pairs=0).fraction is None
    assert Share(right=3, pairs=4).fraction == 0.75


# --- the ladder ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a long moving clip, a short one, and a text file named like a video."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "long.mp4").write_bytes(video(texture(72, 96, 144), fps=12))
    (folder / "short.mp4").write_bytes(video(texture(16, 96, 144, seed=1), fps=12))
    (folder / "broken.mp4").write_text("no video")
    return folder


def shots_of(folder: Path, *names: str) -> list[Shot]:
    return [Shot(path=folder / f"{name}.mp4") for name in names]


@pytest.fixture(scope="module")
def rungs(clips: Path) -> list[Rung]:
    shots = shots_of(clips, "long", "short", "broken")
    return [rung for ladder in climb(shots, PlainScorer().scorer, SETTINGS) for rung in ladder]


def test_a_ladder_is_one_group_with_one_query_seed(clips):
    plain = PlainScorer()
    list(climb(shots_of(clips, "long", "short"), plain.scorer, SETTINGS, seed=5))
    contexts = [submission.context for submission in plain.seen]
    ladders = [(context, len(list(group))) for context, group in groupby(contexts)]
    assert len(ladders) == len(set(contexts)) == 2
    assert all(1 < num_rungs <= len(LEVELS) for _, num_rungs in ladders)
    assert ladders[0][0].query_seed == derived_seed(5, "long.mp4", 0.0)


def test_a_ladder_can_be_climbed_for_some_faults_alone(clips):
    (ladder,) = climb(shots_of(clips, "long"), PlainScorer().scorer, SETTINGS, faults=["wobbled"])
    assert [(rung.fault, rung.strength) for rung in ladder] == [(REAL, 0.0), *(("wobbled", s) for s in STRENGTHS)]
    rows = {row.name: row for row in ladder_figures(ladder)}
    assert [share.pairs for share in rows["wobbled"].by_strength] == [1] * len(STRENGTHS)
    assert rows["static"].total.pairs == 0


def test_what_is_submitted_passes_the_decoder_unchanged(clips):
    """The real clip is the first window that the server takes from the file. A rung is that window with a fault."""
    plain, (shot,) = PlainScorer(), shots_of(clips, "short")
    (ladder,) = climb([shot], plain.scorer, SETTINGS)
    levels = [(rung.fault, rung.strength) for rung in ladder]
    window = decode(shot.submission(), SAMPLING, plain.scorer.limits, 30.0).windows[0].clip
    own = plain.seen[0].context.query_seed
    for (name, strength), submission in zip(levels, plain.seen, strict=True):
        if name != "fps_relabelled":
            expected = window if name == REAL else with_fault(window, name, strength, own)
            (scored,) = decode(submission, SAMPLING, plain.scorer.limits, 30.0).windows
            assert np.array_equal(scored.clip.frames, expected.frames), name
            assert scored.clip.fps == pytest.approx(expected.fps)
    for name, strength in set(LEVELS) - set(levels):
        assert difference(window, with_fault(window, name, strength, own)) < LEAST_DIFFERENCE


def test_a_clip_that_hardly_moves_gets_no_fault_that_only_holds_it(tmp_path):
    (tmp_path / "still.mp4").write_bytes(video(np.repeat(texture(1, 96, 144), 16, axis=0), fps=12))
    faults = ("static", "slowed", "jittered")
    (ladder,) = climb(shots_of(tmp_path, "still"), PlainScorer().scorer, SETTINGS, faults=faults)
    assert {rung.fault for rung in ladder} == {REAL, "jittered"}
    assert num_still(ladder) == 1
    assert num_still([*ladder, *(replace(rung, start_s=3.0) for rung in ladder)]) == 1


def test_each_rung_is_filmed_again_on_its_own(clips):
    plain, shots = PlainScorer(), shots_of(clips, "short")
    for captured in (False, True, True):
        list(climb(shots, plain.scorer, SETTINGS, faults=["static"], captured=captured))
    frames = [tensor_to_clip(submission.payload).frames for submission in plain.seen]
    plainly, once, again = (frames[start : start + 5] for start in (0, 5, 10))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(once, plainly, strict=True))
    assert len({clip[0].tobytes() for clip in plainly}) == 1 and len({clip[0].tobytes() for clip in once}) == 5


def test_a_faster_relabelled_clip_uses_a_longer_stretch(clips):
    """The decoder thins 48 fps to 12, so that sixteen frames would become four, too few for a reward."""
    scorer = PlainScorer().scorer
    (stretch,) = sanity._stretches(*shots_of(clips, "long"), scorer, SETTINGS, 1)
    for seed in range(4):  # both directions
        for strength in STRENGTHS:
            clip = sanity.rung_clip(stretch.clip, scorer, "fps_relabelled", strength, seed)
            scored = decode(sanity.tensor_submission(clip, Context()), SAMPLING, scorer.limits, 30.0).windows[0].clip
            assert len(scored.frames) == SAMPLING.window_frames
            assert np.array_equal(scored.frames[0], stretch.clip.frames[0])


def test_windows_are_stretches_evenly_placed_over_the_file(clips):
    ladders = list(climb(shots_of(clips, "long"), PlainScorer().scorer, SETTINGS, windows=2))
    assert [ladder[0].start_s for ladder in ladders] == pytest.approx([0.0, 8 / 12])  # 72 frames, stretches of 64


def test_a_missing_reward_is_a_row_with_its_error_and_no_pair(clips, rungs):
    (broken,) = [rung for rung in rungs if rung.clip.endswith("broken.mp4")]
    assert broken.fault == REAL and broken.outcome.error.code == "unreadable_clip"
    short = [rung for rung in rungs if rung.clip.endswith("short.mp4")]
    missing = [rung for rung in short if rung.outcome.reward is None]
    assert {(rung.fault, rung.outcome.error.code) for rung in missing} <= {("fps_relabelled", "clip_too_short")}
    everything = next(row for row in ladder_figures(rungs) if row.name == "all")
    assert everything.total.pairs == sum(rung.fault != REAL for rung in rungs) - len(missing)


def test_the_plain_scorer_orders_what_it_must(rungs):
    """The plain scorer rewards even motion, so stutter, shuffles and jitter score lower at every strength."""
    rows = {row.name: row for row in ladder_figures(rungs) if row.reward_name == "combined"}
    for name in ("stutter", "shuffled", "jittered"):
        assert rows[name].total.right == rows[name].total.pairs == 8
    assert rows["jittered"].falling > 0.85  # 1, but for ties at the lower bound


# --- its figures --------------------------------------------------------------------------------


def by_hand(rewards: dict[str, dict[str, list[float | None]]], outcome: Outcome) -> list[Rung]:
    """Rungs of ladders, given as clip -> fault -> rewards at RUNGS. Other faults have no rung."""
    return [
        Rung(clip=clip, start_s=0.0, fault=name, strength=strength, outcome=with_reward(outcome, value))
        for clip, by_name in rewards.items()
        for name, values in by_name.items()
        for strength, value in zip((0.0,) if name == REAL else STRENGTHS, values, strict=True)
    ]


def with_reward(outcome: Outcome, value: float | None) -> Outcome:
    if value is None:
        return sanity.failed_outcome(OSError("gone"))
    reward = replace(outcome.reward, combined=value, instantaneous=-value, long_term=0.0)
    return replace(outcome, reward=reward)


def test_figures_of_rewards_set_by_hand(rungs):
    set_by_hand = {
        "a": {REAL: [5.0], "static": [4.0, 3.0, 2.0, 1.0], "frozen": [6.0, 5.0, 4.0, 3.0]},
        "b": {REAL: [2.0], "static": [3.0, None, 1.0, 0.0]},
        "c": {REAL: [None], "static": [0.0, 0.0, 0.0, 0.0]},
    }
    figures = ladder_figures(by_hand(set_by_hand, rungs[0].outcome))
    rows = {(row.reward_name, row.name): row for row in figures}
    static = rows["combined", "static"]
    assert [(share.right, share.pairs) for share in static.by_strength] == [(1, 2), (1, 1), (2, 2), (2, 2)]
    assert (static.total.right, static.total.pairs) == (6, 7)
    assert static.falling == pytest.approx((1.0 + 0.8) / 2)  # b: 2 3 1 0, one swap of four
    frozen = rows["combined", "frozen"]
    assert (frozen.total.right, frozen.total.pairs, frozen.interval) == (2, 4, None)  # one file: no interval
    assert frozen.falling == pytest.approx(8 / math.sqrt(10 * 9.5))  # ranks of the fall 2.5 1 2.5 4 5
    assert (rows["combined", "all"].total.right, rows["combined", "all"].total.pairs) == (8, 11)
    assert rows["combined", "all"].falling == pytest.approx((1.0 + 0.8 + frozen.falling) / 3)
    assert rows["instantaneous", "static"].total.right == 1  # the mirror image, but for b's weakest rung
    assert rows["long_term", "static"].total.right == 0  # ties
    assert rows["long_term", "static"].falling == 0.0
    assert rows["combined", "shuffled"].total.pairs == 0
    assert rows["combined", "shuffled"].falling is None


def test_retimed_faults_are_left_out_of_the_last_row(rungs):
    set_by_hand = {"a": {REAL: [1.0], **{name: [2.0 if name in RETIMED else 0.0] * 4 for name in NAMES}}}
    figures = ladder_figures(by_hand(set_by_hand, rungs[0].outcome))
    everything, kept = (row.total for row in figures[len(NAMES) : len(NAMES) + 2])
    right = 4 * (len(NAMES) - len(RETIMED))
    assert (everything.right, everything.pairs) == (right, 4 * len(NAMES))
    assert (kept.right, kept.pairs) == (right - 4 * len(HELD_OUT), right - 4 * len(HELD_OUT))


# --- the command --------------------------------------------------------------------------------


def test_a_manifest_gives_held_out_shots_cut_from_their_files(clips, tmp_path):
    frames = texture(40, 96, 144, seed=2)
    (tmp_path / "cut.mkv").write_bytes(video(frames, container="matroska", codec="ffv1", pix_fmt="bgr0", fps=12))
    shared = {"source": "cut", "path": tmp_path / "cut.mkv", "kind": "camera", "licence": "none"}
    entries = [
        Entry(first=0, last=20, split="train", **shared),
        Entry(first=20, last=36, split="held_out", **shared),
    ]
    write_manifest(tmp_path / "manifest.jsonl", entries)
    (shot,) = find_shots([str(tmp_path), str(tmp_path)])
    assert shot.short_name == "cut.mkv[20:36]"
    cut = tensor_to_clip(shot.submission().payload)
    assert np.array_equal(cut.frames.transpose(0, 2, 3, 1), frames[20:36])
    assert cut.fps == 12
    write_manifest(tmp_path / "manifest.jsonl", entries[:1])
    with pytest.raises(BadRequest, match="has no held-out shots"):
        find_shots([str(tmp_path)])


def test_files_are_found_in_folders_once_and_in_order(clips):
    names = [path.name for path in find_files([str(clips), str(clips / "short.mp4")])]
    assert names == ["broken.mp4", "long.mp4", "short.mp4"]


def printed(text: io.StringIO) -> dict[str, Any]:
    return json.loads(text.getvalue().splitlines()[-1])


async def test_the_command_over_a_server_gives_the_same_results(clips, make_settings, tmp_path):
    settings = make_settings()
    paths = [str(clips / name) for name in ("short.mp4", "broken.mp4")]
    ladders = climb(find_shots(paths), PlainScorer().scorer, settings)
    expected = [rung for ladder in ladders for rung in ladder]
    async with open_doors(settings) as doors, working(doors, PlainScorer()):
        for url in doors.urls:
            text, page = io.StringIO(), tmp_path / "a.html"
            outputs = Outputs(json=tmp_path / "a.json", csv=tmp_path / "a.csv", plots=tmp_path, html=page)
            run = partial(sanity.run, captured=False, outputs=outputs, console=Console(file=text, width=80))
            assert await asyncio.to_thread(run, paths, settings, server=url) == 1  # broken.mp4 has no reward
            last = printed(text)
            assert last["figures"] == [row.as_json() for row in ladder_figures(expected)]
            assert (last["scored_by"], last["model"]["profile"], last["clips"]) == (url, "plain", 2)
            assert last["outcomes"] == count_outcomes(rung.outcome for rung in expected)
            written = json.loads(outputs.json.read_text())
            assert written["figures"] == last["figures"]
            assert written["rungs"] == [rung_row(rung) for rung in expected]
            assert f"{clips / 'short.mp4'} at 0.00 s" in page.read_text() and "broken.mp4" in page.read_text()


def test_csv_and_plots_hold_every_rung(rungs, tmp_path):
    report.write_csv(tmp_path / "rungs.csv", CSV_COLUMNS, [rung_row(rung) for rung in rungs])
    with (tmp_path / "rungs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(rungs)
    assert [row["combined"] for row in rows if row["outcome"] != "ok"] == [""] * (len(rows) - scored(rungs))
    plots.ladder(tmp_path / "ladder.png", reward_array(rungs))
    plots.shares(tmp_path / "shares.png", ladder_figures(rungs))
    for name in ("ladder.png", "shares.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


def scored(rungs: list[Rung]) -> int:
    return sum(rung.outcome.reward is not None for rung in rungs)


def test_tables_fit_eighty_columns(rungs):
    text = io.StringIO()
    Console(file=text, width=80).print(ladder_table(ladder_figures(rungs), "combined"))
    assert "…" not in text.getvalue()
    assert all(name in text.getvalue() for name in (*NAMES, "all but retimed"))
