"""Tests Algorithm 1 on the toy bases: every stage with a real reward server, exact resume, two processes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from protos.client import RewardClient
from protos.error_codes import ErrorCode
from protos.types import DYNAMICS, REWARDS, Clip, Dynamics
from reward_server.serving.private_redis import PrivateRedis
from tests.pixel_scorer import pixel_dynamics
from tests.reward_stack import RewardStack, calm_logits
from tests.trainer_runs import ROOT, SVD, WAN, figures, launch, metrics, tiny_config, trained_bytes
from trainer import checkpoint
from trainer.checkpoint import read_about, trainable
from trainer.config import Config
from trainer.errors import (
    CheckpointError,
    ConfigError,
    Diverged,
    GateFailed,
    MissingRewards,
    RewardsSilent,
    VersionLost,
)
from trainer.objective import ClipReward, GroupRewards
from trainer.policies.lora import LoraSize
from trainer.policies.tiny import tiny_wan
from trainer.rewards.source import ClipGroup, Collected, NoRewards
from trainer.run import open_run
from trainer.train import batches, due, run_training, train

QUIET = ("logs.samples_every_buffers=0",)
WITHOUT_SERVER = ("rewards.server=''", "objective.weighting=uniform", *QUIET)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def stack(redis_server: PrivateRedis) -> Iterator[RewardStack]:
    with RewardStack(redis_server.url) as running:
        yield running


class InstantRewards(NoRewards):
    """Computes rewards in this process by the formula of the stack's scorer, for tests of the loop alone.

    After `die_after` groups it kills the process, like a failing machine.
    """

    def __init__(self, *, die_after: int = 10**9) -> None:
        self.groups: dict[str, GroupRewards] = {}
        self._die_after = die_after

    def pin(self) -> str:
        return "calm-1"

    def knows(self, key: str, num_clips: int) -> bool:
        return key in self.groups

    def submit(self, group: ClipGroup) -> None:
        if len(self.groups) == self._die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        real, *rollouts = (_scored(clip, group.discriminator_version) for clip in group.clips)
        self.groups[group.key] = GroupRewards(real=real, rollouts=tuple(rollouts))

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        return Collected(groups=tuple(self.groups[key] for key in keys), latencies_s=(), errors={})

    def refresh(self, steps: int, *, seed: int, key: str) -> str:
        return f"calm-after-{key.rsplit('/', 1)[1]}"


def _scored(clip: Clip, version: str) -> ClipReward:
    logits = calm_logits(clip)
    discriminators = {"instantaneous": logits.instantaneous, "long_term": logits.long_term}
    return ClipReward(
        reward=(logits.instantaneous + logits.long_term) / 2,
        version=version,
        discriminators=discriminators,
        dynamics=pixel_dynamics(clip),
    )


def run_alone(config: Config) -> None:
    with open_run(config, rewards=InstantRewards()) as run:
        train(run)


# --- end to end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["svd", "wan"])
def test_a_run_goes_through_every_stage(
    kind: str, request: pytest.FixtureRequest, clips: Path, stack: RewardStack, tmp_path: Path
) -> None:
    """Clips, rollouts, rewards from the results stream, steps, logs, samples and checkpoints."""
    base, shape = request.getfixturevalue(kind), {"svd": SVD, "wan": WAN}[kind]
    server = (f"rewards.server={stack.url}", f"rewards.redis_url={stack.redis_url}")
    progress = run_training(tiny_config(tmp_path, base, clips, *server, kind=shape))
    assert (progress.step, progress.buffer, progress.version) == (8, 2, "pixels-1")
    assert figures(tmp_path, "buffer/number") == [0.0, 1.0]
    assert figures(tmp_path, "buffer/missing_rewards") == [0.0, 0.0]
    assert figures(tmp_path, "buffer/lag_max_steps") == [0.0, 0.0]
    assert all(ratio > 0 for ratio in figures(tmp_path, "gradient/aw_over_sft"))
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        f"buffer-{number:06d}-slot-{2 * number:08d}.mp4" for number in (0, 1)
    }
    last = tmp_path / "checkpoints" / "step-00000008"
    assert (last / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert not list((tmp_path / "buffers").iterdir())
    events = EventAccumulator(str(tmp_path / "logs" / "shift"))
    events.Reload()
    tags = events.Tags()
    assert "loss/total" in tags["scalars"]
    assert "advantage_rollouts/long_term/histogram" in tags["histograms"]
    assert tags["images"] == ["samples/0"] and len(figures(tmp_path, "advantage_spread/combined")) == 2
    assert events.Images("samples/0")[0].encoded_image_string.startswith(b"GIF89a")
    assert all(0 <= share <= 1 for share in figures(tmp_path, "buffer/waited_share"))
    assert {f"reward_rollouts/{name}" for name in REWARDS} <= set(tags["scalars"])
    assert len(figures(tmp_path, "reward_rollouts/long_term")) == 2
    assert "dynamic/share" in tags["scalars"]
    assert set(figures(tmp_path, "dynamic/share")) <= {0.0, 1.0} and len(figures(tmp_path, "dynamic/share")) == 2
    assert (tmp_path / "run.html").read_text().count("<video") == 2
    for whose in ("dynamics_real", "dynamics_rollouts"):
        assert {f"{whose}/{name}" for name in DYNAMICS} <= set(tags["scalars"])
        assert len(figures(tmp_path, f"{whose}/total_motion")) == 2
    assert not figures(tmp_path, "dynamics_floor/share")  # the floor is off


def test_server_rewards_equal_those_computed_in_process(
    svd: Path, clips: Path, stack: RewardStack, tmp_path: Path
) -> None:
    """The same run with the formula in this process has the same advantages and the same steps, bit for bit."""
    server = (f"rewards.server={stack.url}", f"rewards.redis_url={stack.redis_url}", *QUIET)
    run_training(tiny_config(tmp_path / "server", svd, clips, *server))
    run_alone(tiny_config(tmp_path / "alone", svd, clips, *QUIET))
    for name in ("advantage_rollouts/combined", "advantage_real/long_term", "loss/total"):
        assert figures(tmp_path / "server", name) == figures(tmp_path / "alone", name)
    assert trained_bytes(tmp_path / "server", 8) == trained_bytes(tmp_path / "alone", 8)


def test_a_floor_of_dynamics_changes_the_advantages_of_rollouts_below_it(
    svd: Path, clips: Path, tmp_path: Path
) -> None:
    """The first rollout of each group is said to stand still, the second to move like its real clip."""

    class Told(InstantRewards):
        def submit(self, group: ClipGroup) -> None:
            super().submit(group)
            told = [
                replace(scored, dynamics=moving(by)) for scored, by in zip(self._all(group), (2, 0, 2), strict=True)
            ]
            rollouts = (replace(told[1], reward=9.0), replace(told[2], reward=1.0))
            self.groups[group.key] = GroupRewards(real=told[0], rollouts=rollouts)

        def _all(self, group: ClipGroup) -> list[ClipReward]:
            known = self.groups[group.key]
            return [scored for scored in (known.real, *known.rollouts) if scored]

    for name, floor in (("off", "0"), ("on", "0.5")):
        config = tiny_config(tmp_path / name, svd, clips, f"rewards.min_dynamics={floor}", *QUIET)
        with open_run(config, rewards=Told()) as run:
            train(run)
    assert figures(tmp_path / "off", "advantage_rollouts/combined") == [0.0, 0.0]  # 4 and -4
    assert figures(tmp_path / "on", "advantage_rollouts/combined") == [-4.0, -4.0]
    assert figures(tmp_path / "on", "dynamics_floor/share") == [0.5, 0.5]
    assert figures(tmp_path / "off", "dynamics_rollouts/total_motion") == [1.0, 1.0]
    with pytest.raises(CheckpointError, match=r"rewards.min_dynamics: 0.0, was 0.5"):
        run_alone(tiny_config(tmp_path / "on", svd, clips, *QUIET))


def moving(by: float) -> Dynamics:
    return Dynamics(**{**dict.fromkeys(DYNAMICS, 0.0), "total_motion": by})


def test_the_loss_falls_on_clips_that_are_repeated(svd: Path, clips: Path, tmp_path: Path) -> None:
    """Draws are the same before and after. All weights are trained: a small LoRA changes a random base little."""
    options = ("loop.num_buffers=1", "loop.num_rollouts=0", "loop.passes=15", "optimizer.lr=0.003", *WITHOUT_SERVER)
    whole = ("policy.lora=null", "policy.condition_dropout=0", "checkpoint.every_steps=0")
    config = tiny_config(tmp_path, svd, clips, *options, *whole)
    with open_run(config) as run:
        examples = run.policy.encode([run.clips.at(slot).clip for slot in (0, 1)], ["", ""])
        from trainer.policies.protocol import stack as stacked  # noqa: PLC0415

        batch = stacked([example for example in examples for _ in range(8)])
        draw = run.policy.draw(16, torch.Generator().manual_seed(0))

        def loss() -> float:
            with torch.no_grad():
                return float(run.policy.losses(batch, draw).mean())

        before = loss()
        train(run)
        after = loss()
    assert after < 0.9 * before


# --- resume -------------------------------------------------------------------------------------


def interrupted(config: Config, *, die_after: int) -> None:
    """Run in a process that is killed when it submits group number `die_after`."""
    code = (
        "import sys; from tests.trainer.test_trainer_loop import *\n"
        "from trainer.config import load\n"
        "torch.set_num_threads(1)\n"
        "with open_run(load(sys.argv[1]), rewards=InstantRewards(die_after=int(sys.argv[2]))) as run: train(run)"
    )
    path = config.out.with_suffix(".yaml")
    from trainer.config import to_yaml  # noqa: PLC0415

    path.write_text(to_yaml(config))
    done = subprocess.run([sys.executable, "-c", code, str(path), str(die_after)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_killed_while_filling_a_buffer_resumes_exactly(svd: Path, clips: Path, tmp_path: Path) -> None:
    whole = tiny_config(tmp_path / "whole", svd, clips, *QUIET)
    run_alone(whole)
    killed = tiny_config(tmp_path / "killed", svd, clips, *QUIET)
    interrupted(killed, die_after=3)
    assert len(list((killed.out / "buffers" / "000001").glob("*.safetensors"))) == 2
    run_alone(killed)
    assert trained_bytes(killed.out, 8) == trained_bytes(whole.out, 8)


class Stopped(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [3, 6])
def test_a_run_stopped_within_a_buffer_resumes_exactly(svd: Path, clips: Path, tmp_path: Path, after: int) -> None:
    """Stopped between checkpoints, in the first or second buffer. The next process has only the files."""
    whole = tiny_config(tmp_path / "whole", svd, clips, "checkpoint.every_steps=2", *QUIET)
    run_alone(whole)
    stopped = tiny_config(tmp_path / "stopped", svd, clips, "checkpoint.every_steps=2", *QUIET)
    with open_run(stopped, rewards=InstantRewards()) as run, pytest.raises(Stopped):
        steps = iter(range(1, 9))

        def advance(_: int) -> None:
            if next(steps) == after:
                raise Stopped

        run.board.advance = advance  # type: ignore[method-assign]
        train(run)
    run_alone(stopped)
    assert trained_bytes(stopped.out, 8) == trained_bytes(whole.out, 8)


def test_a_kill_during_a_checkpoints_replacement_keeps_the_new(
    svd: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 4, the end of the buffer, a second checkpoint of that step replaces the first. No other one is kept."""
    often = ("checkpoint.every_steps=2", "checkpoint.keep=1", *QUIET)
    whole, killed = (tiny_config(tmp_path / name, svd, clips, *often) for name in ("whole", "killed"))
    run_alone(whole)
    rename = Path.rename

    def between(path: Path, target: Path) -> Path:
        if (target.parent / f".{target.name}.removed").exists():
            raise Stopped
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", between)
        with pytest.raises(Stopped):
            run_alone(killed)
    checkpoints = killed.out / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [".step-00000004.partial", ".step-00000004.removed"]
    run_alone(killed)
    assert trained_bytes(killed.out, 8) == trained_bytes(whole.out, 8)
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000008"]


