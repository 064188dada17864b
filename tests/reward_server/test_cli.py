"""Tests the command line: `score` in-process and against a server, and `serve` and `worker` as real processes."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import stamina
from rich.console import Console
from typer.testing import CliRunner

from protos.client import RewardClient, submission
from protos.types import REWARDS, Media, OutcomeKind, StandardError, Standing, Submission
from reward_server.__main__ import app, main
from reward_server.errors import BadRequest, NotReady
from reward_server.evaluation import score as score_files
from reward_server.evaluation import scoring
from reward_server.networks.prepacked import Compute
from reward_server.pipeline import Pipeline
from reward_server.profiles import Profile
from tests import media
from tests.conftest import MakeSettings, OpenQueue
from tests.plain_scorer import PlainScorer
from tests.running import open_doors, working

FRAMES = media.texture(16, 32, 48)
ADDRESSES = re.compile(r"at (http://\S+) and (grpc://\S+)")


@pytest.fixture
def clips(tmp_path: Path, discriminators_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two good clips, one of them nested, a broken clip, and a file that is not a clip."""
    monkeypatch.setenv("MOTION_REWARD_CHECKPOINT", str(discriminators_file))
    monkeypatch.setenv("MOTION_REWARD_NUM_TRACKS", "16")
    monkeypatch.setenv("MOTION_REWARD_THREADS", "1")
    folder = tmp_path / "clips"
    (folder / "nested").mkdir(parents=True)
    (folder / "a.mp4").write_bytes(media.video(FRAMES, fps=12.0))
    (folder / "nested" / "b.safetensors").write_bytes(media.tensor(FRAMES, 12.0))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not a clip")
    return folder


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout


def run_to_json(out: Path, *arguments: str | Path) -> tuple[int, Any]:
    """Run with --json OUT, because the logs of a running server share the standard output."""
    code, _ = run(*arguments, "--json", out)
    return code, json.loads(out.read_text())


# --- pretrain -----------------------------------------------------------------------------------


def test_pretraining_runs_frozen_networks_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def missing(name: str, models: Path, **how: Any) -> Profile:
        asked.append(how)
        raise NotReady(f"no networks of {name} in {models}")

    monkeypatch.setattr("reward_server.training.jobs.load_profile", missing)
    monkeypatch.setenv("MOTION_REWARD_PRECISION", "bf16")
    monkeypatch.setenv("MOTION_REWARD_PASS_MEMORY_MIB", "2048")
    arguments = ("--profile", "shift", "--real", tmp_path, "--out", tmp_path / "discriminators.safetensors")
    assert run("pretrain", *arguments)[0] != 0
    assert asked == [{"device": "cpu", "compute": Compute(precision="bf16", memory_mib=2048)}]


# --- score --------------------------------------------------------------------------------------


def test_a_broken_file_is_a_row_and_makes_the_exit_code_1(clips: Path, tmp_path: Path) -> None:
    code, shown = run("score", clips, "--json", tmp_path / "out.json", "--csv", tmp_path / "out.csv")
    assert code == 1
    document = json.loads((tmp_path / "out.json").read_text())
    rows = {Path(result["path"]).name: result for result in document["results"]}
    assert rows.keys() == {"a.mp4", "broken.mp4", "b.safetensors"}
    assert [rows[name]["outcome"] for name in ("a.mp4", "broken.mp4", "b.safetensors")] == ["ok", "invalid", "ok"]
    assert rows["broken.mp4"]["error"]["code"] == "unreadable_clip"
    assert rows["broken.mp4"]["reward"] is None
    rewards = [rows[name]["reward"] for name in ("a.mp4", "b.safetensors")]
    for dimension, scored in {
        "combined": [reward["combined"] for reward in rewards],
        "camera_motion": [reward["dynamics"]["camera_motion"] for reward in rewards],
    }.items():
        mean, per_clip = document[dimension]
        assert mean == pytest.approx(sum(scored) / 2)
        assert sorted(entry["video_results"] for entry in per_clip) == sorted(scored)
    with (tmp_path / "out.csv").open() as file:
        table = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert float(table["a.mp4"]["combined"]) == rows["a.mp4"]["reward"]["combined"]
    assert float(table["a.mp4"]["total_motion"]) == rows["a.mp4"]["reward"]["dynamics"]["total_motion"]
    assert (table["broken.mp4"]["combined"], table["broken.mp4"]["error_code"]) == ("", "unreadable_clip")
    assert table["broken.mp4"]["total_motion"] == ""
    assert "unreadable_clip" in shown


