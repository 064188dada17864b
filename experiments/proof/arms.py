"""Defines the arms of the proof: each fine-tunes the base with the trainer's own loop and measures fresh rollouts.

`run_arm(task)` calls `trainer.train.train` with the arm's rewards, samples fresh rollouts from held-out first frames,
and writes a JSON file. An arm whose file exists is not run again.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from experiments.proof.base import policy_config
from experiments.proof.known_rewards import NAMES, measures, speed_reward
from experiments.proof.reference import ReferenceRewards
from experiments.proof.scenes import SceneMix, draw_scenes
from experiments.proof.size import ProofSize
from experiments.proof.sources import CueDiscriminator, DiscriminatorRewards, KnownRewards, cues, train_discriminator
from experiments.proof.watched import WatchedRewards
from protos.types import Clip
from trainer.config import (
    CheckpointConfig,
    Config,
    LogConfig,
    LoopConfig,
    OptimizerConfig,
    RefreshConfig,
    RewardsConfig,
    SignalConfig,
)
from trainer.data import DataConfig
from trainer.measures.dynamics import dynamic_degree
from trainer.objective import Objective
from trainer.policies.loading import make_policy
from trainer.policies.protocol import Policy
from trainer.rewards.source import NoRewards, RewardSource
from trainer.run import open_run
from trainer.seeds import derived_seed, generator
from trainer.train import train
from trainer.video import write_clip

RewardName = Literal["none", "speed", "loophole", "learned"]
NUM_SHOWN = 4  # rollouts saved as clips
MEASURES = ("reward", *NAMES, "flow_px", "dynamic")
"""Measures of every fresh rollout. `reward` is the known reward, whatever reward the arm was trained with."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of fine-tuning. `objective` changes the settings of the middle of Level 1's grid."""

    name: str
    reward: RewardName = "speed"
    objective: dict[str, Any] = field(default_factory=dict)
    refreshed: bool = False
    trained: bool = True
    heads: str = ""  # recipe of the learned rewards' discriminators (heads.py); empty: the seed's only ones
    referenced: bool = False  # the discriminators' positives are the moving reference set, not the fine-tuning data


def arms(size: ProofSize) -> list[Arm]:
    """All arms. Those that the verdicts need come first, then the other ablations of plan.md."""
    low, mid, high = size.lambdas
    grid = {"shift-low": low, "shift-mid": mid, "shift-high": high}
    leaky = {"lambda_aw": size.lambda_loophole}
    return [
        Arm(name="base", reward="none", trained=False),
        Arm(name="sft", reward="none"),
        Arm(name="replay", objective={"weighting": "uniform"}),
        *(Arm(name=name, objective={"lambda_aw": value}) for name, value in grid.items()),
        Arm(name="no-anchor", objective={"lambda_sft": 0.0}),
        Arm(name="fixed", reward="loophole", objective=leaky),
        Arm(name="refreshed", reward="loophole", objective=leaky, refreshed=True),
        Arm(name="no-negative", objective={"neg_adv_lambda": 0.0}),
        Arm(name="exp", objective={"weighting": "exp", "beta": size.beta}),
        Arm(name="unmatched", objective={"matched_noise": False}),
        Arm(name="batch-centre", objective={"centre": "batch"}),
        Arm(name="std", objective={"normalise_std": True}),
    ]


@dataclass(frozen=True, kw_only=True)
class Task:
    """An arm in one stream of one seed, and the places of its files."""

    arm: Arm
    seed: int
    stream: int
    size: ProofSize
    folder: Path  # folder of the seed, which holds base/
    level: str = ""  # subfolder that holds train/ and arms/; empty: the seed's folder itself
    server: str = ""  # URL of the server for learned rewards

    @property
    def train(self) -> Path:
        return self.folder / self.level / "train"

    @property
    def result(self) -> Path:
        return self.folder / self.level / "arms" / f"{self.arm.name}-{self.stream}.json"


def run_arm(task: Task) -> Path:
    """Run the task and return its result file. An interrupted attempt is discarded, as the rewards' state is lost."""
    if task.result.exists():
        return task.result
    torch.set_num_threads(1)  # arms run side by side
    run_folder = task.result.with_suffix("")
    shutil.rmtree(run_folder, ignore_errors=True)
    policy = make_policy(policy_config(task.folder / "base", task.size.base, rank=task.size.rank))
    seconds, favours = _fine_tune(task, policy, run_folder) if task.arm.trained else (0.0, [])
    rows = evaluate(task, policy, run_folder / "clips")
    record = {
        "arm": task.arm.name,
        "stream": task.stream,
        "seconds": seconds,
        "rows": rows,
        "history": _history(run_folder / "metrics.jsonl"),
        "favours": favours,
    }
    _write(task.result, json.dumps(record))
    shutil.rmtree(run_folder / "checkpoints", ignore_errors=True)
    return task.result


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _fine_tune(task: Task, policy: Policy, folder: Path) -> tuple[float, list[dict[str, float]]]:
    """Seconds that the loop took, and what the advantages of each buffer favoured."""
    with open_run(run_config(task, folder), rewards=rewards_of(task, policy), policy=policy) as run:
        watched = WatchedRewards(_referenced(task, policy, run.rewards) if task.arm.referenced else run.rewards)
        started = time.monotonic()
        train(replace(run, rewards=watched))
        seconds = time.monotonic() - started
    policy.module = run.accelerator.unwrap_model(policy.module)
    return seconds, watched.favours