def test_another_number_of_processes_cannot_resume_in_a_buffer(svd: Path, clips: Path, tmp_path: Path) -> None:
    """The slots of a process and the steps of a pass depend on the number of processes."""
    config = tiny_config(tmp_path, svd, clips, "loop.num_buffers=1", *WITHOUT_SERVER)
    run_training(config)
    checkpoints = tmp_path / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000004")
    path = checkpoints / "step-00000003" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_processes": 2}))
    with pytest.raises(
        CheckpointError, match=r"2 processes, but this run has 1; start 2 processes, or .* after the start"
    ):
        run_training(config)


def test_the_checkpoint_at_the_start_of_a_buffer_is_kept(svd: Path, clips: Path, tmp_path: Path) -> None:
    often = ("checkpoint.every_steps=1", "checkpoint.keep=1", "loop.num_buffers=2", *WITHOUT_SERVER)
    config = tiny_config(tmp_path, svd, clips, *often)
    run_training(config)
    checkpoints = tmp_path / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000008"]
    longer = tiny_config(tmp_path, svd, clips, *often, "loop.num_buffers=3")
    with open_run(longer) as run, pytest.raises(Stopped):
        advance, steps = run.board.advance, iter(range(3))

        def stops(buffer: int) -> None:
            advance(buffer)
            if next(steps) == 2:
                raise Stopped

        run.board.advance = stops  # type: ignore[method-assign]
        train(run)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000008", "step-00000010"]


