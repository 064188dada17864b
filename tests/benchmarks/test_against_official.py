"""Tests the comparison's arithmetic, its synthetic clips and its refusals. Users bring the official code themselves."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from benchmarks import against_official  # noqa: PLC0415

    return against_official


def spent(benchmark: ModuleType, seconds: float) -> dict[str, float]:
    return dict.fromkeys((*benchmark.LC, *benchmark.IC), seconds)


def test_ratios_are_of_the_same_turn(benchmark: ModuleType) -> None:
    theirs = [spent(benchmark, 6.0), spent(benchmark, 8.0), spent(benchmark, 30.0)]
    ours = [spent(benchmark, 3.0), spent(benchmark, 2.0), spent(benchmark, 10.0)]
    ours[1]["ViT"] = 8.0
    assert benchmark._ratios(theirs, ours, "ViT") == [2.0, 1.0, 3.0]
    assert benchmark._ratios(theirs, ours, "LC reward") == [3.0, 2.0, 4.0]
    assert benchmark._times(theirs, "whole reward") == 6 * 8.0


def test_differences_and_agreement_by_hand(benchmark: ModuleType) -> None:
    def scored(lc: float, token: float = 0.0) -> object:
        tokens, flow = torch.full((1, 1, 2), token), torch.zeros(1, 2, 1, 1)
        return benchmark.SideReward(tokens=tokens, flow=flow, lc=lc, ic=0.0)

    assert benchmark.differences(scored(1.0, 0.5), scored(3.0)) == {
        "tokens": 0.5,
        "flow_px": 0.0,
        "lc_logit": 2.0,
        "ic_logit": 0.0,
    }
    exact = [scored(value) for value in (1.0, 2.0, 3.0)]
    shifted = [scored(value + 10) for value in (1.0, 2.0, 3.0)]
    swapped = [scored(value) for value in (2.0, 1.0, 3.0)]
    assert benchmark.agreement(exact, shifted)["lc_spearman"] == pytest.approx(1.0)
    assert benchmark.agreement(exact, shifted)["lc_error_of_spread"] == pytest.approx(0.0)
    assert benchmark.agreement(exact, swapped)["lc_spearman"] == pytest.approx(0.5)
    assert benchmark.agreement(exact, swapped)["lc_error_of_spread"] == pytest.approx(1.0)


def test_made_up_clips_move_and_repeat(benchmark: ModuleType) -> None:
    case, again, other = (benchmark.Case.made_up(seed, 3, 5) for seed in (1, 1, 2))
    assert case.frames.shape == (3, 3, 320, 576)
    assert torch.equal(case.frames, again.frames) and torch.equal(case.queries, again.queries)
    assert not torch.equal(case.frames, other.frames)
    assert not torch.equal(case.frames[0], case.frames[1])
    assert float(case.frames.min()) >= 0 and float(case.frames.max()) <= 255


def test_stages_are_timed_and_left_as_they_were(benchmark: ModuleType) -> None:
    from benchmarks import sides  # noqa: PLC0415

    layer, seen = torch.nn.Linear(2, 2), []

    def timed(stage: str, call: object, *given: object) -> object:
        seen.append(stage)
        return call(*given)  # type: ignore[operator]

    with sides._watched({"updater": (layer, "forward")}, timed):
        layer(torch.zeros(1, 2))
    layer(torch.zeros(1, 2))
    assert seen == ["updater"]
    assert "forward" not in vars(layer)


def test_a_folder_that_is_no_checkout_is_named(benchmark: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"has no cotracker/models/core/cotracker/cotracker3_offline.py: give the root"
    ):
        benchmark.official.load(tmp_path, tmp_path, 0)


def test_unknown_parts_are_refused(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark._arguments(["--cotracker=a", "--searaft=b", "--parts=speed,beauty"])
    assert "no such part: beauty" in capsys.readouterr().err


def test_cpu_time_is_a_clock(benchmark: ModuleType) -> None:
    clock = benchmark.clock_of(Namespace(cpu_time=True, device="cpu"))
    start = clock()
    sum(range(10**6))
    assert clock() > start


def test_glibc_takes_both_ways_to_allocate(benchmark: ModuleType) -> None:
    told = benchmark.keep_big_blocks()
    assert benchmark.as_shipped() is told