def _referenced(task: Task, policy: Policy, rewards: RewardSource) -> RewardSource:
    examples = policy.encode(reference_clips(task.size, task.seed), [""] * task.size.num_train)
    return ReferenceRewards(rewards, policy.decode([example.latents for example in examples]))


def reference_clips(size: ProofSize, seed: int) -> list[Clip]:
    """The moving reference set: as many scenes as the fine-tuning set has, and none of them in it."""
    return [scene.clip() for scene in draw_scenes(size.num_train, seed=derived_seed(seed, "reference"))]


def run_config(task: Task, folder: Path) -> Config:
    """The trainer's configuration of an arm."""
    size, arm = task.size, task.arm
    learned = arm.reward == "learned"
    return Config(
        out=folder,
        run_id=f"proof-{task.seed}-{task.level or 'mechanism'}-{arm.name}-{task.stream}",
        seed=derived_seed(task.seed, "stream", task.stream) % 2**31,
        device="cpu",
        policy=policy_config(task.folder / "base", size.base, rank=size.rank),
        data=DataConfig(train=(str(task.train),), start="first"),
        loop=LoopConfig(
            num_buffers=size.num_buffers,
            buffer_clips=size.buffer_clips,
            num_rollouts=0 if arm.reward == "none" else size.num_rollouts,
            batch_clips=size.batch_clips,
            passes=size.passes,
        ),
        objective=Objective(**{"lambda_aw": size.lambdas[1], **arm.objective}),
        optimizer=OptimizerConfig(lr=size.lr, warmup_steps=min(10, size.num_steps // 4), weight_decay=0.0),
        # decoded: rollouts must not be recognisable by the autoencoder's blur
        rewards=RewardsConfig(server=task.server, real_as="decoded"),
        signal=SignalConfig(noise_share=0.0),
        refresh=RefreshConfig(
            enabled=arm.refreshed,
            steps_per_step=size.discriminators.refresh_steps_per_step if learned else size.refresh_steps_per_step,
            lr=size.discriminators.refresh_lr,
            ema=size.discriminators.refresh_ema,
            clips_per_step=size.discriminators.refresh_clips,
        ),
        checkpoint=CheckpointConfig(every_steps=0, keep=1),
        logs=LogConfig(every_steps=6, samples_every_buffers=0),
    )


def rewards_of(task: Task, policy: Policy) -> RewardSource | None:
    """The arm's rewards. None: rewards come from the server in the configuration."""
    match task.arm.reward:
        case "none":
            return NoRewards()
        case "speed":
            return KnownRewards(speed_reward(task.size.target_px))
        case "loophole":
            flawed = flawed_discriminator(task, policy)
            return DiscriminatorRewards(flawed, lr=task.size.discriminator_lr, ema=task.size.ema)
        case "learned":
            return None


def flawed_discriminator(task: Task, policy: Policy) -> CueDiscriminator:
    """A discriminator with a planted flaw: it was pretrained to see glowing scenes as real and others as not."""
    size = task.size
    glowing, steady = (_scene_cues(task, policy, glow_share) for glow_share in (1.0, 0.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        discriminator = CueDiscriminator(torch.cat([glowing, steady]))
    train_discriminator(
        discriminator,
        glowing,
        steady,
        steps=size.pretrain_steps,
        lr=size.discriminator_lr,
        generator=generator(task.seed, "pretrain"),
    )
    return discriminator


def _scene_cues(task: Task, policy: Policy, glow_share: float) -> torch.Tensor:
    """Cues [N,5] of scenes after a pass through the autoencoder."""
    mix = SceneMix(glow_share=glow_share)
    scenes = draw_scenes(task.size.num_train, seed=derived_seed(task.seed, "flawed"), mix=mix)
    examples = policy.encode([scene.clip() for scene in scenes], [""] * len(scenes))
    return torch.stack([cues(measures(clip)) for clip in policy.decode([example.latents for example in examples])])


def evaluate(task: Task, policy: Policy, shown: Path) -> list[dict[str, list[float]]]:
    """Measures of fresh rollouts by name, for the samples of each held-out first frame. Saves the first few as clips.

    First frames and seeds are the same for all arms of a stream.
    """
    rows = []
    for number, clip in enumerate(held_out(task)):
        (example,) = policy.encode([clip], [""])
        seeds = [derived_seed(task.seed, "evaluate", task.stream, number, at) for at in range(task.size.per_clip)]
        rollouts = policy.decode(policy.sample(example, seeds))
        if number < NUM_SHOWN:
            write_clip(shown / f"{number}.safetensors", rollouts[0])
        found = [measured(clip, task.size) for clip in rollouts]
        rows.append({name: [one[name] for one in found] for name in MEASURES})
    return rows


def held_out(task: Task) -> list[Clip]:
    """The clips of the held-out scenes."""
    return [scene.clip() for scene in draw_scenes(task.size.num_held_out, seed=derived_seed(task.seed, "held out"))]


def measured(clip: Clip, size: ProofSize) -> dict[str, float]:
    """The MEASURES of a clip."""
    of, degree = measures(clip), dynamic_degree(clip)
    known = {"reward": speed_reward(size.target_px)(clip), "flow_px": degree.flow_px, "dynamic": float(degree.dynamic)}
    return {name: getattr(of, name) for name in NAMES} | known


def _history(path: Path) -> dict[str, list[float]]:
    """Mean rewards of each buffer and the logged gradient ratios, as the loop logged them."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names = ("reward_rollouts/combined", "reward_real/combined", "gradient/aw_over_sft")
    return {name: [line[name] for line in lines if name in line] for name in names}