def test_every_process_gets_its_own_generator_back() -> None:
    """All processes but the first once crashed: torch misreads a state that is a row of a larger tensor."""
    own, first = torch.get_rng_state(), torch.Generator().manual_seed(1).get_state()
    second: Any = SimpleNamespace(process_index=1, device=torch.device("cpu"))
    checkpoint._set_generators({"cpu": torch.stack([first, own])}, second)
    assert torch.equal(torch.get_rng_state(), own)


def test_a_run_resumes_only_with_the_same_settings(svd: Path, clips: Path, tmp_path: Path) -> None:
    run_training(tiny_config(tmp_path, svd, clips, "loop.num_buffers=1", "loop.passes=1", *WITHOUT_SERVER))
    changed = tiny_config(tmp_path, svd, clips, "loop.num_buffers=1", "loop.passes=3", "seed=1", *WITHOUT_SERVER)
    with pytest.raises(CheckpointError, match=r"loop\.passes: 3, was 1; seed: 1, was 0"):
        run_training(changed)
    longer = tiny_config(tmp_path, svd, clips, "loop.num_buffers=2", "loop.passes=1", *WITHOUT_SERVER)
    assert run_training(longer).step == 4


def test_only_some_settings_may_change_on_resume(svd: Path, clips: Path, tmp_path: Path) -> None:
    options = ("loop.num_buffers=1", "loop.passes=1", *WITHOUT_SERVER)
    run_training(tiny_config(tmp_path, svd, clips, *options))
    spared = ("policy.group_size=1", "policy.decode_chunk=2", "policy.gradient_checkpointing=true", "refresh.lr=0.5")
    longer = tiny_config(tmp_path, svd, clips, *options, "loop.num_buffers=2", *spared, "rewards.max_retries=9")
    assert run_training(longer).step == 4
    with pytest.raises(CheckpointError, match=r"rewards\.real_as: 'pixels', was 'decoded'"):
        run_training(tiny_config(tmp_path, svd, clips, *options, "rewards.real_as=pixels"))


