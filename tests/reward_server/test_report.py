"""Tests the parts of the HTML report: which clips and frames it shows, what it says of them, and how it writes text."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from protos.explanation import Explanation, PairMaps, WindowExplanation
from protos.submissions import submission
from protos.types import Logits, Outcome, OutcomeKind, Reward, Standing, WindowLogits
from reward_server.evaluation import evaluate, sanity, score
from reward_server.evaluation.report import Outputs, figure_table
from reward_server.gate import check
from reward_server.gate.outputs import Outputs as CheckOutputs
from reward_server.report import reading
from reward_server.report.clips import Entry, WorstFirst
from reward_server.report.page import Scale, shown
from reward_server.report.stills import bad_times, worst_window
from reward_server.report.tables import view
from reward_server.settings import Settings
from tests.media import texture, video
from tests.plain_scorer import MODEL, PlainScorer


@pytest.fixture(scope="module")
def plain() -> Reward:
    [outcome] = PlainScorer().score_submissions([submission(video(texture(36, 48, 64), fps=12))])
    assert outcome.reward
    return outcome.reward


def window(*curve: float) -> WindowExplanation:
    maps = PairMaps.of(np.zeros((len(curve), 0, 0), np.uint8), 0.0)
    return WindowExplanation(
        times_s=tuple(float(t) for t in range(len(curve) + 1)),
        tracks=(),
        residual=maps,
        flow_confidence=maps,
        residual_curve=curve,
        flow_confidence_curve=(1.0,) * len(curve),
    )


def test_the_frames_shown_are_the_peaks_of_the_residual_and_not_neighbours() -> None:
    curve = [1.0] * 16
    curve[3], curve[4], curve[9], curve[12] = 9.0, 8.0, 7.0, 5.0
    times_s, peak_s = bad_times(window(*curve), most=3)
    assert (times_s, peak_s) == ([3.0, 9.0, 12.0], 3.0)
    assert bad_times(window(*[2.0] * 16)) == ([0.0, 5.0, 10.0, 15.0], None)  # nothing stands out


def test_the_lowest_window_is_found_with_the_weights_of_the_discriminators(plain: Reward) -> None:
    pairs = [(0.0, 0.0), (3.0, -2.0), (-1.0, 5.0)]
    windows = tuple(WindowLogits(start_s=0, logits=Logits(instantaneous=i, long_term=t)) for i, t in pairs)
    reward = replace(plain, windows=windows)
    assert worst_window(reward, Logits(instantaneous=1, long_term=1)) == 0
    assert worst_window(reward, Logits(instantaneous=0, long_term=1)) == 1
    assert worst_window(reward, Logits(instantaneous=1, long_term=0)) == 2


def test_only_the_worst_clips_keep_what_it_takes_to_draw_them(plain: Reward) -> None:
    explained = replace(plain, explanation=Explanation(windows=()))
    worst = WorstFirst(most=2)
    for value in (5.0, 1.0, 4.0, 2.0, 3.0):
        outcome = Outcome(job_id="", kind=OutcomeKind.OK, reward=explained)
        worst.add(Entry(name=str(value), outcome=outcome, order=(value,), draw=lambda *_: []))
    found = worst.entries()
    assert [entry.name for entry in found] == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert [entry.explained for entry in found] == [True, True, False, False, False]
    assert [entry.draw is None for entry in found] == [False, False, True, True, True]


def test_sentences_say_what_a_clip_has_and_what_it_lacks(plain: Reward) -> None:
    told = " ".join(reading.meaning(replace(plain, standing=Standing(missing="the table has too few clips"))))
    assert told == "The table has too few clips."
    standing = Standing(
        combined_percentile=2.0,
        instantaneous_percentile=60.0,
        long_term_percentile=1.5,
        nearest="a clip with strong jitter",
        band="one window",
        num_clips=43,
    )
    told = " ".join(reading.meaning(replace(plain, standing=standing)))
    assert "2 % of 43 real clips" in told and "sign of something wrong" in told
    assert "a clip with strong jitter" in told and "percentile 1.5 against 60" in told
    average = replace(standing, combined_percentile=40.0)
    assert "no sign of a fault" in " ".join(reading.meaning(replace(plain, standing=average)))

    logits = Logits(instantaneous=0, long_term=0)
    overlapping = [WindowLogits(start_s=start_s, logits=logits) for start_s in (0.0, 0.5)]
    limits = " ".join(reading.limits(replace(plain, windows=tuple(overlapping)), MODEL.input.window_frames))
    assert "windows cover 1.8 of 3.0 s" in limits  # 16 frames at 12 fps, from 0 and from 0.5 s
    assert "no standard error" in limits


def of_score(clip: str, settings: Settings, html: Path) -> None:
    score.run([clip], settings, server=None, json_path=None, csv_path=None, html=html)


def of_check(clip: str, settings: Settings, html: Path) -> None:
    check.run(check.Wanted(paths=(clip,), min_percentile=1), settings, server=None, outputs=CheckOutputs(html=html))


def of_sanity(clip: str, settings: Settings, html: Path) -> None:
    sanity.run([clip], settings, outputs=Outputs(html=html), console=Console(file=io.StringIO()))


def of_evaluate(clip: str, settings: Settings, html: Path) -> None:
    evaluate.run([clip], [clip], settings, outputs=Outputs(html=html), console=Console(file=io.StringIO()))


@pytest.mark.parametrize("command", [of_score, of_check, of_sanity, of_evaluate])
def test_each_command_draws_tracks_on_the_frames_of_its_report(
    command: Callable[[str, Settings, Path], None],
    discriminators_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clip is gray and the haze is red, so what is blue or orange is a track."""
    monkeypatch.setattr(sanity, "climb", partial(sanity.climb, faults=["static"]))
    gray = texture(16, 144, 256)[..., :1].repeat(3, axis=-1)
    (tmp_path / "gray.mp4").write_bytes(video(gray, fps=12))
    html = tmp_path / "page.html"
    command(str(tmp_path / "gray.mp4"), Settings(checkpoint=discriminators_file, num_tracks=16, threads=1), html)
    stills = re.findall(r'data:image/webp;base64,([^"]+)', html.read_text())
    assert stills
    for still in stills:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(still))).convert("RGB")).astype(int)
        red, green, blue = np.moveaxis(image, -1, 0)
        blueish, orange = (blue > green + 20) & (green > red + 20), (red > green + 20) & (green > blue + 20)
        assert 50 < (blueish | orange).sum() < image[..., 0].size / 4


def test_tables_are_those_of_the_terminal() -> None:
    table = figure_table("AUC [95 %]", ("by",), ("all",))
    table.add_row("combined", "0.50", end_section=True)
    table.caption = "a caption"
    seen = view(table)
    assert (seen.heads, seen.numeric, seen.rows) == (("by", "all"), (False, True), (("combined", "0.50"),))
    assert seen.ends == (True,)
    assert (seen.title, seen.caption) == ("AUC [95 %]", "a caption")


def test_an_axis_holds_its_ends_and_survives_a_single_value() -> None:
    scale = Scale.around([1.0, 3.0], label="", threshold=0.0)
    assert scale.low < 0 and scale.high > 3
    assert (scale.place(-99), scale.place(99)) == (0, 100)
    assert 0 < Scale.around([2.0], label="").place(2.0) < 100


def test_text_is_in_one_line_and_in_reading_order() -> None:
    assert shown("a\nb\t\x1b[31m\u202e\udc80 é 走") == "a\\nb\\t\\x1b[31m\\u202e\\udc80 é 走"
