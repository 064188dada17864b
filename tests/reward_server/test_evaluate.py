"""Tests AUC against brute force and closed forms, the coverage of its intervals, the floors, and the whole command."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from protos.types import DYNAMICS, REWARDS, Clip, Context, Media, Outcome, Submission
from reward_server.data.shots import Shot, find_shots
from reward_server.decoding.decode import Sampling, decode
from reward_server.errors import ClipTooShort, InvalidClip
from reward_server.evaluation import evaluate
from reward_server.evaluation.evaluate import judge
from reward_server.evaluation.floors import CUES, FLOORS, plain_cues, plain_statistics
from reward_server.evaluation.matched import Protocol, matched_submission
from reward_server.evaluation.report import Outputs
from reward_server.evaluation.scoring import failed_outcome
from reward_server.evaluation.sets import GENERATED, REAL, Case, separations, side_averages, side_dynamics
from reward_server.settings import Settings
from reward_server.stats import Interval, Share, auc, auc_bootstrap, auc_delong, mean_bootstrap, roc, share_bootstrap
from tests.media import texture, video
from tests.plain_scorer import MODEL, PlainScorer
from tests.running import open_doors, working

levels = st.lists(st.integers(-3, 3), min_size=1, max_size=12)


def brute_auc(real, generated):
    return sum(1.0 if r > g else 0.5 if r == g else 0.0 for r, g in product(real, generated)) / (
        len(real) * len(generated)
    )


@pytest.mark.parametrize(
    ("real", "generated", "expected"),
    [
        ([2, 3], [0, 1], 1.0),
        ([0, 1], [2, 3], 0.0),
        ([1, 1], [1], 0.5),
        ([3, 1], [2], 0.5),
        ([3, 2, 1], [2, 0], 4.5 / 6),
    ],
)
def test_auc_counts_pairs_with_ties_half(real, generated, expected):
    assert auc(real, generated) == expected


@given(levels, levels)
@settings(deadline=None)
def test_auc_is_the_pair_count_and_the_area_under_the_roc(real, generated):
    expected = brute_auc(real, generated)
    assert auc(real, generated) == pytest.approx(expected, abs=1e-12)
    assert np.trapezoid(*reversed(roc(real, generated))) == pytest.approx(expected, abs=1e-12)
    assert auc(generated, real) == pytest.approx(1 - expected, abs=1e-12)


def test_roc_of_a_known_case():
    false_rate, true_rate = roc([3, 2, 1], [2, 0])
    assert false_rate.tolist() == [0, 0, 0.5, 0.5, 1]
    assert true_rate == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [math.inf], [[1.0, 2.0]]])
def test_what_is_not_a_row_of_finite_numbers_is_refused(bad):
    with pytest.raises(ValueError, match="non-empty row of finite numbers"):
        auc(bad, [1.0])


def test_auc_of_normal_samples_is_the_closed_form():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(1.0, 1, 20_000), rng.normal(0.0, 1, 20_000)
    assert auc(real, generated) == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.006)  # Phi(1 / sqrt 2)


@pytest.mark.parametrize(("of", "options"), [(auc_bootstrap, {"resamples": 400}), (auc_delong, {})])
def test_intervals_hold_the_true_auc_about_95_times_in_100(of, options):
    rng, true = np.random.default_rng(1), 0.5 * (1 + math.erf(0.5))
    held = 0
    for _ in range(200):
        interval = of(rng.normal(1, 1, 40), rng.normal(0, 1, 50), **options)
        held += interval.low <= true <= interval.high
    assert 0.89 <= held / 200 <= 0.99


def test_delong_interval_of_a_hand_worked_case():
    # wins per real clip (1, 3/4, 1/2), per generated clip (1/2, 1): AUC 3/4, variance (1/16)/3 + (1/8)/2
    interval = auc_delong([3, 2, 1], [2, 0])
    half = 1.959963984540054 * math.sqrt((1 / 16) / 3 + (1 / 8) / 2)
    assert interval == Interval(low=pytest.approx(0.75 - half), high=1.0)


def test_bootstrap_interval_is_seeded_and_brackets_the_estimate():
    rng = np.random.default_rng(2)
    real, generated = rng.normal(0.5, 1, 30), rng.normal(0, 1, 30)
    first = auc_bootstrap(real, generated, seed=3)
    assert first == auc_bootstrap(real, generated, seed=3) != auc_bootstrap(real, generated, seed=4)
    assert first.low < auc(real, generated) < first.high
    wide, narrow = (auc_bootstrap(real, generated, level=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_of_two_clips_a_side_has_the_exact_quantiles():
    # Each side draws (a,a), (a,b), (b,b) with chances 1/4, 1/2, 1/4; at 90% the ends are the extreme values here.
    assert auc_bootstrap([0, 2], [1, 1], level=0.90, seed=0) == Interval(low=0.0, high=1.0)
    assert auc_bootstrap([0, 2], [1, 1], level=0.40, seed=0) == Interval(low=0.5, high=0.5)


def test_an_interval_needs_two_clips_a_side():
    assert auc_bootstrap([1.0], [0.0, 2.0]) is None
    assert auc_delong([1.0, 2.0], [0.0]) is None
    assert mean_bootstrap([1.0]) is None


def test_the_interval_of_a_share_counts_clips_by_their_pairs():
    shares = [Share(right=16, pairs=16)] * 11 + [Share(right=8, pairs=16)] + [Share(right=0, pairs=1)] * 12
    found = share_bootstrap(shares)
    assert found is not None
    assert found.low < (11 * 16 + 8) / (12 * 17) < found.high
    assert found == share_bootstrap([*shares, Share(right=0, pairs=0)])
    assert share_bootstrap([shares[0], Share(right=0, pairs=0)]) is None


def test_mean_interval_has_the_width_of_the_standard_error():
    values = np.random.default_rng(5).normal(2, 1, 400)
    interval = mean_bootstrap(values)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert (interval.high + interval.low) / 2 == pytest.approx(values.mean(), abs=0.01)


# --- floors and the matched protocol ------------------------------------------------------------


def clip_of(frames: np.ndarray, fps: float = 12.0) -> Clip:
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=fps)


def test_statistics_of_a_texture_moving_two_pixels_per_frame():
    found = plain_statistics(clip_of(texture(12, 96, 144, step=2)), seed=0)
    assert set(found) == set(FLOORS)
    assert found["flow_magnitude"] == pytest.approx(2 * 12 / 96, rel=0.05)  # short sides per second
    assert found["track_roughness"] < 0.1


def test_a_still_clip_has_sharpness_but_no_motion():
    frame = texture(1, 96, 144)
    found = plain_statistics(clip_of(np.repeat(frame, 10, axis=0)), seed=0)
    assert found["frame_difference"] == 0
    assert found["flow_magnitude"] < 0.005 and found["track_roughness"] < 0.01
    laplacian = cv2.Laplacian(cv2.cvtColor(frame[0], cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    assert found["sharpness"] == pytest.approx(np.abs(laplacian).mean(), rel=1e-6)


def test_the_cues_know_a_held_picture_from_things_that_move_past_each_other():
    frames = texture(8, 96, 144, step=2)
    passing = np.concatenate([frames[:, :48], frames[::-1, 48:]], axis=1)  # the halves move in opposite directions
    held, moved, passed = (plain_cues(clip_of(some)) for some in (frames[[0] * 8], frames, passing))
    assert held["warp_likeness"] == 0 and held["peak_divergence"] < 0.01
    assert -3 < moved["warp_likeness"] < 0
    assert held["peak_divergence"] < passed["peak_divergence"] <= 1 and passed.keys() == set(CUES)
    assert plain_cues(clip_of(frames[:2])).keys() == {"warp_likeness"}


def test_frame_difference_is_in_grey_levels():
    flat = np.zeros((9, 96, 144, 3), np.uint8)
    flat += (3 * np.arange(9, dtype=np.uint8))[:, None, None, None]
    assert plain_statistics(clip_of(flat), seed=0)["frame_difference"] == 3


def under_protocol(frames: np.ndarray, fps: float) -> Clip:
    source = Submission(payload=video(frames, fps=fps), media=Media.CONTAINER)
    matched = matched_submission(source, Protocol(), PlainScorer().scorer, Settings(), Context())
    assert abs(matched.rate / 8 - 1) < 0.15
    decoded = decode(matched.submission, Sampling(max_windows=1), MODEL.limits, 30.0)
    assert decoded.source.codec == "h264"
    return decoded.windows[0].clip


def test_the_protocol_makes_all_clips_the_same_size_and_rate():
    wide, square = under_protocol(texture(72, 96, 240), 30), under_protocol(texture(34, 128, 128), 15)
    for clip in (wide, square):
        assert (clip.frames.shape, clip.fps) == ((16, 3, 192, 192), pytest.approx(8.0))


def test_the_protocol_takes_every_nth_frame_and_the_centre():
    frames = texture(64, 96, 192, step=1)  # at 32 fps every fourth frame: 4 px, twice as large after resizing
    clip = under_protocol(frames, 32)
    expected = {at: cv2.resize(frames[at, :, 48:144], (192, 192), interpolation=cv2.INTER_CUBIC) for at in range(2, 7)}
    shown = clip.frames[1].transpose(1, 2, 0).astype(int)
    error = {at: np.abs(shown - image).mean() for at, image in expected.items()}
    assert min(error, key=error.__getitem__) == 4
    assert error[4] < 10  # grey levels: it is softer, and encoded


def test_the_protocol_makes_sharpness_alike():
    noise = np.random.default_rng(0).integers(0, 256, (1, 240, 240, 3), dtype=np.uint8)
    sharp = np.repeat(noise, 32, axis=0)
    soft = np.repeat(
        cv2.resize(cv2.resize(noise[0], (144, 144), interpolation=cv2.INTER_AREA), (240, 240))[None], 32, 0
    )

    def ratio(of_sharp: Clip, of_soft: Clip) -> float:
        return plain_statistics(of_sharp, 0)["sharpness"] / plain_statistics(of_soft, 0)["sharpness"]

    before = ratio(clip_of(sharp[:16]), clip_of(soft[:16]))
    after = ratio(under_protocol(sharp, 16), under_protocol(soft, 16))
    assert before > 7 and after < 2.5


@pytest.mark.parametrize(
    ("fps", "frames", "error"), [(10, 64, InvalidClip), (12, 64, InvalidClip), (16, 20, ClipTooShort)]
)
def test_clips_that_do_not_fit_the_protocol_are_refused(fps, frames, error):
    """10 and 12 fps cannot be thinned to 8 fps within 15 %, and 1.25 seconds are too short for two seconds."""
    with pytest.raises(error):
        under_protocol(texture(frames, 96, 96), fps)


# --- the figures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that move evenly, clips that jump about, and one broken file."""
    folder = tmp_path_factory.mktemp("sets")
    for seed in range(3):
        frames = texture(16, 96, 144, seed=seed)
        (folder / f"even{seed}.mp4").write_bytes(video(frames, fps=12))
        order = np.random.default_rng(seed).permutation(16)
        (folder / f"jumpy{seed}.mp4").write_bytes(video(frames[order], fps=12))
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def cases(folder: Path) -> list[Case]:
    shots = [
        (REAL if path.stem.startswith("even") else GENERATED, Shot(path=path)) for path in sorted(folder.iterdir())
    ]
    return list(judge(shots, PlainScorer().scorer, Settings()))