def test_a_refresh_without_a_server_is_refused_before_sampling(svd: Path, clips: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, svd, clips, *WITHOUT_SERVER, "refresh.enabled=true")
    with pytest.raises(ConfigError, match=r"refresh\.enabled is true, but rewards\.server is empty"):
        run_training(config)
    assert not (tmp_path / "buffers").exists()


def test_only_the_latest_checkpoints_are_kept(svd: Path, clips: Path, tmp_path: Path) -> None:
    run_training(tiny_config(tmp_path, svd, clips, "checkpoint.keep=2", "loop.num_buffers=1", *WITHOUT_SERVER))
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == ["step-00000003", "step-00000004"]
    about = read_about(tmp_path / "checkpoints" / folders[1])["progress"]
    assert (about["step"], about["buffer"], about["position"]) == (4, 1, 0)


# --- the parts ----------------------------------------------------------------------------------


def test_passes_cover_the_buffer_shuffled_from_the_second_on(svd: Path, clips: Path, tmp_path: Path) -> None:
    options = ("loop.buffer_clips=8", "loop.batch_clips=2", "loop.passes=3", *WITHOUT_SERVER)
    with open_run(tiny_config(tmp_path, svd, clips, *options)) as run:
        from trainer.train import new_buffer  # noqa: PLC0415

        buffer = new_buffer(run, 0, "")
        rows = list(batches(run, buffer, 0))
        passes = [[row for step in rows[4 * number : 4 * number + 4] for row in step] for number in range(3)]
        assert passes[0] == list(range(8))
        assert all(sorted(one) == list(range(8)) for one in passes)
        assert len({tuple(one) for one in passes}) == 3
        assert list(batches(run, buffer, 5)) == rows[5:]


