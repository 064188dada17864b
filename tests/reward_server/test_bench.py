"""Tests the parts of the benchmark (clips, clients, memory meter, figures) and a whole quick run."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from rich.console import Console

from protos.types import Error, Media, Outcome, OutcomeKind, Submission
from reward_server.decoding.decode import Sampling, decode
from reward_server.evaluation import bench
from reward_server.evaluation.bench import HEAVY_QUICK, PAPER, QUICK, Plan, checked, notes, quantiles, spread
from reward_server.evaluation.load import MemoryMeter, Size, drive, made_up_clip
from reward_server.settings import Settings
from tests.media import LIMITS

SIZE = Size(frames=12, height_px=96, width_px=128, fps=12.0)
HOLD = "import time; held = b'x' * (64 << 20); print(1, flush=True); time.sleep(60)"


def failed(code: str) -> Outcome:
    return Outcome(job_id="", kind=OutcomeKind.FAILED, error=Error(code=code, message="told"))


def test_a_made_up_clip_is_h264_moves_and_depends_on_its_seed():
    submission = made_up_clip(SIZE, 3)
    decoded = decode(submission, Sampling(min_frames=8), LIMITS, 30.0)
    assert (decoded.source.frames, decoded.source.height_px, decoded.source.width_px) == (12, 96, 128)
    assert (decoded.source.codec, decoded.fps_used) == ("h264", pytest.approx(12.0))
    change = np.abs(np.diff(decoded.windows[0].clip.frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert change.min() > 1
    assert submission == made_up_clip(SIZE, 3) != made_up_clip(SIZE, 4)


def test_clients_share_the_work_and_results_keep_their_order():
    submissions = [Submission(payload=bytes([index]), media=Media.CONTAINER) for index in range(40)]
    busy, most, lock = [0], [0], threading.Lock()

    def send(submission: Submission) -> Outcome:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.005)
        with lock:
            busy[0] -= 1
        return failed(str(submission.payload[0]))

    loaded = drive([send] * 4, submissions)
    assert [outcome.error.code for outcome in loaded.outcomes] == [str(index) for index in range(40)]
    assert most[0] == 4
    assert min(loaded.latencies_s) >= 0.005
    assert loaded.wall_s >= 10 * 0.005
    assert loaded.clips_per_s == 40 / loaded.wall_s


def test_what_a_client_raises_ends_the_round():
    def send(submission: Submission) -> Outcome:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        drive([send], [Submission(payload=b"x", media=Media.CONTAINER)])


def test_the_memory_meter_counts_the_children_too():
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            with MemoryMeter(psutil.Process(process.pid), period_s=0.005).running() as meter:
                assert process.stdout.readline() == b"1\n"  # from here on the child holds its 64 MiB
                deadline = time.monotonic() + 10
                while meter.peak_mib < 64 and time.monotonic() < deadline:
                    time.sleep(0.01)
        finally:
            os.killpg(process.pid, 9)
    assert 64 < meter.peak_mib < 200
    assert len(meter.at_peak_mib) == 2
    assert sum(mib for _, mib in meter.at_peak_mib) == pytest.approx(meter.peak_mib)


def test_quantiles_and_spread_are_exact():
    assert quantiles([float(value) for value in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert quantiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}
    assert spread([0.5, 2.0, 1.0]) == {"median": 1.0, "min": 0.5, "max": 2.0}


def test_a_clip_without_a_reward_ends_the_benchmark():
    with pytest.raises(RuntimeError, match="no reward: clip_too_short: told"):
        checked([failed("clip_too_short")])


# --- how much is measured -----------------------------------------------------------------------


def test_a_quick_run_of_a_heavy_profile_scores_five_clips():
    """The five: one alone, one in the table, and one in-process and one per door in the only round. No warm-up."""
    assert HEAVY_QUICK.scored == 1 + 1 + 1 + 2
    assert dataclasses.replace(HEAVY_QUICK, warm=True).scored == 5 + 2 + 2
    assert QUICK.scored == (1 + 2 * 8) + (1 + 5) + 2 * 16 + 3 * 2 * 32
    assert bench.plan_for(Settings(profile="shift"), quick=True) == HEAVY_QUICK
    assert bench.plan_for(Settings(), quick=False) == Plan()


def test_the_notes_name_the_clips_and_the_networks():
    shift = notes(HEAVY_QUICK, Settings(profile="shift", precision="bf16"), "given")
    assert shift.splitlines() == [
        "clips: 1 in-process, 1 x 1 through each door by 1 client",
        "no warm-up clips",
        "networks in bf16, discriminators in fp32",
    ]
    assert notes(QUICK, Settings(), "given") == "clips: 8 in-process, 2 x 32 through each door by 16 clients"


@pytest.mark.slow
def test_the_quick_run_of_a_heavy_profile_goes_to_its_end(monkeypatch, tmp_path):
    """The heavy plan with the embedded profile counts every clip, in-process and served, and prints one JSON line."""
    monkeypatch.setattr(bench, "plan_for", lambda settings, *, quick: HEAVY_QUICK)
    counted = []
    monkeypatch.setattr(bench, "checked", lambda outcomes: (counted.extend(outcomes), checked(outcomes))[1])
    console = Console(file=io.StringIO(), width=80)
    assert bench.run(Settings(threads=1), quick=True, json_path=tmp_path / "bench.json", console=console) == 0
    *tables, last = console.file.getvalue().splitlines()
    document = json.loads(last)
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert [(row["how"], row["size"], row["batch"]) for row in document["timings"]] == [
        ("in-process", str(PAPER), 1),
        ("grpc", str(PAPER), 8),
        ("http", str(PAPER), 8),
    ]
    assert len(counted) == HEAVY_QUICK.scored
    assert tables[0] == "scoring 5 clips with the profile embedded"
    assert not any("…" in line for line in tables)
    assert sum("no warm-up clips" in line for line in tables) == 2
