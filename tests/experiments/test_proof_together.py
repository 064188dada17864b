"""Tests Level 3 over data seeds: intervals include the spread between seeds, and the claim must hold on every seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from experiments.proof import motion
from experiments.proof.__main__ import app
from experiments.proof.arms import MEASURES
from experiments.proof.together import read_seed
from experiments.proof.verdicts import nested_interval
from trainer.errors import ConfigError

STREAMS, FRAMES = 2, 6
LEVELS = {"base": 0.6, "sft": 0.4, "shift-mid": 0.5}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_proof_motion.py tests the AUC of a fresh discriminator. Here it is only a column of the table."""
    monkeypatch.setattr(motion, "FRESH_STEPS", 20)


def level(folder: Path, seed: int, data: float, **levels: float) -> None:
    """Write a finished level of a seed, in which every measure of an arm's rollouts is near the arm's value."""
    rng = np.random.default_rng(seed)
    place = folder / f"short-{seed}" / "motion-static"
    (place / "arms").mkdir(parents=True)
    for arm, mean in {**LEVELS, **levels}.items():
        for stream in range(STREAMS):
            rows = [{name: (mean + rng.normal(0, 0.005, 2)).tolist() for name in MEASURES} for _ in range(FRAMES)]
            record = {"arm": arm, "stream": stream, "seconds": 2.0 if arm == "sft" else 5.0, "rows": rows}
            (place / "arms" / f"{arm}-{stream}.json").write_text(json.dumps(record))
    clips = {name: (data + rng.normal(0, 0.005, 20)).tolist() for name in MEASURES}
    (place / "data.json").write_text(json.dumps([clips, clips]))


def summary(folder: Path, *seeds: int) -> dict[str, object]:
    chosen = [part for seed in seeds for part in ("--seed", str(seed))]
    place = ["--out", str(folder), "--size", "short", "--on", "static"]
    done = CliRunner().invoke(app, ["seeds", *chosen, *place], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.output.splitlines()[-1])["sets"]["static"]
    return found


def test_the_claim_holds_if_it_holds_on_every_seed(tmp_path: Path) -> None:
    level(tmp_path, 100, 0.55)
    level(tmp_path, 101, 0.55)
    found = summary(tmp_path, 100, 101)
    assert found["holds"] is True
    assert found["seeds"] == [100, 101] and found["streams"] == {arm: [STREAMS, STREAMS] for arm in LEVELS}
    mean, low, high = found["minus_sft"]["shift-mid"]["speed_px"]  # type: ignore[index]
    assert low <= mean <= high
    assert mean == pytest.approx(0.1, abs=0.01)
    assert found["time_over_sft"] == [{"sft": 1.0, "shift-mid": 2.5}] * 2
    text = (tmp_path / "short-seeds" / "static.txt").read_text()
    assert "FAILS" not in text and "seed 101" in text
    assert (tmp_path / "short-seeds" / "static.png").stat().st_size > 1000


def test_the_claim_fails_if_it_fails_on_one_seed(tmp_path: Path) -> None:
    level(tmp_path, 100, 0.55)
    level(tmp_path, 101, 0.55, **{"shift-mid": 0.39})
    found = summary(tmp_path, 100, 101)
    assert found["holds"] is False
    assert found["verdicts"]["100"]["shift faster than sft"]["holds"] is True  # type: ignore[index]
    assert found["verdicts"]["101"]["shift faster than sft"]["holds"] is False  # type: ignore[index]
    _, low, high = found["minus_sft"]["shift-mid"]["speed_px"]  # type: ignore[index]
    assert low < 0 < high, "the seeds disagree"


def test_arms_that_have_not_run_on_every_seed_are_left_out(tmp_path: Path) -> None:
    level(tmp_path, 100, 0.55, replay=0.4)
    level(tmp_path, 101, 0.55)
    assert set(summary(tmp_path, 100, 101)["arms"]) == set(LEVELS)  # type: ignore[call-overload]


def test_a_missing_seed_is_named_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"motion --seed 102"):
        read_seed(tmp_path / "short-102" / "motion-static", 102)


def test_the_interval_includes_the_spread_between_seeds() -> None:
    same = [np.full((2, 5), 0.3)] * 3
    assert nested_interval(same).low == pytest.approx(0.3) == nested_interval(same).high
    apart = nested_interval([np.full((2, 5), value) for value in (0.0, 0.3, 0.6)])
    assert apart.mean == pytest.approx(0.3)
    assert apart.low == pytest.approx(0.0) and apart.high == pytest.approx(0.6)