@pytest.mark.parametrize(
    ("max_lag", "expected"), [(0, [0] * 8), (4, [0, 0, 0, 0, 1, 2, 3, 4]), (99, [1, 1, 2, 2, 3, 3, 4, 4])]
)
def test_the_next_buffer_begins_no_earlier_than_lag_allows(
    svd: Path, clips: Path, tmp_path: Path, max_lag: int, expected: list[int]
) -> None:
    options = ("loop.buffer_clips=4", "loop.passes=2", f"loop.max_lag={max_lag}", *WITHOUT_SERVER)
    with open_run(tiny_config(tmp_path, svd, clips, *options)) as run:
        assert [due(run, 4, position) for position in range(8)] == expected


def test_a_run_with_lag_samples_ahead_and_logs_the_lag(svd: Path, clips: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, svd, clips, "loop.max_lag=2", "refresh.enabled=true", *QUIET)
    with open_run(config, rewards=InstantRewards()) as run:
        progress = train(run)
    assert figures(tmp_path, "buffer/lag_max_steps") == [0.0, 2.0]
    assert figures(tmp_path, "buffer/lag_mean_steps") == [0.0, 1.5]
    assert progress.version == "calm-after-1"
    assert progress.buffer_version == "calm-after-1"


def test_a_run_that_dies_in_its_refresh_keeps_the_next_buffer(svd: Path, clips: Path, tmp_path: Path) -> None:
    """The server already has the next buffer, under the earlier version. It must not get a new version."""

    class Deaf(InstantRewards):
        def refresh(self, steps: int, *, seed: int, key: str) -> str:
            raise RewardsSilent("the server went away")

    options = ("loop.max_lag=2", "refresh.enabled=true", "checkpoint.every_steps=4", *QUIET)
    whole, cut = (tiny_config(tmp_path / name, svd, clips, *options) for name in ("whole", "cut"))
    run_alone(whole)
    with pytest.raises(RewardsSilent), open_run(cut, rewards=Deaf()) as run:
        train(run)
    rewards = InstantRewards()
    with open_run(cut, rewards=rewards) as run:
        train(run)
    assert {group.real.version for group in rewards.groups.values() if group.real} == {"calm-1"}
    assert trained_bytes(cut.out, 8) == trained_bytes(whole.out, 8)


def test_lost_discriminators_end_the_run(svd: Path, clips: Path, tmp_path: Path) -> None:
    """The errors are not masked like failures of single clips: the buffer would be trained on without rewards.

    They are also forgotten, so that the run can be started again once the server has the discriminators back.
    """

    class Forgetful(InstantRewards):
        forgotten: Sequence[str] = ()

        def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
            return replace(super().collect(keys, num_clips), errors={ErrorCode.VERSION_NOT_SERVED: 1})

        def forget_missing(self, keys: Sequence[str], num_clips: int) -> None:
            self.forgotten = keys

    rewards = Forgetful()
    with (
        open_run(tiny_config(tmp_path, svd, clips, *QUIET), rewards=rewards) as run,
        pytest.raises(VersionLost, match="'calm-1', which buffer 0 needs"),
    ):
        train(run)
    assert list(rewards.forgotten) == list(rewards.groups)