def test_every_clip_is_a_case_and_a_broken_one_has_an_error(cases):
    names = [Path(case.clip).stem for case in cases]
    assert names == ["broken", "even0", "even1", "even2", "jumpy0", "jumpy1", "jumpy2"]
    assert cases[0].outcome.error.code == "unreadable_clip" and not cases[0].statistics
    assert all(case.outcome.reward and set(case.statistics) == set(FLOORS) for case in cases[1:])


def test_all_clips_are_scored_with_the_same_query_seed(folder):
    plain = PlainScorer()
    list(judge([(REAL, Shot(path=folder / "even0.mp4"))] * 2, plain.scorer, Settings(), seed=9))
    assert [submission.context.query_seed for submission in plain.seen] == [9, 9]


def test_the_plain_scorer_separates_the_sets(cases):
    found = {row.name: row for row in separations(cases)}
    assert list(found) == [*REWARDS, *FLOORS, *DYNAMICS]
    assert found["combined"].auc == 1.0 and found["combined"].bootstrap.low == 1.0
    assert (found["combined"].num_real, found["combined"].num_generated) == (3, 3)  # the broken clip is in neither
    assert found["frame_difference"].auc == 0.0 and found["frame_difference"].either_way == 1.0


def case(side: str, outcome: Outcome, value: float, *, clipped: bool = False) -> Case:
    reward = replace(outcome.reward, combined=value, instantaneous=value, long_term=value, clipped=clipped)
    return Case(side=side, clip="", outcome=replace(outcome, reward=reward))