def test_the_report_of_a_score_is_one_file_with_the_worst_clip_first(clips: Path, tmp_path: Path) -> None:
    (clips / "still.mp4").write_bytes(media.video(FRAMES[[0] * len(FRAMES)], fps=12.0))
    code, document = run_to_json(tmp_path / "out.json", "score", clips, "--html", tmp_path / "new" / "out.html")
    assert code == 1  # for the broken file
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["out.html"]
    page = (tmp_path / "new" / "out.html").read_text(encoding="utf-8")
    rewards = {row["path"]: row["reward"]["combined"] for row in document["results"] if row["reward"]}
    names = [str(Path(path).relative_to(clips)) for path in sorted(rewards, key=lambda path: float(rewards[path]))]
    assert re.findall(r'<h3 id="name-\d">.*?class="name">(.*?)<', page) == names
    assert len(names) == 3 and "broken.mp4" in page and "unreadable_clip" in page
    assert page.count("data:image/webp;base64,") >= 3
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)


def test_a_report_that_cannot_be_written_costs_no_figures(clips: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    page.mkdir()
    result = CliRunner().invoke(
        app,
        ["score", str(clips / "a.mp4"), "--json", str(out), "--csv", str(tmp_path / "out.csv"), "--html", str(page)],
    )
    assert isinstance(result.exception, OSError)
    assert "a.mp4" in result.stdout
    assert json.loads(out.read_text())["results"][0]["outcome"] == "ok"
    assert "a.mp4" in (tmp_path / "out.csv").read_text()


def test_percentiles_errors_and_the_nearest_rung_are_shown_and_written() -> None:
    (plain,) = PlainScorer().score_submissions([submission(media.video(FRAMES, fps=12.0))])
    assert plain.reward
    standing = Standing(
        combined_percentile=62.4, instantaneous_percentile=0.0, nearest="a clip with mild jitter", missing="too few"
    )
    error = StandardError(combined=0.4, instantaneous=0.5, long_term=0.6, num_windows=3, num_draws=1)
    told = replace(plain, reward=replace(plain.reward, combined=3.214, standing=standing, standard_error=error))
    row = scoring.outcome_row(told)
    assert (row["combined_percentile"], row["long_term_percentile"], row["nearest"]) == (62.4, None, standing.nearest)
    assert (row["standard_error_combined"], row["standard_error_long_term"]) == (0.4, 0.6)
    assert scoring.outcome_row(plain)["standard_error_combined"] is None
    assert row.keys() == set(scoring.OUTCOME_COLUMNS)

    text = io.StringIO()
    scored = [score_files.FileOutcome(path=Path("a.mp4"), outcome=outcome) for outcome in (told, plain)]
    Console(file=text, width=200).print(score_files.table(scored))
    assert "3.21 ±0.40 (62 %)" in text.getvalue() and "(0 %)" in text.getvalue()
    assert "a clip with mild jitter" in text.getvalue()
    assert score_files.missing(scored) == ["too few"]


def test_names_and_errors_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "walk[final].mp4").write_text("[/b] is no video")
    code, shown = run("score", tmp_path)
    assert code == 1
    assert "walk[final].mp4" in shown


def test_success_is_exit_code_0_and_json_may_go_to_stdout(clips: Path) -> None:
    code, shown = run("score", clips / "a.mp4", clips / "nested", "--json", "-")
    assert code == 0
    assert [result["outcome"] for result in json.loads(shown)["results"]] == ["ok", "ok"]


def test_paths_are_files_folders_and_patterns_each_file_once(clips: Path) -> None:
    def names(*paths: str) -> list[str]:
        return [str(path.relative_to(clips)) for path in score_files.find_files([str(clips / path) for path in paths])]

    assert names("notes.txt") == ["notes.txt"]  # named outright: the user says it is a clip
    assert names("") == ["a.mp4", "broken.mp4", "nested/b.safetensors"]
    assert names("*.mp4") == ["a.mp4", "broken.mp4"]
    assert names("**/*.safetensors") == ["nested/b.safetensors"]
    assert names("*.mp4", "a.mp4", "") == ["a.mp4", "broken.mp4", "nested/b.safetensors"]
    for name in ("c.mpg", "d.mpeg", "e.m4v", "notes.md", "types.d.ts"):  # .ts: named later if it is no video
        (clips / "nested" / name).touch()
    assert names("nested") == [f"nested/{name}" for name in ("b.safetensors", "c.mpg", "d.mpeg", "e.m4v", "types.d.ts")]
    for nothing in ("missing.mp4", "*.webm"):
        with pytest.raises(BadRequest, match=re.escape(nothing)):
            names(nothing)