def test_a_gradient_that_is_not_finite_ends_the_run_unchanged(svd: Path, clips: Path, tmp_path: Path) -> None:
    with open_run(tiny_config(tmp_path, svd, clips, *QUIET), rewards=InstantRewards()) as run:
        before = [parameter.detach().clone() for _, parameter in trainable(run.policy.module)]
        parameter = next(iter(trainable(run.policy.module)))[1]
        parameter.register_hook(lambda gradient: gradient * float("inf"))
        with pytest.raises(Diverged, match=r"step 0 is (inf|nan)"):
            train(run)
        after = [parameter for _, parameter in trainable(run.policy.module)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_accelerates_mixed_precision_is_refused(
    svd: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="mixed precision bf16"), open_run(tiny_config(tmp_path, svd, clips)):
        pass


def test_a_refresh_changes_the_version_of_the_next_buffer(svd: Path, clips: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, svd, clips, "loop.num_buffers=3", "loop.passes=1", "refresh.enabled=true", *QUIET)
    rewards = InstantRewards()
    with open_run(config, rewards=rewards) as run:
        train(run)
    versions = [group.real.version for group in rewards.groups.values() if group.real]
    assert versions == ["calm-1", "calm-1", "calm-after-0", "calm-after-0", "calm-after-1", "calm-after-1"]


@pytest.mark.parametrize("on_gate", ["keep", "stop"])
def test_a_refused_refresh_keeps_the_version_or_ends_the_run(
    svd: Path, clips: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, on_gate: str
) -> None:
    class Gated(InstantRewards):
        def refresh(self, steps: int, *, seed: int, key: str) -> str:
            if key.endswith("/0"):
                raise GateFailed("the AUC fell")
            return super().refresh(steps, seed=seed, key=key)

    options = ("loop.passes=1", "refresh.enabled=true", f"refresh.on_gate={on_gate}", *QUIET)
    rewards = Gated()
    with open_run(tiny_config(tmp_path, svd, clips, *options), rewards=rewards) as run:
        if on_gate == "stop":
            with pytest.raises(GateFailed, match="the AUC fell"):
                train(run)
            return
        progress = train(run)
    assert {group.real.version for group in rewards.groups.values() if group.real} == {"calm-1"}
    assert progress.version == "calm-after-1"
    assert "THE REFRESH WAS REFUSED, and calm-1 scores on: the AUC fell" in caplog.text


def test_recomputed_clips_are_submitted_under_another_key(svd: Path, clips: Path, tmp_path: Path) -> None:
    options = ("loop.passes=1", "refresh.enabled=true", "refresh.recompute=true", *QUIET)
    rewards = InstantRewards()
    with open_run(tiny_config(tmp_path, svd, clips, *options), rewards=rewards) as run:
        train(run)
    first, second, *again = list(rewards.groups)[:4]
    assert again == [f"{first}-again", f"{second}-again"]
    assert [rewards.groups[key] for key in again] == [rewards.groups[key] for key in (first, second)]
    assert len(rewards.groups) == 8


def test_a_clip_is_decoded_once_for_all_its_rewards(svd: Path, clips: Path, tmp_path: Path) -> None:
    """The noise is measured on the same decoded clips. Only samples and a refresh's recomputing decode again."""
    options = ("signal.noise_share=1", "loop.buffer_clips=2", "loop.num_buffers=2", *QUIET)
    rewards, decoded = InstantRewards(), []
    with open_run(tiny_config(tmp_path, svd, clips, *options), rewards=rewards) as run:
        decode = run.policy.decode
        run.policy.decode = lambda latents: decoded.extend(latents) or decode(latents)  # type: ignore[method-assign]
        train(run)
    assert len(rewards.groups) == 8  # four groups, scored twice each
    assert len(decoded) == 4 * (1 + run.config.loop.num_rollouts)


def test_an_extended_run_equals_one_planned_at_full_length(svd: Path, clips: Path, tmp_path: Path) -> None:
    options = ("loop.passes=1", "refresh.enabled=true", *QUIET)
    whole, cut = (tiny_config(tmp_path / name, svd, clips, "loop.num_buffers=3", *options) for name in ("whole", "cut"))
    rewards, planned = InstantRewards(), InstantRewards()
    shorter = replace(cut, loop=replace(cut.loop, num_buffers=2))
    for config, source in ((shorter, rewards), (cut, rewards), (whole, planned)):
        with open_run(config, rewards=source) as run:
            progress = train(run)
    versions = [group.real.version for group in rewards.groups.values() if group.real]
    assert versions == [group.real.version for group in planned.groups.values() if group.real]
    assert progress.version == "calm-after-2"
    assert trained_bytes(cut.out, progress.step) == trained_bytes(whole.out, progress.step)


def test_a_buffer_without_any_reward_ends_the_run(svd: Path, clips: Path, tmp_path: Path) -> None:
    with (
        open_run(tiny_config(tmp_path, svd, clips, *QUIET), rewards=NoRewards()) as run,
        pytest.raises(MissingRewards, match="no rollout of buffer 0 has a reward"),
    ):
        train(run)


# --- several processes --------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(svd: Path, clips: Path, tmp_path: Path) -> None:
    """Each clip is used once, by one of the processes. Losses and weights agree up to rounding."""
    common = ("loop.buffer_clips=4", "loop.passes=1", "loop.num_rollouts=1", *WITHOUT_SERVER)
    one = tiny_config(tmp_path / "one", svd, clips, "loop.batch_clips=2", *common)
    two = tiny_config(tmp_path / "two", svd, clips, "loop.batch_clips=1", *common)
    run_training(one)
    assert launch(two, 2) == 0
    assert figures(two.out, "loss/total") == pytest.approx(figures(one.out, "loss/total"), rel=1e-5)
    assert figures(two.out, "gradient/norm") == pytest.approx(figures(one.out, "gradient/norm"), rel=1e-4)
    assert figures(two.out, "gradient/aw") == pytest.approx(figures(one.out, "gradient/aw"), rel=1e-3)
    from safetensors.torch import load_file  # noqa: PLC0415

    ours, theirs = (load_file(out / "checkpoints/step-00000004/trainable.safetensors") for out in (one.out, two.out))
    for name, tensor in ours.items():
        # AdamW divides a tiny gradient by itself, so its rounding changes a weight by a share of the rate of 1e-3.
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-4)
    assert len(metrics(two.out)) == len(metrics(one.out))  # only one process writes