def test_figures_of_rewards_set_by_hand(cases):
    good = cases[1].outcome
    set_by_hand = [case(REAL, good, value, clipped=value > 2) for value in (3.0, 2.0, 1.0)]
    set_by_hand += [case(GENERATED, good, value) for value in (2.0, 0.0)]
    set_by_hand += [Case(side=GENERATED, clip="", outcome=failed_outcome(OSError("gone")))]
    combined = separations(set_by_hand)[0]
    assert (combined.auc, combined.num_real, combined.num_generated) == (4.5 / 6, 3, 2)
    real, generated = (row for row in side_averages(set_by_hand) if row.reward_name == "combined")
    assert (real.num, real.mean, real.std, real.median, real.saturated) == (3, 2.0, 1.0, 2.0, 1 / 3)
    assert (generated.num, generated.mean, generated.std, generated.saturated) == (2, 1.0, math.sqrt(2), 0.0)


def moving(side: str, outcome: Outcome, motion: float) -> Case:
    dynamics = replace(outcome.reward.dynamics, total_motion=motion, dynamic_degree=float(motion > 2))
    return Case(side=side, clip="", outcome=replace(outcome, reward=replace(outcome.reward, dynamics=dynamics)))


def test_figures_of_dynamics_set_by_hand(cases):
    good = cases[1].outcome
    of_old_server = replace(good, reward=replace(good.reward, dynamics=None))
    set_by_hand = [moving(REAL, good, motion) for motion in (6.0, 2.0, 1.0)] + [moving(GENERATED, good, 1.5)]
    set_by_hand += [Case(side=GENERATED, clip="", outcome=outcome) for outcome in (of_old_server, cases[0].outcome)]
    by_motion = next(row for row in separations(set_by_hand) if row.name == "total_motion")
    assert (by_motion.auc, by_motion.num_real, by_motion.num_generated) == (2 / 3, 3, 1)
    found = {(row.side, row.name): row for row in side_dynamics(set_by_hand)}
    real, generated = found[REAL, "total_motion"], found[GENERATED, "total_motion"]
    assert (real.num, real.mean, real.median) == (3, 3.0, 2.0)
    assert (generated.num, generated.mean, generated.median) == (1, 1.5, 1.5)
    assert found[REAL, "dynamic_degree"].mean == 1 / 3
    rows = [evaluate.case_row(case) for case in set_by_hand]
    assert [row["total_motion"] for row in rows] == [6.0, 2.0, 1.0, 1.5, None, None]