def test_requests_are_bounded_in_clips_and_bytes() -> None:
    def sizes(*num_bytes: int, size: int = 3) -> list[list[int]]:
        clips = [Submission(payload=bytes(num), media=Media.CONTAINER) for num in num_bytes]
        return [
            [len(clip.payload) for clip in request] for request in scoring.bounded(clips, scoring.payload_bytes, size)
        ]

    most = scoring.MOST_BYTES
    assert sizes(1, 2, 3, 4) == [[1, 2, 3], [4]]
    assert sizes(1, most, most - 1, 1, 5) == [[1], [most], [most - 1, 1], [5]]
    assert sizes(most + 1, 2) == [[most + 1], [2]]
    assert sizes() == []


def test_a_file_over_the_limit_is_not_read(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (clips / "huge.mp4").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would end the test
    code, shown = run("score", clips / "huge.mp4", "--json", "-")
    assert code == 1
    assert json.loads(shown)["results"][0]["error"]["code"] == "clip_too_large"


def main_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["motion-reward", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


def test_a_wrong_use_is_exit_code_2_and_names_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, named in (
        (["score", "no/such/file.mp4"], "no/such/file.mp4"),
        (["score"], "paths"),
        (["serve", "--http", "nowhere"], "HOST:PORT"),
        (["serve", "--profile", "imagined"], "embedded"),
        (["no-such-command"], "no-such-command"),
        (["score", __file__, "--server", "localhost:8000"], "grpc://HOST:PORT"),
        (["evaluate", "--real", "a", "--generated", "b", "--seed", "-1"], "--seed"),
        (["evaluate", "--real", "a"], "--generated"),
        (["evaluate", "--real", "a", "--labelled", "b"], "--labelled"),
        (["evaluate", "--labelled", "no/such/folder"], "index.csv"),
    ):
        assert main_with(monkeypatch, *arguments) == 2
        assert named in capsys.readouterr().err
    monkeypatch.setenv("MOTION_REWARD_TYPO", "1")
    assert main_with(monkeypatch, "worker") == 2
    assert "MOTION_REWARD_TYPO" in capsys.readouterr().err
    monkeypatch.delenv("MOTION_REWARD_TYPO")
    monkeypatch.setenv("MOTION_REWARD_REWARD_MIN", "10")
    assert main_with(monkeypatch, "score", __file__) == 2
    assert "reward_max" in capsys.readouterr().err


def test_expected_errors_are_one_line_and_exit_code_1(
    clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_with(monkeypatch, "score", str(clips), "--checkpoint", "no/discriminators.safetensors") == 1
    error = capsys.readouterr().err
    assert "pretrain" in error
    assert "Traceback" not in error


async def test_a_server_scores_as_this_process_does(
    clips: Path, tmp_path: Path, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    settings = make_settings(lease_s=5.0)
    _, own = await asyncio.to_thread(run_to_json, tmp_path / "own.json", "score", clips)
    async with open_doors(settings) as doors, working(doors, small_pipeline):
        for url in doors.urls:
            code, theirs = await asyncio.to_thread(run_to_json, tmp_path / "out.json", "score", clips, "--server", url)
            assert code == 1
            for name in REWARDS:
                assert theirs[name][0] == pytest.approx(own[name][0], abs=1e-4)
            assert [result["outcome"] for result in theirs["results"]] == ["ok", "invalid", "ok"]


async def test_a_server_that_goes_away_leaves_rows_with_its_error(
    clips: Path, tmp_path: Path, make_settings: MakeSettings, open_queue: OpenQueue, small_pipeline: Pipeline
) -> None:
    """The server answers once and then stays full. No clip gets a reward, and every clip stays in the table."""
    settings = make_settings(lease_s=30.0, queue_max_jobs=3)
    async with open_doors(settings) as doors:
        await (await open_queue(settings)).worker.announce("a worker that hangs", small_pipeline.model)
        async with httpx.AsyncClient(base_url=doors.http_url) as client:
            await client.post("/v1/jobs", files={"video": b"fills the queue"})
        command = ("score", clips, "--server", doors.http_url)
        with stamina.set_testing(True, attempts=2):  # no pauses
            code, document = await asyncio.to_thread(run_to_json, tmp_path / "out.json", *command)
    assert code == 1
    assert [(result["outcome"], result["error"]["code"]) for result in document["results"]] == [
        ("failed", "overloaded")
    ] * 3


# --- serve and worker as processes --------------------------------------------------------------


@pytest.fixture
def serving(tmp_path: Path, discriminators_file: Path) -> Callable[..., Any]:
    """Run `motion-reward serve` on free ports with a private Redis; yields its process and its two addresses."""
    environment = {"MOTION_REWARD_CHECKPOINT": str(discriminators_file), "MOTION_REWARD_NUM_TRACKS": "16"}
    environment |= {"MOTION_REWARD_THREADS": "1", "MOTION_REWARD_DATA_DIR": str(tmp_path), "PYTHONWARNINGS": "error"}

    @contextmanager
    def start(*options: str) -> Iterator[tuple[psutil.Popen, str, str]]:
        ports = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        command = [sys.executable, "-m", "reward_server", "serve", *ports, *options]
        process = psutil.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            found = ADDRESSES.search(process.stdout.readline())
            http, grpc = found.groups() if found else ("", "")
            yield process, http, grpc
        finally:
            family = process.children(recursive=True) if process.is_running() else []
            for one in (process, *family):
                if one.is_running():
                    one.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()

    return start


@pytest.mark.slow
def test_serve_loads_scores_restarts_a_dead_worker_and_drains(serving: Callable[..., Any]) -> None:
    with serving() as (process, http, grpc):
        assert httpx.get(f"{http}/readyz").status_code == 200  # load first, then open the doors
        good = submission(media.tensor(FRAMES, 12.0), media=Media.TENSOR)
        for url in (http, grpc):
            with RewardClient(url) as client:
                assert client.score([good])[0].kind is OutcomeKind.OK
        [worker] = [child for child in process.children(recursive=True) if "worker" in child.cmdline()]
        worker.kill()
        with RewardClient(grpc) as client:
            assert client.score([good])[0].kind is OutcomeKind.OK  # by the next worker
        family = process.children(recursive=True)
        assert len(family) >= 2  # worker and Redis
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_the_drain(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hung worker and a waiting client would delay the end of the drain by ten minutes."""
    monkeypatch.setenv("MOTION_REWARD_DRAIN_S", "600")
    with serving() as (process, http, _), ThreadPoolExecutor(1) as pool:
        [worker] = [child for child in process.children(recursive=True) if "worker" in child.cmdline()]
        worker.suspend()
        waiting = pool.submit(httpx.post, f"{http}/v1/score", files={"video": b"not soon"}, timeout=120)
        while "queue_jobs 0.0" in httpx.get(f"{http}/metrics").text:
            time.sleep(0.05)
        family = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        while httpx.get(f"{http}/readyz").status_code == 200:
            time.sleep(0.05)  # until the drain has begun, so that the signals are two
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert waiting.exception() or waiting.result().status_code == 503
        _, alive = psutil.wait_procs(family, timeout=10)
        assert alive == []


@pytest.mark.slow
def test_workers_and_redis_end_when_the_server_is_killed(serving: Callable[..., Any]) -> None:
    with serving() as (process, _, _):
        family = process.children(recursive=True)
        assert len(family) >= 2
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []


@pytest.mark.slow
def test_serve_says_why_it_cannot_start(
    serving: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("--checkpoint", "no/discriminators.safetensors") as (process, _, _):
        said = process.stderr.read()
        assert process.wait(60) == 1
        assert "pretrain" in said
    with serving() as (_, http, _):
        taken = http.removeprefix("http://")
        monkeypatch.setenv("MOTION_REWARD_QUEUE_DIR", str(tmp_path / "other"))
        with serving("--http", taken) as (second, _, _):
            said = second.stderr.read()
            assert second.wait(60) == 1
            assert f"cannot listen on {taken}" in said