# --- Weights & Biases ---------------------------------------------------------------------------

HAS_WANDB = importlib.util.find_spec("wandb") is not None


@pytest.mark.skipif(HAS_WANDB, reason="wandb is installed")
def test_a_missing_tracker_is_named_with_the_command(svd: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pip install wandb"):
        run_training(tiny_config(tmp_path, svd, clips, "logs.wandb=true", *WITHOUT_SERVER))


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed")
def test_a_run_is_logged_to_wandb_under_its_id(svd: Path, clips: Path, tmp_path: Path) -> None:
    """Offline and in its own process, because wandb leaves threads and files open, which are errors in tests."""
    options = ("logs.wandb=true", "loop.num_buffers=1", "run_id=run-w", f"out={tmp_path / 'run'}", *WITHOUT_SERVER)
    path = tmp_path / "config.yaml"
    from trainer.config import to_yaml  # noqa: PLC0415

    path.write_text(to_yaml(tiny_config(tmp_path, svd, clips, *options)))
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", "train", "--config", str(path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    (log,) = tmp_path.glob("wandb/offline-run-*-run-w/run-run-w.wandb")
    assert b"loss/aw_term" in log.read_bytes()


# --- evaluate and rollout -----------------------------------------------------------------------


def test_evaluate_compares_a_checkpoint_with_its_base(
    svd: Path, clips: Path, stack: RewardStack, tmp_path: Path
) -> None:
    from trainer.evaluate import evaluate_checkpoint  # noqa: PLC0415

    options = (f"rewards.server={stack.url}", "objective.weighting=uniform", "evaluate.num_clips=3", *QUIET)
    short = ("loop.num_buffers=1", "loop.passes=1", "loop.num_rollouts=0", "optimizer.lr=0.05")
    config = tiny_config(tmp_path / "run", svd, clips, *options, *short)
    run_training(config)
    summary = json.loads(evaluate_checkpoint(config, tmp_path / "out", checkpoint=None))
    assert summary["num_first_frames"] == 3
    assert summary["num_without_reward"] == 0
    assert (tmp_path / "out" / "evaluation.html").read_text().count("<video") == 3
    assert summary["discriminator_versions"] == ["pixels-1"]
    assert summary["checkpoint_folder"] == str(tmp_path / "run" / "checkpoints" / "step-00000002")
    for discriminator in ("combined", "instantaneous", "long_term"):
        difference = summary["checkpoint"][discriminator]["mean"] - summary["base"][discriminator]["mean"]
        assert summary["checkpoint_minus_base"][discriminator]["mean"] == pytest.approx(difference)
    assert summary["checkpoint_minus_base"]["combined"]["mean"] != 0
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())["samples"]
    assert len(rows) == 9
    other = replace(config, policy=replace(config.policy, lora=LoraSize(rank=4, alpha=99)))
    with pytest.raises(CheckpointError, match=r"policy\.lora\.alpha: 99, was"):
        evaluate_checkpoint(other, tmp_path / "out", checkpoint=None)
    assert len((tmp_path / "out" / "evaluation.csv").read_text().splitlines()) == 10
    for suffix in ("mp4", "gif"):
        assert len(list((tmp_path / "out").glob(f"*-real-base-checkpoint.{suffix}"))) == 3
    for motion in ("speed_px_s", "acceleration_px_s2"):
        found = summary["distance_to_real"][motion]
        assert found["num_first_frames"] == 3
        assert found["base"] > 0
        assert found["checkpoint_minus_base"]["mean"] == pytest.approx(found["checkpoint"] - found["base"])


