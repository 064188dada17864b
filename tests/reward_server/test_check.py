"""Tests `check`: its rules on known distributions, its exit codes through the command line, JUnit, HTML and drift."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stamina
import torch
import xmlschema
from PIL import Image

from protos.submissions import submission
from protos.types import DISCRIMINATORS, REWARDS, Model
from reward_server.__main__ import main
from reward_server.errors import BadRequest
from reward_server.gate.gold import read_gold
from reward_server.gate.rules import AcceptedRule, least_clips, refused_position
from reward_server.pipeline import Pipeline
from reward_server.profiles.discriminators import load_discriminators, save_discriminators, save_reference
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.profiles.reference import PERCENTS, SHORT, Band, ReferenceTable
from reward_server.report.page import shown
from reward_server.settings import Settings
from tests import media
from tests.conftest import MakeSettings
from tests.running import open_doors, working

SCHEMA = xmlschema.XMLSchema(Path(__file__).parents[1] / "junit.xsd")
EVIL = 'a "b" <script>alert(1)<_script> &amp; \N{RIGHT-TO-LEFT OVERRIDE}\n[red].mp4'

# --- the rule of accepted clips -----------------------------------------------------------------


@pytest.mark.parametrize(("num", "share", "refused"), [(19, 5, 1), (38, 5, 1), (39, 5, 2), (99, 7, 7), (30, 50, 15)])
def test_the_threshold_is_the_conformal_quantile(num: int, share: float, refused: int) -> None:
    """k = floor(share * (n + 1)), exactly: 100 * 0.07 is 7.000000000000001 in floating point, 100 * 0.29 is 28.99."""
    assert refused_position(num, share) == refused
    rewards = np.random.default_rng(0).normal(size=num)
    assert AcceptedRule.of(rewards.tolist(), share).threshold == np.sort(rewards)[refused - 1]


def test_the_share_is_not_rounded_down_by_floating_point() -> None:
    assert refused_position(99, 29) == 29
    assert [least_clips(share) for share in (5, 10, 1, 50, 7)] == [19, 9, 99, 1, 14]


@pytest.mark.parametrize("draw", ["normal", "heavy", "tied"])
def test_new_good_clips_are_refused_as_seldom_as_promised(draw: str) -> None:
    """Over 4,000 accepted sets of 39, with a new clip each: two in 40 are refused, and fewer if rewards are equal."""
    rng = np.random.default_rng(7)
    samples = {
        "normal": lambda: rng.normal(size=(4000, 40)),
        "heavy": lambda: rng.standard_cauchy(size=(4000, 40)),
        "tied": lambda: np.maximum(rng.normal(size=(4000, 40)), -1.0),  # rewards at a bound
    }[draw]()
    refused = np.mean([new < AcceptedRule.of(known).threshold for *known, new in samples.tolist()])
    assert refused < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert refused < 0.01 if draw == "tied" else refused > 0.04


def test_too_few_accepted_clips_are_refused_with_the_reason() -> None:
    AcceptedRule.of([0.0] * 19)
    with pytest.raises(BadRequest, match=r"18 accepted clips are too few.*it takes 19 different clips"):
        AcceptedRule.of([0.0] * 18)


# --- the command --------------------------------------------------------------------------------

PROFILE = EmbeddedProfile()
NAMES = ("low.mp4", "middle.mp4", "high.mp4")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A folder with three clips named by their rewards, weights whose table spreads over these, and a percentile that
    only the lowest clip does not reach. With the `shifted` weights the middle one does not reach it either."""

    clips: Path
    checkpoint: Path
    shifted: Path
    between: float


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, discriminators_file: Path) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    payloads = [media.video(media.texture(8, 48, 64, seed=seed, step=1 + 2 * seed), fps=12.0) for seed in range(3)]
    settings = Settings(checkpoint=discriminators_file, num_tracks=16, threads=1, decode_isolation=False)
    pipeline = Pipeline.load(settings)
    scored = pipeline.score_submissions([submission(payload) for payload in payloads])
    rewards = sorted((o.reward.combined, payload) for o, payload in zip(scored, payloads, strict=True) if o.reward)
    (folder / "clips").mkdir()
    for name, (_, payload) in zip(NAMES, rewards, strict=True):
        (folder / "clips" / name).write_bytes(payload)
    values = [value for value, _ in rewards]
    low, high = values[0] - 1, values[2] + 1
    middle = (values[0] + values[1]) / 2
    for name, drop in (("now", 0.0), ("shifted", (values[1] - values[0]) * 0.7)):
        write_weights(folder / f"{name}.safetensors", discriminators_file, drop, (low, high), pipeline.model)
    return Bench(
        clips=folder / "clips",
        checkpoint=folder / "now.safetensors",
        shifted=folder / "shifted.safetensors",
        between=100 * (middle - low) / (high - low),
    )


