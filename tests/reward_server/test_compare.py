"""Tests `compare`: its error on rewards set by hand, its verdicts, and the command with its exit codes."""

from __future__ import annotations

import io
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from protos.types import Clip, Logits, WindowLogits
from reward_server.errors import BadRequest
from reward_server.evaluation import compare
from reward_server.evaluation.compare import ALIKE, DIFFERENT, FAILED, Measured, compared, measured
from reward_server.faults import with_fault
from reward_server.settings import Settings
from tests.media import texture, video
from tests.plain_scorer import MODEL, PlainScorer


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    @contextmanager
    def opened(settings, server):
        yield PlainScorer().scorer

    monkeypatch.setattr(compare, "open_scorer", opened)
    frames = texture(16, 96, 144)
    (tmp_path / "even.mp4").write_bytes(video(frames, fps=12))
    (tmp_path / "jumpy.mp4").write_bytes(video(frames[np.random.default_rng(0).permutation(16)], fps=12))
    (tmp_path / "broken.mp4").write_text("no video")
    return tmp_path


def outcomes_of(clips: Path, values_DW: list[list[float]]):
    """Outcomes with these window logits per draw, the same from both discriminators."""
    plain = PlainScorer().score_submissions([compare.Shot(path=clips / "even.mp4").submission()])[0]
    return [
        replace(
            plain,
            reward=replace(
                plain.reward,
                combined=float(np.mean(row)),
                windows=tuple(WindowLogits(start_s=0, logits=Logits(instantaneous=v, long_term=v)) for v in row),
            ),
        )
        for row in values_DW
    ]


def test_the_error_is_over_windows_or_else_over_draws(clips):
    several = measured("a", outcomes_of(clips, [[1, 3, 5], [2, 4, 6]]), MODEL)  # window means 1.5, 3.5, 5.5
    assert (several.reward, several.error, several.freedom) == (3.5, pytest.approx(2 / math.sqrt(3)), 2)
    single = measured("a", outcomes_of(clips, [[1], [2], [3]]), MODEL)
    assert (single.reward, single.error, single.freedom) == (2, pytest.approx(1 / math.sqrt(3)), 2)


def test_a_difference_counts_only_beyond_the_range_of_welchs_test():
    first = Measured(clip="a", reward=1.0, error=0.1, freedom=3)
    near, far = (replace(first, clip="b", reward=reward) for reward in (0.7, 0.6))
    assert compared(first, near).margin == pytest.approx(2.4469 * 0.1 * math.sqrt(2), rel=1e-4)  # t, 6 degrees
    assert compared(first, near).higher is None
    assert compared(first, far).higher == compared(far, first).higher == "a"
    exact = replace(first, error=0.0)
    assert compared(exact, replace(near, error=0.0)).higher == "a" and compared(exact, exact).higher is None


def test_the_command_tells_and_exits_with_its_codes(clips, tmp_path):
    text = io.StringIO()

    def told(first: str, second: str, **options: object) -> int:
        paths = str(clips / first), str(clips / second)
        return compare.run(paths, Settings(), console=Console(file=text, width=300), **options)

    assert told("even.mp4", "jumpy.mp4", json_path=tmp_path / "a.json") == DIFFERENT
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["higher"] == str(clips / "even.mp4") and found["difference"] > 0 and found["draws"] == 4
    assert "even.mp4 moves more really than" in text.getvalue() and "percentile – among" in text.getvalue()
    assert told("even.mp4", "even.mp4") == ALIKE and "not different: 0.00 ± 0.00" in text.getvalue()
    assert told("even.mp4", "broken.mp4") == FAILED
    with pytest.raises(BadRequest, match="names 3 clips, and compare takes one on each side"):
        told("even.mp4", "")


# --- with the shipped discriminators --------------------------------------------------------------


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of three windows and a faulty twin: a ball flies while the camera pans over the background."""
    folder = tmp_path_factory.mktemp("filmed")
    frames = texture(48, 144, 256, step=3)
    rows, columns = np.mgrid[:144, :256]
    for index, frame in enumerate(frames):
        height = 100 - 6 * index + 0.16 * index**2
        ball = (rows - height) ** 2 + (columns - 20 - 4.5 * index) ** 2 < 18**2
        frame[ball] = texture(1, 144, 256, seed=9)[0][ball]
    clip = Clip(frames=frames.transpose(0, 3, 1, 2).copy(), fps=12.0)
    for name, twin in (("real", clip), ("jittered", with_fault(clip, "jittered", 1.0, 0))):
        (folder / f"{name}.mp4").write_bytes(video(twin.frames.transpose(0, 2, 3, 1), fps=12))
    return folder


@pytest.mark.slow
def test_a_clip_moves_more_really_than_its_faulty_twin_and_not_than_itself(filmed: Path, tmp_path: Path):
    def told(first: str, second: str) -> tuple[int, dict]:
        paths = str(filmed / f"{first}.mp4"), str(filmed / f"{second}.mp4")
        settings = Settings(threads=1, num_tracks=64, decode_isolation=False)
        code = compare.run(paths, settings, draws=2, json_path=tmp_path / "a.json")
        return code, json.loads((tmp_path / "a.json").read_text())

    code, found = told("real", "jittered")
    assert code == DIFFERENT and found["higher"] == str(filmed / "real.mp4")
    assert found["difference"] > found["margin"] > found["error"] > 0
    code, found = told("jittered", "jittered")
    assert code == ALIKE and found["higher"] is None and found["error"] > 0
