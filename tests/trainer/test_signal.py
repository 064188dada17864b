"""Tests what a buffer's rewards can teach: figures worked out by hand, and what a run does with weak rewards."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.trainer_runs import figures, tiny_config, trained_bytes
from trainer.checkpoint import read_about
from trainer.config import Config, load
from trainer.errors import ConfigError, WeakSignal
from trainer.measures.signal import SignalQuality, clipped_table, reward_signal, signal_quality
from trainer.objective import ClipReward, GroupRewards
from trainer.rewards.source import ClipGroup, Collected, NoRewards
from trainer.run import open_run
from trainer.train import train

NAN = math.nan
NONE_TWICE = torch.zeros(0, 2, 3, dtype=torch.float64)


def tensor(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- figures ------------------------------------------------------------------------------------


def test_gap_spread_and_auc_of_two_groups() -> None:
    """Gaps 4 - 2 and 0 - 2. Deviations from the groups' means -1, 1, 0, 0 over 2 degrees of freedom."""
    found = reward_signal(tensor([4, 1, 3], [0, 2, 2]), NONE_TWICE, centre="group")
    assert (found.gap, found.spread, found.auc) == (0, 1, 0.5)
    assert math.isnan(found.noise)
    assert math.isnan(found.to_noise)


def test_equal_rewards_of_real_clips_and_rollouts_count_half_in_the_auc() -> None:
    assert reward_signal(tensor([2, 2, 1]), NONE_TWICE, centre="group").auc == 0.75


def test_noise_is_what_another_draw_changes_within_a_group() -> None:
    """Differences -1 and 1 have a variance of 2, that of two draws. A change of the whole group is no noise."""
    first = [9, 1, 3]
    swapped = reward_signal(tensor(first), tensor([first, [9, 2, 2]]), centre="group")
    assert swapped.noise == pytest.approx(1)
    assert (swapped.spread, swapped.signal, swapped.to_noise) == pytest.approx((math.sqrt(2), 1, 1))
    shifted = reward_signal(tensor(first), tensor([first, [0, 6, 8]]), centre="group")
    assert (shifted.noise, shifted.to_noise) == (0, math.inf)


def test_rewards_that_do_not_differ_have_no_signal_whatever_the_noise() -> None:
    assert reward_signal(tensor([9, 2, 2]), NONE_TWICE, centre="group").to_noise == 0


def test_rewards_centred_by_batch_spread_over_all_groups() -> None:
    """2 and 4 do not differ within their groups of one, but they do within the batch."""
    rewards = tensor([0, 2], [0, 4])
    assert math.isnan(reward_signal(rewards, NONE_TWICE[..., :2], centre="group").spread)
    assert reward_signal(rewards, NONE_TWICE[..., :2], centre="batch").spread == pytest.approx(math.sqrt(2))


def test_missing_rewards_are_left_out() -> None:
    known = reward_signal(tensor([4, 1, 3], [NAN, NAN, 7]), tensor([[4, 1, 3], [4, NAN, 3]]), centre="group")
    assert (known.gap, known.spread) == (2, math.sqrt(2))
    assert math.isnan(known.noise)


def test_signal_and_noise_of_many_groups_are_found_back() -> None:
    """True rewards differ with deviation 0.6, each draw adds noise of deviation 0.3 and an offset to its group."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    true = 0.6 * normal(2000, 1, 5)
    twice = true + 0.3 * normal(2000, 2, 5) + 5 * normal(2000, 2, 1)
    found = reward_signal(twice[:, 0], twice, centre="group")
    assert (found.signal, found.noise, found.to_noise) == pytest.approx((0.6, 0.3, 2), rel=0.05)


def quality(instantaneous: Tensor, long_term: Tensor) -> SignalQuality:
    tables = {
        "combined": (instantaneous + long_term) / 2,
        "instantaneous": instantaneous,
        "long_term": long_term,
    }
    twice = {name: torch.stack([table, table], dim=1) for name, table in tables.items()}
    return signal_quality(tables, twice, centre="group", clipped=tensor([1, 0, NAN, 0]), clipped_advantages=0.5)


def test_ranks_of_the_discriminators_are_compared_within_groups() -> None:
    """The groups' correlations are 1, -0.5 and, without an order in one of them, none. Levels do not matter."""
    instantaneous = tensor([0, 1, 2, 9], [0, 1, 2, 3], [0, 5, 5, 5])
    long_term = tensor([0, -8, -7, -6], [0, 50, 70, 40], [0, 1, 2, 3])
    found = quality(instantaneous, long_term)
    assert found.head_ranks == pytest.approx((1 - 0.5) / 2)
    assert found.clipped_rewards == pytest.approx(1 / 3)
    assert (found.clipped_advantages, found.num_twice) == (0.5, 3)