def test_evaluate_compares_with_real_clips_that_passed_through_the_vae(
    svd: Path, clips: Path, stack: RewardStack, tmp_path: Path
) -> None:
    from trainer.evaluate import evaluate_checkpoint  # noqa: PLC0415

    options = (f"rewards.server={stack.url}", "objective.weighting=uniform", "evaluate.num_clips=1", *QUIET)
    short = ("loop.num_buffers=1", "loop.passes=1", "loop.num_rollouts=0", "data.start=first")
    config = tiny_config(tmp_path / "run", svd, clips, *options, *short)
    run_training(config)
    scored = {}
    for real_as in ("decoded", "pixels"):
        chosen = replace(config, rewards=replace(config.rewards, real_as=real_as))
        scored[real_as] = json.loads(evaluate_checkpoint(chosen, tmp_path / real_as, checkpoint=None))
    assert scored["decoded"]["base"]["combined"]["mean"] == scored["pixels"]["base"]["combined"]["mean"]
    assert scored["decoded"]["real"]["combined"]["mean"] != scored["pixels"]["real"]["combined"]["mean"]


@pytest.mark.parametrize("lossless", [False, True])
def test_written_rollouts_can_be_read_and_scored(
    svd: Path, clips: Path, stack: RewardStack, tmp_path: Path, lossless: bool
) -> None:
    from protos.client import submission  # noqa: PLC0415
    from trainer.data import find_sources  # noqa: PLC0415
    from trainer.evaluate import write_rollouts  # noqa: PLC0415
    from trainer.video import ClipForm, read_clip  # noqa: PLC0415

    options = ("evaluate.num_clips=2", "evaluate.per_clip=2")
    config = tiny_config(tmp_path / "run", svd, clips, *options)
    to, real_to = tmp_path / "to", tmp_path / "real"
    assert write_rollouts(config, to, real_to=real_to, checkpoint=None, lossless=lossless, split="train") == 4
    sources = find_sources([str(to / "rollouts.jsonl")], "train")
    assert len({source.path for source in sources}) == 4
    real = find_sources([str(real_to)], "train")
    form = ClipForm(num_frames=4, fps=8.0, height_px=32, width_px=32)
    assert {read_clip(source.path, form).frames.shape for source in (*sources, *real)} == {(4, 3, 32, 32)}
    assert {source.path.stem for source in sources} == {source.path.stem for source in real} == {"00000", "00001"}
    if lossless:
        with RewardClient(stack.url) as client:
            assert all(outcome.reward for outcome in client.score([submission(source.path) for source in sources]))


@pytest.mark.parametrize("real_as", ["decoded", "pixels"])
def test_written_real_clips_pass_through_the_vae_unless_pixels_are_chosen(
    svd: Path, clips: Path, tmp_path: Path, real_as: str, caplog: pytest.LogCaptureFixture
) -> None:
    from trainer.evaluate import write_rollouts  # noqa: PLC0415
    from trainer.run import form_of, open_accelerator, open_policy  # noqa: PLC0415
    from trainer.video import read_clip  # noqa: PLC0415

    options = ("evaluate.num_clips=1", "evaluate.per_clip=1", "data.start=first")
    config = tiny_config(tmp_path / "run", svd, clips, *options, f"rewards.real_as={real_as}")
    real_to = tmp_path / "real"
    write_rollouts(config, tmp_path / "to", real_to=real_to, checkpoint=None, lossless=True, split="train")
    policy = open_policy(config, open_accelerator(config))
    source = json.loads((tmp_path / "to" / "rollouts.jsonl").read_text().splitlines()[0])["first_frame_of"]
    read = read_clip(Path(source), form_of(policy), start=0.0)
    (example,) = policy.encode([read], [""])
    (decoded,) = policy.decode([example.latents])
    written = read_clip(real_to / "00000.safetensors", form_of(policy), start=0.0)
    assert not np.array_equal(read.frames, decoded.frames)
    assert np.array_equal(written.frames, (decoded if real_as == "decoded" else read).frames)
    assert ("rewards.real_as is pixels" in caplog.text) == (real_as == "pixels")
