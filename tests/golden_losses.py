"""Records the first steps of a seeded SHIFT run with known rewards on each toy base, as numbers for a regression test.

    python -m tests.golden_losses      writes tests/golden/shift_losses.json

Rewards come from a table, so the numbers depend only on the trainer itself: latents, noise, rollouts of the untrained
and of the trained policy, losses, gradients and AdamW. The learning rate is large, so that each step depends visibly on
the steps before it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from tests.trainer_runs import SVD, WAN, figures, tiny_config, write_clips
from trainer.objective import ClipReward, GroupRewards
from trainer.policies.tiny import tiny_svd, tiny_wan
from trainer.rewards.source import ClipGroup, Collected, NoRewards
from trainer.run import open_run
from trainer.train import train

PATH = Path(__file__).parent / "golden" / "shift_losses.json"
BASES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "svd": (partial(tiny_svd, num_frames=4, channels=(32, 32), vae_channels=(32, 32)), SVD),
    "wan": (tiny_wan, WAN),
}
NAMES = (
    "loss/sft_term",
    "loss/aw_term",
    "loss/diffusion_real",
    "loss/diffusion_rollouts",
    "gradient/sft",
    "gradient/aw",
)
OPTIONS = ("optimizer.lr=0.02", "logs.samples_every_buffers=0", "checkpoint.every_steps=0")


class TableRewards(NoRewards):
    """Rewards of 1 for real clips and 0.5, -0.5 for their rollouts, with signs swapped in every other group."""

    def __init__(self) -> None:
        self._keys: list[str] = []

    def pin(self) -> str:
        return "table"

    def knows(self, key: str, num_clips: int) -> bool:
        return key in self._keys

    def submit(self, group: ClipGroup) -> None:
        self._keys.append(group.key)

    def collect(self, keys: Sequence[str], num_clips: int) -> Collected:
        signs = [(-1.0) ** self._keys.index(key) for key in keys]
        rewards = [(1.0, 0.5 * sign, -0.5 * sign) for sign in signs]
        scored = [[ClipReward(reward=reward, version="table") for reward in group] for group in rewards]
        groups = tuple(GroupRewards(real=real, rollouts=tuple(rollouts)) for real, *rollouts in scored)
        return Collected(groups=groups, latencies_s=(), errors={})


def losses(name: str, *overrides: str) -> dict[str, list[float]]:
    """The values of each of NAMES over 8 steps on 2 buffers, for the toy base `name`."""
    make, shape = BASES[name]
    with tempfile.TemporaryDirectory() as folder:
        base, clips = make(Path(folder) / "base"), write_clips(Path(folder) / "clips")
        config = tiny_config(Path(folder) / "run", base, clips, *OPTIONS, *overrides, kind=shape)
        with open_run(config, rewards=TableRewards()) as run:
            train(run)
        return {figure: figures(config.out, figure) for figure in NAMES}


if __name__ == "__main__":
    torch.set_num_threads(1)
    PATH.write_text(json.dumps({name: losses(name) for name in BASES}, indent=1) + "\n")
