"""Turns a buffer's rewards into advantages, and says whether they can teach anything (steps 3 and 4 of Algorithm 1).

If rewards within a group differ by less than their own noise, the advantages are mostly noise. Then there is a warning
for the buffer, and `signal.on_weak` says what happens.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protos.error_codes import ErrorCode
from protos.types import DISCRIMINATORS, DYNAMICS
from trainer.checkpoint import Progress
from trainer.config import Config
from trainer.errors import MissingRewards, VersionLost, WeakSignal
from trainer.measures.dynamics_floor import dynamics_table, floored
from trainer.measures.signal import COMBINED, SignalQuality, clipped_table, signal_quality
from trainer.objective import Advantages, advantages, joined, num_weighted, reward_table
from trainer.processes import gathered
from trainer.rewards.source import Collected
from trainer.rollout import Buffer
from trainer.run import Run

log = logging.getLogger(__name__)

ADVICE = "see 'When rewards teach nothing' in docs/training.md"


@dataclass(frozen=True, kw_only=True)
class Gained:
    """The advantages of this process's groups, and whether the buffer's rewards are weak (`is_weak`)."""

    advantages: Advantages
    weak: bool


def buffer_advantages(run: Run, buffer: Buffer, progress: Progress) -> Gained:
    """Advantages of this process's groups. Comparisons within the batch use the whole buffer of all processes.

    Before the buffer's first step it also logs the buffer. Raises VersionLost if the server lost the buffer's
    discriminators, MissingRewards if no rollout has a reward, WeakSignal if `signal.on_weak` is `stop` and the rewards
    are weak.
    """
    started = time.monotonic()
    again = buffer.rewards_again()
    collected = buffer.rewards()
    waited_s = time.monotonic() - started
    if ErrorCode.VERSION_NOT_SERVED in collected.errors:
        # Masking these clips would train on the rest of the buffer without its rewards.
        buffer.forget_missing()
        raise VersionLost(
            f"the server no longer has discriminator version '{progress.buffer_version}', which buffer {buffer.number} "
            "needs, and its files are not in the run's folder; restore the server's Redis and start the run again, or "
            "start a new run from this one's LoRA (policy.sft_lora)"
        )
    objective, rank, num = run.config.objective, run.accelerator.process_index, len(buffer)
    own = reward_tables(run, collected)
    tables = {name: gathered(run.accelerator, table) for name, table in own.items()}
    found = {name: advantages(table, objective) for name, table in tables.items()}
    if objective.per_discriminator:
        assert run.config.rewards.weights, "the configuration is checked"
        found[COMBINED] = joined({name: found[name] for name in DISCRIMINATORS}, run.config.rewards.weights)
    whole = found[COMBINED]
    if run.config.loop.num_rollouts and num_weighted(whole.rollouts, objective) == 0:
        buffer.forget_missing()
        raise MissingRewards(
            f"no rollout of buffer {buffer.number} has a reward ({collected.errors}). Training without rewards would "
            "be plain fine-tuning: fix the cause and start the run again to request them again, or set "
            "loop.num_rollouts=0"
        )
    motion = gathered(run.accelerator, dynamics_table(collected.groups))
    floor = None
    if run.config.rewards.min_dynamics:
        floor = floored(whole, motion[..., DYNAMICS.index("total_motion")], run.config.rewards.min_dynamics)
        found[COMBINED] = whole = floor.advantages
    weak = False
    if progress.position == 0:
        lags = [progress.step - group.policy_step for group in buffer.groups]
        run.board.buffer(progress, buffer, collected, waited_s=waited_s, lags=lags)
        run.board.rewards(progress.step, tables, found)
        run.board.dynamics(progress.step, motion, floor)
        clipped = gathered(run.accelerator, clipped_table(collected.groups))
        quality = signal_quality(
            tables,
            _pairs(run, own, again),
            centre=objective.centre,
            clipped=clipped,
            clipped_advantages=whole.num_clipped / max(1, whole.num_known),
        )
        run.board.signal(progress.step, quality)
        weak = judged(run, buffer, quality)
    mine = slice(rank * num, (rank + 1) * num)
    return Gained(advantages=replace(whole, real=whole.real[mine], rollouts=whole.rollouts[mine]), weak=weak)


def reward_tables(run: Run, collected: Collected) -> dict[str, Tensor]:
    """Rewards [G,1+P] of this process's groups: combined, and of each discriminator."""
    groups, centre, weights = collected.groups, run.config.objective.centre, run.config.rewards.weights
    heads: dict[str, Tensor] = {
        name: reward_table(groups, centre=centre, discriminator=name) for name in DISCRIMINATORS
    }
    combined = weights.mean(heads) if weights else reward_table(groups, centre=centre)
    return {COMBINED: combined, **heads}


def _pairs(run: Run, own: Mapping[str, Tensor], again: Collected) -> dict[str, Tensor]:
    """The rewards [N,2,1+P] of the groups of all processes that were scored twice."""
    num = len(again.groups)
    if not num:
        return {name: table.new_zeros(0, 2, table.shape[1]) for name, table in own.items()}
    seconds = reward_tables(run, again)
    return {
        name: gathered(run.accelerator, torch.stack([table[:num], seconds[name]], dim=1)) for name, table in own.items()
    }


def judged(run: Run, buffer: Buffer, quality: SignalQuality) -> bool:
    """Whether the buffer's rewards are weak. The main process logs the quality, and a warning if they are.

    Raises WeakSignal instead if `signal.on_weak` is `stop`.
    """
    if math.isnan(quality.combined.spread):
        return False
    config, told = run.config.signal, f"buffer {buffer.number}: {told_quality(quality)}"
    # A comparison with NaN, the noise not being known, is false. `uniform` uses no reward.
    weak = quality.combined.to_noise < config.min_to_noise and run.config.objective.weighting != "uniform"
    if weak and config.on_weak == "stop":
        raise WeakSignal(f"{weakness(run.config)} ({told}); {ADVICE}, or set signal.on_weak=warn to go on")
    if run.accelerator.is_main_process:
        log.info("%s", told)
        if weak:
            log.warning("%s (buffer %d); %s", weakness(run.config), buffer.number, ADVICE)
    return weak


def weakness(config: Config) -> str:
    """What a weak buffer means for this run."""
    times = "" if config.signal.min_to_noise == 1 else f"{config.signal.min_to_noise:g} times "
    dose = config.objective.aw_dose
    plus = f" plus noise, of {dose:g} times its gradient (objective.aw_dose)" if dose else ""
    return (
        f"rewards within a group differ by less than {times}their own noise: this run is supervised fine-tuning{plus}"
    )


def told_quality(quality: SignalQuality) -> str:
    """The quality of a buffer's rewards as one line."""
    one = quality.combined
    noise = "not measured" if math.isnan(one.noise) else f"{one.noise:.3g}, signal to noise {one.to_noise:.2g}"
    ranks = "" if math.isnan(quality.head_ranks) else f"; the discriminators' ranks agree by {quality.head_ranks:.2f}"
    return (
        f"rewards within a group differ by {one.spread:.3g} (standard deviation), noise {noise}; real clips are "
        f"{one.gap:.3g} above rollouts, AUC {one.auc:.2f}{ranks}; clipped: {quality.clipped_rewards:.0%} of rewards, "
        f"{quality.clipped_advantages:.0%} of advantages"
    )