def write_weights(path: Path, source: Path, drop: float, ends: tuple[float, float], model: Model) -> None:
    """The weights of `source` with `combined` lower by `drop`, and a table in which real clips lie evenly in `ends`."""
    found = load_discriminators(PROFILE, source)
    states = {name: getattr(found, name).state_dict() for name in DISCRIMINATORS}
    states["instantaneous"]["head.bias"] = states["instantaneous"]["head.bias"] - 2 * drop  # equal weights: the mean
    save_discriminators(path, profile=PROFILE, version=path.stem, **states, precision=torch.float32)
    spread = tuple(np.linspace(*ends, PERCENTS.size).tolist())
    named = dict.fromkeys(REWARDS, spread)
    table = ReferenceTable(
        weights=load_discriminators(PROFILE, path).weights_digest,
        discriminator_version=path.stem,
        num_tracks=16,
        bounds=model.bounds,
        shares=model.weights,
        bands=(Band(name=SHORT, num_clips=50, **named),),
        rungs=(),
    )
    save_reference(path, path.read_bytes(), table)


Check = Callable[..., int]


@pytest.fixture
def check(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Run `motion-reward check` as the program does, with the weights of the bench; returns the exit code."""
    for name, value in {"NUM_TRACKS": 16, "THREADS": 1, "DECODE_ISOLATION": "false"}.items():
        monkeypatch.setenv(f"MOTION_REWARD_{name}", str(value))

    def run(*arguments: object, checkpoint: Path = bench.checkpoint) -> int:
        monkeypatch.setenv("MOTION_REWARD_CHECKPOINT", str(checkpoint))
        monkeypatch.setattr(sys, "argv", ["motion-reward", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        assert isinstance(left.value.code, int)
        return left.value.code

    return run


@pytest.fixture
def clips(bench: Bench, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bench.clips, tmp_path / "clips"))


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {Path(clip["path"]).name: clip["verdict"] for clip in document["clips"]}


def test_the_exit_code_tells_passed_below_and_unscored(check: Check, clips: Path, bench: Bench, tmp_path: Path) -> None:
    assert check(clips, "--min-percentile", 1) == 0
    report = tmp_path / "new" / "report.json"
    assert check(clips, "--min-percentile", bench.between, "--json", report) == 1
    document = json.loads(report.read_text())
    assert verdicts(document) == {"low.mp4": "below", "middle.mp4": "passed", "high.mp4": "passed"}
    assert (document["exit_code"], document["counts"]) == (1, {"passed": 2, "below": 1, "unscored": 0})
    (clips / "broken.mp4").write_bytes(b"no video")
    assert check(clips, "--min-percentile", bench.between, "--json", report) == 2  # although one is below
    assert verdicts(json.loads(report.read_text()))["broken.mp4"] == "unscored"


def test_a_clip_without_a_percentile_neither_passes_nor_fails(
    check: Check, clips: Path, discriminators_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(clips, "--min-percentile", 20, "--json", "-", checkpoint=discriminators_file) == 2
    document = json.loads(capsys.readouterr().out)
    assert set(verdicts(document).values()) == {"unscored"}
    assert all("have no reference table" in clip["reason"] for clip in document["clips"])


def test_a_check_that_cannot_be_made_is_2_and_never_a_verdict(
    check: Check, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text('{"format": "something else"}')
    for arguments, told in (
        ((clips,), "one of --min-percentile, --accepted and --gold"),
        ((clips, "--min-percentile", 20, "--accepted", clips), "one of --min-percentile"),
        (("--min-percentile", 20), "give the clips to check"),
        ((clips, "--gold", tmp_path / "other.json"), "give the clips to check"),
        ((clips, "--min-percentile", 20, "--max-refused", 5), "--max-refused goes with --accepted"),
        ((clips / "missing.mp4", "--min-percentile", 20), "missing.mp4"),
        ((clips, "--accepted", clips), "3 accepted clips are too few"),
        (("--gold", tmp_path / "other.json"), "is not a gold file"),
        (("--gold", tmp_path / "missing.json"), "No such file"),
        ((clips, "--min-percentile", 20, "--server", "http://127.0.0.1:9"), "127.0.0.1:9"),
        ((clips, "--min-percentile", 20, "--checkpoint", "no/weights.safetensors"), "no/weights.safetensors"),
    ):
        with stamina.set_testing(True, attempts=1):
            assert check(*arguments) == 2, arguments
        assert told in re.sub(r"\s*│\s*|\s+", " ", capsys.readouterr().err), arguments


def test_accepted_clips_make_the_threshold_each_content_once(check: Check, clips: Path, tmp_path: Path) -> None:
    accepted = tmp_path / "accepted"
    accepted.mkdir()
    for seed in range(4):
        payload = media.video(media.texture(8, 48, 64, seed=50 + seed, step=seed % 3), fps=12.0)
        (accepted / f"{seed}.mp4").write_bytes(payload)
    (accepted / "copy.mp4").write_bytes((accepted / "0.mp4").read_bytes())
    (accepted / "broken.mp4").write_bytes(b"no video")
    report = tmp_path / "report.json"
    checked = tmp_path / "again"
    shutil.copytree(accepted, checked)
    (checked / "broken.mp4").unlink()
    gold = tmp_path / "gold.json"
    share = ("--max-refused", 20)
    assert check(checked, "--accepted", accepted, *share, "--json", report, "--write-gold", gold) == 0
    document = json.loads(report.read_text())
    assert (document["rule"]["num_accepted"], document["rule"]["max_refused"]) == (4, 20)
    assert document["rule"]["threshold"] == min(clip["reward"]["combined"] for clip in document["clips"])
    assert [re.sub(r"; .*", "", note) for note in document["notes"]] == [
        "1 accepted clips could not be scored and are left out",
        "5 of the clips are among the accepted ones",
    ]


async def test_a_server_judges_as_this_process_does(
    check: Check, clips: Path, bench: Bench, tmp_path: Path, make_settings: MakeSettings
) -> None:
    settings = make_settings(lease_s=5.0, checkpoint=bench.checkpoint, num_tracks=16, decode_isolation=False)
    report = tmp_path / "report.json"
    async with open_doors(settings) as doors, working(doors, Pipeline.load(settings)):
        for url in doors.urls:
            command = (clips, "--min-percentile", bench.between, "--server", url, "--json", report)
            assert await asyncio.to_thread(check, *command, "--html", tmp_path / "report.html") == 1
            assert verdicts(json.loads(report.read_text()))["low.mp4"] == "below"
            assert (tmp_path / "report.html").read_text().count("<figure") >= 3 * 3


# --- reports ------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The names of all elements, their attributes, and the text outside the style."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.names[-1:] != ["style"]:
            self.text += data


def test_reports_hold_hostile_names_as_text_and_need_no_network(check: Check, clips: Path, tmp_path: Path) -> None:
    (clips / "low.mp4").rename(clips / EVIL)
    (clips / f"broken{EVIL}").write_bytes(b"no video")
    junit, page = tmp_path / "junit.xml", tmp_path / "page.html"
    assert check(clips, "--min-percentile", 99, "--junit", junit, "--html", page) == 2

    SCHEMA.validate(str(junit))
    suite = SCHEMA.to_dict(str(junit))["testsuite"][0]
    assert (suite["@tests"], suite["@failures"], suite["@errors"]) == (4, 3, 1)
    assert str(clips / shown(EVIL)) in [case["@name"] for case in suite["testcase"]]

    document = page.read_text(encoding="utf-8")
    tags = Tags(document)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(tags.names)
    assert not re.search(r"https?:|\(//|@import|url\(", document)
    sources = [value for name, value in tags.attributes if name in ("src", "href")]
    assert sources and all(value.startswith(("data:image/webp;base64,", "#")) for value in sources)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert tags.text.count(shown(EVIL)) == 3  # the card, the row, and the broken clip
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in document and EVIL not in html.unescape(document)
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in tags.attributes


def test_the_page_shows_the_worst_clip_first_with_its_frames(check: Check, clips: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert check(clips, "--min-percentile", 1, "--html", page) == 0
    document = page.read_text(encoding="utf-8")
    assert re.findall(r'<h3 id="name-\d">.*?class="name">(.*?)<', document) == list(NAMES)
    frames = re.findall(r"data:image/webp;base64,([^\"]+)", document)
    assert document.count("<figure") == len(frames) >= 3 * 3  # of seven pairs, those that are not side by side
    with Image.open(io.BytesIO(base64.b64decode(frames[0]))) as image:
        assert image.size == (480, 360)
        assert (np.asarray(image.convert("RGB")).std(axis=(0, 1)) > 10).all()


# --- drift --------------------------------------------------------------------------------------


def test_new_discriminators_change_exactly_one_verdict(check: Check, clips: Path, bench: Bench, tmp_path: Path) -> None:
    gold, report, page = (tmp_path / name for name in ("gold.json", "report.json", "page.html"))
    assert check(clips, "--min-percentile", bench.between, "--write-gold", gold) == 1
    frozen = read_gold(gold)
    assert [(clip.path, clip.verdict.value) for clip in frozen.clips] == [
        ("clips/high.mp4", "passed"),
        ("clips/low.mp4", "below"),
        ("clips/middle.mp4", "passed"),
    ]
    assert check("--gold", gold) == 0  # a clip below is no drift
    assert check("--gold", gold, "--json", report, "--html", page, checkpoint=bench.shifted) == 1
    document = json.loads(report.read_text())
    changed = [Path(clip["path"]).name for clip in document["clips"] if clip["changed"]]
    assert (changed, document["gold"]["changed"]) == (["middle.mp4"], 1)
    assert document["gold"]["model"]["weights_digest"] != document["model"]["weights_digest"]
    assert "passed → below" in page.read_text(encoding="utf-8")

    moved = tmp_path / "elsewhere"
    moved.mkdir()
    gold.rename(moved / "gold.json")
    clips.rename(moved / "clips")
    assert check("--gold", moved / "gold.json", "--json", report) == 0  # paths follow the file
    (moved / "clips" / "high.mp4").write_bytes((moved / "clips" / "low.mp4").read_bytes())
    (moved / "clips" / "low.mp4").unlink()
    assert check("--gold", moved / "gold.json", "--json", report) == 2
    reasons = {Path(clip["path"]).name: clip["reason"] for clip in json.loads(report.read_text())["clips"]}
    assert "not the one of the gold file" in reasons["high.mp4"]
    assert "No such file" in reasons["low.mp4"]
    assert reasons["middle.mp4"] == ""


def test_a_gold_file_is_checked(check: Check, clips: Path, tmp_path: Path) -> None:
    (clips / "broken.mp4").write_bytes(b"no video")
    gold = tmp_path / "gold.json"
    assert check(clips, "--min-percentile", 20, "--write-gold", gold) == 2
    assert not gold.exists()  # a clip without a verdict cannot be frozen
    (clips / "broken.mp4").unlink()
    check(clips, "--min-percentile", 20, "--write-gold", gold)
    whole = json.loads(gold.read_text())
    for broken in (
        {**whole, "rule": {}},
        {**whole, "rule": {"min_percentile": float("nan")}},
        {**whole, "rule": {"max_refused": 5, "accepted": []}},
        {**whole, "clips": []},
        {**whole, "format": "gold-2 of motion-reward"},
        [],
    ):
        gold.write_text(json.dumps(broken))
        with pytest.raises(BadRequest, match="is not a gold file"):
            read_gold(gold)
