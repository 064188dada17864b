"""Prepares a seed's base and data, and runs its arms in processes side by side."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from experiments.proof.arms import Arm, Task, run_arm
from experiments.proof.base import trained_base
from experiments.proof.scenes import SceneMix, draw_scenes
from experiments.proof.size import ProofSize
from trainer.errors import ConfigError
from trainer.seeds import derived_seed
from trainer.video import write_clip

log = logging.getLogger(__name__)


def prepare(folder: Path, size: ProofSize, *, seed: int, mix: SceneMix | None = None) -> None:
    """Train the base and write the files of the fine-tuning set, scenes of `mix`, unless they exist."""
    torch.set_num_threads(1)  # two are no faster for a toy, and hundreds of times slower once they wait for a core
    scenes = draw_scenes(size.base.num_scenes, seed=derived_seed(seed, "base"), mix=size.base.mix)
    trained_base(folder, [scene.clip() for scene in scenes], size.base, seed=seed)
    for number, scene in enumerate(draw_scenes(size.num_train, seed=derived_seed(seed, "train"), mix=mix)):
        path = folder / "train" / f"{number:05d}.safetensors"
        if not path.exists():
            write_clip(path, scene.clip())


def chosen_arms(all_arms: Sequence[Arm], only: Sequence[str] | None) -> list[Arm]:
    """The arms named in `only`, or all. Raises ConfigError for an unknown name."""
    names = [arm.name for arm in all_arms]
    if unknown := set(only or ()) - set(names):
        raise ConfigError(f"there is no arm {sorted(unknown)}; give some of {names}")
    return [arm for arm in all_arms if not only or arm.name in only]


def arm_records(chosen: Sequence[Arm], num_streams: int, jobs: int, task: Callable[..., Task]) -> list[dict[str, Any]]:
    """Records of every arm in every stream, stream by stream. `task` makes a Task from an arm and a stream."""
    tasks = [task(arm=arm, stream=stream) for stream in range(num_streams) for arm in chosen]
    return [json.loads(path.read_text()) for path in run_arms(tasks, jobs)]


def run_arms(tasks: Sequence[Task], jobs: int) -> list[Path]:
    """Run the tasks in up to `jobs` processes. Returns their result files in the order of the tasks."""
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    results = []
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        try:
            for number, path in enumerate(pool.map(run_arm, tasks), 1):
                log.info("%d of %d arms: %s", number, len(tasks), path.stem)
                results.append(path)
        except SystemExit:  # do not wait for running arms: a resumed run starts them again
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return results
