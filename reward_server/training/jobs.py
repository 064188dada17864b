"""Trains discriminators in processes of their own, each of which opens the profile once."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
from rich.progress import Progress

from protos.types import DiscriminatorName
from reward_server.networks.prepacked import Compute
from reward_server.profiles import Profile, ProfileName, load_profile
from reward_server.training.discriminator_trainer import DiscriminatorTrainer, TrainingConfig
from reward_server.training.examples import View
from reward_server.training.feature_cache import FeatureCache
from reward_server.training.generated import GeneratedClips


@dataclass(frozen=True, kw_only=True)
class ProfileSource:
    """How to open a profile. Each process opens it once."""

    name: ProfileName
    models: Path = Path("models")  # folder of its frozen networks
    device: str = "cpu"  # where they run
    compute: Compute = field(default_factory=Compute)  # how they run


@functools.cache
def opened(source: ProfileSource) -> Profile:
    """Open the profile, once per process. Raises NotReady if its networks are missing."""
    return load_profile(source.name, source.models, device=source.device, compute=source.compute)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorJob:
    """One discriminator's training run, as a process receives it."""

    name: DiscriminatorName
    profile: ProfileSource
    cache: Path
    config: TrainingConfig
    folder: Path
    generated: GeneratedClips | None = None  # negatives beside those of the views


def train_discriminators(
    jobs: Sequence[DiscriminatorJob], views: Sequence[View], held_out: Sequence[View], processes: int
) -> dict[str, float]:
    """Train the discriminators in parallel, in up to `processes` processes. Returns each one's `HeldOut.mean`.

    Each has its own progress bar.
    """
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, mp_context=context, initializer=as_helper) as pool,
        Progress() as progress,
    ):
        reports = manager.Queue()
        bars = {str(job.folder): progress.add_task(job.name, total=job.config.steps) for job in jobs}
        tasks = [pool.submit(_train_discriminator, job, views, held_out, reports) for job in jobs]
        while not all(task.done() for task in tasks) or not reports.empty():
            with contextlib.suppress(queue.Empty):
                folder, step, line = reports.get(timeout=0.5)
                progress.update(bars[folder], completed=step)
                if line:
                    progress.console.print(line)
        return {job.name: task.result() for job, task in zip(jobs, tasks, strict=True)}


def _train_discriminator(
    job: DiscriminatorJob, views: Sequence[View], held_out: Sequence[View], reports: queue.Queue[tuple[str, int, str]]
) -> float:
    cache, device = FeatureCache(job.cache), job.profile.device
    trainer = DiscriminatorTrainer(
        job.name, opened(job.profile), cache, job.config, job.folder, generated=job.generated, device=device
    )
    return trainer.train(views, held_out, lambda step, line: reports.put((str(job.folder), step, line)))


def as_helper() -> None:
    """Let this process use one thread, because its siblings use the other cores, and end with its parent."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its helpers. They would train on, and then wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