def test_an_empty_set_has_no_figures(cases):
    only_real = [case for case in cases if case.side == REAL]
    assert all(row.auc is None and row.bootstrap is None for row in separations(only_real))
    empty = side_averages(only_real)[-1]
    assert (empty.side, empty.num, empty.mean, empty.std, empty.saturated) == (GENERATED, 0, None, None, None)
    still = side_dynamics(only_real)[-1]
    assert (still.side, still.num, still.mean, still.median) == (GENERATED, 0, None, None)


async def test_the_command_over_a_server_gives_the_same_results(folder, make_settings, tmp_path):
    settings, text = make_settings(), io.StringIO()
    outputs = Outputs(
        json=tmp_path / "a.json", csv=tmp_path / "a.csv", plots=tmp_path, html=tmp_path / "new" / "a.html"
    )
    sets = [str(folder / "even*")], [str(folder / "jumpy?.mp4"), str(folder / "broken.mp4")]
    shots = [(side, shot) for side, paths in zip((REAL, GENERATED), sets, strict=True) for shot in find_shots(paths)]
    expected = list(judge(shots, PlainScorer().scorer, settings))
    async with open_doors(settings) as doors, working(doors, PlainScorer()):
        run = partial(evaluate.run, outputs=outputs, console=Console(file=text, width=80))
        assert await asyncio.to_thread(run, *sets, settings, server=doors.grpc_url) == 1  # broken.mp4 has no reward
    last, written = json.loads(text.getvalue().splitlines()[-1]), json.loads(outputs.json.read_text())
    assert last["auc"] == [row.as_json() for row in separations(expected)]
    assert [row["name"] for row in last["dynamics"] if row["side"] == REAL] == list(DYNAMICS)
    assert last["dynamics"][0]["num"] == 3
    assert last["outcomes"] == {REAL: {"ok": 3}, GENERATED: {"ok": 3, "unreadable_clip": 1}}
    assert written["clips"] == [evaluate.case_row(case) for case in expected]
    assert "…" not in text.getvalue().partition("{")[0]
    with outputs.csv.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["combined"] == "" for row in rows] == [case.outcome.reward is None for case in expected]
    page = outputs.html.read_text()
    assert (page.count('<tr id="row-'), page.count("data:image/png;base64,")) == (6, 2)
    assert "broken.mp4" in page and "unreadable_clip" in page
    shown = re.findall(r'<tr id="row-.*?class="name">(.*?)<', page)
    lowest_first = sorted((c for c in expected if c.outcome.reward), key=lambda c: c.outcome.reward.combined)
    assert shown == [case.clip for case in lowest_first]
    for name in ("histograms.png", "roc.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