def test_clipped_rewards_are_counted_among_the_known() -> None:
    clipped, other = (ClipReward(reward=1, version="v", clipped=flag) for flag in (True, False))
    found = clipped_table([GroupRewards(real=clipped, rollouts=(None, other))])
    torch.testing.assert_close(found, tensor([1, NAN, 0]), equal_nan=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["signal.noise_share=2"], r"signal.noise_share is 2; give a share from 0 \(off\) to 1"),
        (["signal.min_to_noise=-1"], r"signal.min_to_noise is -1.0; give 0 or more"),
        (["signal.on_weak=panic"], r"give one of warn, stop, refresh"),
        (["signal.on_weak=stop", "signal.noise_share=0"], r"signal.on_weak is stop, but signal.noise_share is 0"),
        (["signal.on_weak=refresh", "refresh.enabled=false"], r"on_weak is refresh, but refresh.enabled is false"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(None, overrides)


# --- runs ---------------------------------------------------------------------------------------


class DrawnRewards(NoRewards):
    """Rewards that depend on a group's name alone, as if they were nothing but noise of the query points.

    With `steady`, all names of one group of clips give the same rewards: there is no noise. After a refresh they are.
    """

    def __init__(self, *, steady: bool = False) -> None:
        self.submitted: list[ClipGroup] = []
        self.asked: list[Sequence[str]] = []  # the keys of each request for rewards
        self._steady = steady

    def pin(self) -> str:
        return "drawn-1"

    def knows(self, key: str, num_clips: int) -> bool:
        return key in [group.key for group in self.submitted]

    def submit(self, group: ClipGroup) -> None:
        self.submitted.append(group)

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        self.asked.append(keys)
        by_key = {group.key: group for group in self.submitted}
        return Collected(groups=tuple(self._scored(by_key[key], num_clips) for key in keys), latencies_s=(), errors={})

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        return f"steady-{key.rpartition('/')[2]}-{steps}"

    def _scored(self, group: ClipGroup, num_clips: int) -> GroupRewards:
        steady = self._steady or group.discriminator_version.startswith("steady")
        name = group.key.removesuffix("-noise") if steady else group.key
        real, *rollouts = (self._reward(name, at, group.discriminator_version) for at in range(num_clips))
        return GroupRewards(real=real, rollouts=tuple(rollouts))

    def _reward(self, name: str, at: int, version: str) -> ClipReward:
        drawn = hashlib.sha256(f"{name}/{at}".encode()).digest()[0] / 256
        heads = {"instantaneous": drawn, "long_term": drawn}
        return ClipReward(reward=drawn + 10 * (at == 0), version=version, discriminators=heads)


QUIET = ("logs.samples_every_buffers=0", "signal.noise_share=1")


def run_with(config: Config, rewards: NoRewards) -> None:
    with open_run(config, rewards=rewards) as run:
        train(run)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without those of the reader about the clips."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name != "trainer.data"
    ]


def test_without_a_share_nothing_is_scored_again(svd: Path, clips: Path, tmp_path: Path) -> None:
    rewards = DrawnRewards()
    run_with(tiny_config(tmp_path / "run", svd, clips, *QUIET, "signal.noise_share=0"), rewards)
    assert [len(keys) for keys in rewards.asked] == [2, 2]
    assert not any(key.endswith("-noise") for keys in rewards.asked for key in keys)


