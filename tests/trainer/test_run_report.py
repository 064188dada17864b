"""Tests run.html and evaluation.html: one file each, with all figures, no passwords, and a bound on their clips."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.types import Clip
from trainer.errors import DataError
from trainer.measures.comparison import KINDS, MEASURES, summarise
from trainer.report import html
from trainer.report.evaluation import write_evaluation
from trainer.report.html import chosen
from trainer.report.page import read_figures, write_report
from trainer.report.plots import Line, chart, ticks
from trainer.video import write_clip

VOID = {"meta", "path", "circle"}


class Tags(HTMLParser):
    """The opened tags with their attributes, and those that were not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID or tag == "circle":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def write_run(folder: Path, *lines: dict[str, float]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


RUN = (
    {"step": 0, "time_s": 10.0, "buffer/number": 0.0, "reward_real/combined": 3.0, "reward_rollouts/combined": -2.0},
    {"step": 1, "time_s": 20.0, "loss/total": 1.5},
    {
        "step": 2,
        "time_s": 30.0,
        "buffer/number": 1.0,
        "reward_real/combined": 3.5,
        "reward_rollouts/combined": math.nan,
    },
)


def test_the_report_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a<b", *RUN)
    frames = np.zeros((4, 3, 16, 32), np.uint8)
    write_clip(run / "samples" / "buffer-000001-slot-00000003.mp4", Clip(frames=frames, fps=8.0))
    (run / "config.yaml").write_text("rewards:\n  redis_url: redis://user:secret@host:1/0\n  x: <script>\n")
    text = write_report(run).read_text()
    parsed = Tags(text)
    links = [value for _, attrs in parsed.seen for name, value in attrs.items() if name in ("src", "href")]
    assert parsed.open == [] and len(links) == 1 and str(links[0]).startswith("data:video/mp4;base64,")
    assert "script" not in {tag for tag, _ in parsed.seen} and "default-src 'none'" in text
    assert [tag for tag, _ in parsed.seen].count("svg") == 2  # rewards and losses; there is nothing of the other kinds
    assert "secret" not in text and "redis://...@host:1/0" in text
    assert "Run a&lt;b" in text and "buffer 1, clip 3" in text and "2 optimizer steps, 2 buffers, 20 s" in text


def test_a_step_that_a_resumed_run_takes_again_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path, *RUN, {"step": 1, "time_s": 50.0, "loss/total": 2.5})
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 3, "time_s"')  # being written
    figures, begin_s, end_s = read_figures(run / "metrics.jsonl")
    assert figures["loss/total"] == [(1, 2.5)] and (begin_s, end_s) == (10.0, 50.0)
    assert figures["reward_rollouts/combined"] == [(0, -2.0)]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the `out` folder of a run"):
        write_report(tmp_path)


def test_clips_are_chosen_over_the_whole_run_within_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number:02d}.mp4" for number in range(40)]
    for path in paths:
        path.write_bytes(bytes(100))
    picked = chosen(paths)
    assert len(picked) == html.MAX_CLIPS and (picked[0], picked[-1]) == (paths[0], paths[-1])
    monkeypatch.setattr(html, "MAX_CLIP_BYTES", 350)
    assert len(chosen(paths)) == 3 and chosen(paths)[-1] == paths[-1]
    assert chosen([]) == [] and chosen(paths[:1]) == paths[:1]


def test_lines_are_drawn_to_scale() -> None:
    svg = chart("t", [Line(name="a", points=[(0, 0.0), (10, 10.0)]), Line(name="b", points=[(5, 5.0)])])
    assert 'd="M52.0 194.0L470.0 10.0"' in svg  # from corner to corner
    assert 'cx="261.0" cy="102.0"' in svg and "b, step 5: 5" in svg  # a line of one point is a dot in the middle
    assert "nan" not in chart("t", [Line(name="a", points=[(3, 7.0)])])
    long = chart("t", [Line(name="a", points=[(x, math.sin(x)) for x in range(10_000)])])
    assert len(long) < 20_000 and "circle" not in long


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 7, [-4, -2, 0, 2, 4, 6, 8]), (2, 2, [2])],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_an_evaluation_shows_what_the_checkpoint_lost_first(tmp_path: Path) -> None:
    clip = Clip(frames=np.zeros((4, 3, 16, 48), np.uint8), fps=8.0)
    rows: list[dict[str, Any]] = []
    for number, (base, checkpoint) in enumerate([(1.0, 2.0), (1.0, -3.0), (1.0, None)]):
        write_clip(tmp_path / f"{number:05d}-real-base-checkpoint.mp4", clip)
        for kind, value in zip(KINDS, (4.0, base, checkpoint), strict=True):
            row: dict[str, Any] = dict.fromkeys(MEASURES)
            rows.append(row | {"clip": number, "kind": kind, "combined": value, "error": "" if value else "failed"})
    told = {"checkpoint_folder": "<b>", "discriminator_versions": ["embedded"], "distance_to_real": {}}
    text = write_evaluation(tmp_path, told | summarise(rows), rows).read_text()

    tags = Tags(text)
    assert tags.open == [] and "<b>" not in text
    assert [dict(attrs)["src"][:15] for tag, attrs in tags.seen if tag == "video"] == ["data:video/mp4;"] * 3  # type: ignore[index]
    order = [text.index(f"first frame {number}:") for number in (2, 1, 0)]
    assert order == sorted(order) and "checkpoint no reward" in text and "checkpoint -3" in text
    assert "3 held-out first frames, 1 clips without a reward" in text