def test_weak_rewards_are_warned_of_once_a_buffer_and_logged(
    svd: Path, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same run without noise has the same steps and no warning: scoring again changes nothing but the logs."""
    weak, strong = (tiny_config(tmp_path / name, svd, clips, *QUIET) for name in ("weak", "strong"))
    noisy = DrawnRewards()
    with caplog.at_level(logging.INFO, "trainer.scoring"):
        run_with(replace(weak, signal=replace(weak.signal, min_to_noise=1e9)), noisy)
    sentence = "rewards within a group differ by less than 1e+09 times their own noise: this run is supervised"
    assert [sentence in line for line in warnings_of(caplog)] == [True, True]
    assert "(buffer 1); see 'When rewards teach nothing'" in warnings_of(caplog)[1]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(told) == 2
    assert "buffer 0: rewards within a group differ by" in told[0]
    assert "AUC 1.00" in told[0]
    caplog.clear()
    run_with(strong, DrawnRewards(steady=True))
    assert not warnings_of(caplog)
    assert trained_bytes(strong.out, 8) == trained_bytes(weak.out, 8)
    for name in ("gap", "spread", "noise", "to_noise", "auc"):
        assert len(figures(weak.out, f"signal_{name}/combined")) == 2, name
    assert figures(strong.out, "signal_noise/long_term") == [0, 0]
    assert figures(strong.out, "signal_auc/combined") == [1, 1]
    assert figures(strong.out, "signal/head_ranks") == pytest.approx([1, 1])
    assert figures(weak.out, "signal/groups_scored_twice") == [2, 2]
    events = EventAccumulator(str(weak.out / "logs" / "shift"))
    events.Reload()
    assert {"signal_to_noise/combined", "signal/clipped_rewards"} <= set(events.Tags()["scalars"])
    assert all(group.trains != group.key.endswith("-noise") for group in noisy.submitted)
    assert sum(group.trains for group in noisy.submitted) == 4


def test_a_share_of_the_groups_is_scored_again(svd: Path, clips: Path, tmp_path: Path) -> None:
    rewards = DrawnRewards()
    options = ("loop.buffer_clips=4", "loop.num_buffers=1", "loop.passes=1", *QUIET, "signal.noise_share=0.3")
    run_with(tiny_config(tmp_path, svd, clips, *options), rewards)
    assert sum(group.key.endswith("-noise") for group in rewards.submitted) == 2  # 1.2 of 4, rounded up
    assert len(rewards.submitted) == 6


def test_weights_choose_the_discriminator_that_trains(svd: Path, clips: Path, tmp_path: Path) -> None:
    """The long-term discriminator's rewards are twice the other's. Nothing is clipped."""

    class Doubled(DrawnRewards):
        def _reward(self, name: str, at: int, version: str) -> ClipReward:
            found = super()._reward(name, at, version)
            level = found.discriminators["long_term"]
            return replace(found, discriminators={"instantaneous": level, "long_term": 2 * level})

    short = (*QUIET, "loop.num_buffers=1", "loop.passes=1", "objective.neg_adv_lambda=0")
    weights = {"first": "{long_term: 0}", "second": "{instantaneous: 0}", "both": "{}"}
    for name, given in weights.items():
        options = (*short, f"rewards.weights={given}", f"objective.per_discriminator={name == 'both'}")
        run_with(tiny_config(tmp_path / name, svd, clips, *options), Doubled())
    spread = {name: figures(tmp_path / name, "signal_spread/combined")[0] for name in weights}
    assert spread["second"] == pytest.approx(2 * spread["first"])
    assert spread["both"] == pytest.approx(1.5 * spread["first"])
    terms = {name: figures(tmp_path / name, "loss/aw_term")[0] for name in weights}
    assert terms["second"] == pytest.approx(2 * terms["first"])
    assert terms["both"] == pytest.approx(1.5 * terms["first"])


ALWAYS_WEAK = ("signal.min_to_noise=1e9",)


def test_a_run_can_stop_at_weak_rewards_and_go_on_after_a_change(svd: Path, clips: Path, tmp_path: Path) -> None:
    options = (*QUIET, *ALWAYS_WEAK, "loop.num_buffers=1")
    with pytest.raises(WeakSignal, match=r"their own noise: this run is supervised .*signal.on_weak=warn to go on"):
        run_with(tiny_config(tmp_path, svd, clips, *options, "signal.on_weak=stop"), DrawnRewards())
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    run_with(tiny_config(tmp_path, svd, clips, *options), DrawnRewards())
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()


def test_plain_replay_uses_no_reward_and_has_no_weak_ones(
    svd: Path, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = (*QUIET, *ALWAYS_WEAK, "objective.weighting=uniform", "loop.num_buffers=1", "loop.passes=1")
    run_with(tiny_config(tmp_path, svd, clips, *options), DrawnRewards())
    assert not warnings_of(caplog)


class Stopped(Exception):
    """Stands for the end of the process."""


def stops_at(name: str) -> Callable[..., None]:
    def stop(*_: object, **__: object) -> None:
        raise Stopped(name)

    return stop


@pytest.mark.parametrize("point", ["before the refresh is saved", "in the rescored buffer"])
def test_weak_rewards_can_be_refreshed_and_scored_again(svd: Path, clips: Path, tmp_path: Path, point: str) -> None:
    """Once a buffer, and exactly the same after a resume. The steady rewards of the refreshed are not weak."""
    options = (*QUIET, "signal.min_to_noise=1e9", "signal.on_weak=refresh", "refresh.enabled=true")
    whole, cut = (tiny_config(tmp_path / name, svd, clips, *options) for name in ("whole", "cut"))
    rewards = DrawnRewards()
    run_with(whole, rewards)
    versions = list(dict.fromkeys(group.discriminator_version for group in rewards.submitted))
    assert versions == ["drawn-1", "steady-0-early-4", "steady-0-4"]
    rescored = [group for group in rewards.submitted if group.discriminator_version == "steady-0-early-4"]
    assert [group.trains for group in rescored] == [False] * 4  # the server has their motion already
    assert len({group.key for group in rewards.submitted}) == len(rewards.submitted)
    with open_run(cut, rewards=DrawnRewards()) as run, pytest.raises(Stopped):
        if point == "in the rescored buffer":
            run.board.advance = stops_at(point)  # type: ignore[method-assign]
        else:
            run.checkpoints.save = stops_at(point)  # type: ignore[method-assign]
        train(run)
    saved = sorted((cut.out / "checkpoints").glob("step-*"))
    if point == "in the rescored buffer":
        assert read_about(saved[-1])["progress"]["rescored"] is True
    else:
        assert not saved
    run_with(cut, DrawnRewards())
    assert trained_bytes(cut.out, 8) == trained_bytes(whole.out, 8)
    assert read_about(cut.out / "checkpoints" / "step-00000008")["progress"]["rescored"] is False
