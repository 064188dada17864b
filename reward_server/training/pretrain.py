"""Pretrains a profile's discriminators on folders of real clips: `motion-reward pretrain`.

1. Views of every real clip, and their negatives, pass through the frozen estimators once. The motion features are
   stored on disk. Negatives are the user's generated clips, or, without those, motion faults applied to the views.
2. The discriminators train on the stored features alone (`discriminator_trainer.py`). Held-out sources decide when
   to stop.
3. The best averaged weights are written as one safetensors file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import multiprocessing
import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import torch
from rich.progress import Progress, track

from protos.reader import Source, open_source, with_true_times
from protos.types import DISCRIMINATORS, DiscriminatorName
from reward_server.data.shots import SourceClip, find_clips
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.errors import BadRequest, InvalidClip
from reward_server.networks.prepacked import Compute
from reward_server.profiles import Profile, ProfileName, load_profile
from reward_server.profiles.discriminators import save_discriminators
from reward_server.training.discriminator_trainer import DiscriminatorTrainer, TrainingConfig
from reward_server.training.examples import View, split_by_source
from reward_server.training.feature_cache import FeatureCache, Sample
from reward_server.training.samples import TRAINED_FAULTS, CacheConfig, clip_samples, seed_of

AMOUNT_WEIGHT = 0.3  # of `losses.amount_slope`, for `embedded`


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


def configs(
    profile: ProfileName, *, steps: int, seed: int
) -> tuple[CacheConfig, dict[DiscriminatorName, TrainingConfig]]:
    """What to cache and how to train each discriminator for a profile.

    The instantaneous discriminator of `embedded` needs fewer steps. `shift` uses the learning rate, weight decay,
    gradient clipping and loss of the paper (arXiv 2603.17426). Unlike the paper, it uses batches of 6 without
    accumulation, and 256 of the cached tracks per step.
    """
    if profile == "embedded":
        training = TrainingConfig(steps=steps, seed=seed, symmetries=True, amount_weight=AMOUNT_WEIGHT)
        return CacheConfig(seed=seed), {
            "instantaneous": replace(training, steps=math.ceil(steps / 2)),
            "long_term": training,
        }
    cache = CacheConfig(profile=profile, frames_per_view=12, num_tracks=512, num_pairs=12, seed=seed)
    training = TrainingConfig(
        steps=steps,
        seed=seed,
        views_per_step=6,
        views_at_once=1,
        negatives_per_view=1,
        tracks_per_step=256,
        pairs_per_step=6,
        learning_rate=2e-4,
        pair_weight=0.0,
        ema=0.99,
        evaluate_tracks=512,
    )
    return cache, dict.fromkeys(DISCRIMINATORS, training)


def pretrain(
    *,
    real: Sequence[Path],
    generated: Path | None,
    out: Path,
    work: Path,
    cache_config: CacheConfig,
    training: Mapping[DiscriminatorName, TrainingConfig],
    models: Path = Path("models"),
    device: str = "cpu",
    compute: Compute | None = None,
    held_out_share: float = 0.1,
    version: str | None = None,
    left_out: Sequence[str] = (),
    features: Path | None = None,
    processes: int = os.cpu_count() or 1,
    fps: float | None = None,
) -> dict[str, float]:
    """Cache features, train and write the weights to `out`. Returns each discriminator's `HeldOut.mean`.

    `work` is the run's folder; an interrupted run resumes from it. Motion features are stored in `features`, by
    default a folder in `work`. Faults in `left_out` are cached like the others, but not used to train or to decide
    when to stop. `fps` is the rate of image sequences. The profile's frozen networks, if any, are read from `models`
    and run on `device` as `compute` says. The discriminators train on the same device. Raises NotReady if frozen
    networks are missing, BadRequest for an unknown fault or a folder without clips.
    """
    source = ProfileSource(name=cache_config.profile, models=models, device=device, compute=compute or Compute())
    profile = opened(source)
    if unknown := set(left_out) - set(TRAINED_FAULTS):
        raise BadRequest(f"{sorted(unknown)} are not trained faults; choose from {', '.join(TRAINED_FAULTS)}")
    processes = processes if device == "cpu" else min(processes, 2)  # they share one device
    clips = [clip for folder in real for clip in find_clips(folder, real=True, fps=fps)]
    if generated:
        clips += find_clips(generated, real=False, fps=fps)
        cache_config = replace(cache_config, faults=())
    cache = FeatureCache((features or work / "features") / _cache_name(profile, cache_config, source.compute))
    for reason in build_cache(cache, clips, cache_config, source, processes):
        print(f"skipped {reason}")
    samples = [sample for sample in cache.samples({clip.part for clip in clips}) if sample.fault not in left_out]
    views, held_out = split_by_source(samples, held_out_share, cache_config.seed)
    print(f"{len(views)} views to train on, {len(held_out)} held out by source")
    runs = work / "-".join(["without", *sorted(left_out)]) if left_out else work
    jobs = [
        DiscriminatorJob(name=name, profile=source, cache=cache.folder, config=training[name], folder=runs / name)
        for name in DISCRIMINATORS
    ]
    trained = train_discriminators(jobs, views, held_out, processes)
    weights = {
        job.name: torch.load(job.folder / "best.pt", map_location="cpu", weights_only=True)["average"] for job in jobs
    }
    save_discriminators(out, profile=profile, version=version or _version(profile, weights), **weights)
    return trained


@dataclass(frozen=True, kw_only=True)
class DiscriminatorJob:
    """One discriminator's training run, as a process receives it."""

    name: DiscriminatorName
    profile: ProfileSource
    cache: Path
    config: TrainingConfig
    folder: Path


def train_discriminators(
    jobs: Sequence[DiscriminatorJob], views: Sequence[View], held_out: Sequence[View], processes: int
) -> dict[str, float]:
    """Train the discriminators in parallel, in up to `processes` processes. Returns each one's `HeldOut.mean`.

    Each has its own progress bar.
    """
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool,
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
    trainer = DiscriminatorTrainer(job.name, opened(job.profile), cache, job.config, job.folder, device=device)
    return trainer.train(views, held_out, lambda step, line: reports.put((str(job.folder), step, line)))


def build_cache(
    cache: FeatureCache, clips: Sequence[SourceClip], config: CacheConfig, source: ProfileSource, processes: int
) -> list[str]:
    """Cache the features of every clip that is not cached yet. Returns the reasons for skipped clips."""
    waiting = {clip.part: clip for clip in clips if not cache.has_part(clip.part)}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        tasks = [pool.submit(_cache_clip, cache.folder, clip, config, source) for clip in waiting.values()]
        done = [task.result() for task in track(as_completed(tasks), "motion features", total=len(tasks))]
    return [reason for reason in done if reason]


def _cache_clip(folder: Path, clip: SourceClip, config: CacheConfig, source: ProfileSource) -> str | None:
    """Cache one part: the views of one clip, each with its negatives. It runs in a worker process.

    Returns why the clip was skipped, or None.
    """
    cache, profile = FeatureCache(folder), opened(source)

    def cached(opened_file: Source) -> list[Sample]:
        samples: list[Sample] = []
        for sample, pixels in clip_samples(opened_file, clip, profile, config):
            motion = profile.motion(pixels, query_seed=seed_of(sample.view), num_tracks=config.num_tracks)
            cache.add(sample, motion, num_pairs=config.num_pairs)
            samples.append(sample)
        return samples

    try:
        with as_invalid_clip(), open_source(clip.path, fps=clip.fps) as opened_file:
            samples = with_true_times(opened_file, cached)
    except (InvalidClip, OSError) as error:
        return f"{clip.path}: {error}"
    cache.close_part(clip.part, samples)
    return None if samples else f"{clip.path}: no view without a cut shows motion"


def _cache_name(profile: Profile, config: CacheConfig, compute: Compute) -> str:
    return hashlib.sha256(f"{profile.preprocessing_digest} {config} {compute.precision}".encode()).hexdigest()[:16]


def _version(profile: Profile, weights: dict[DiscriminatorName, dict[str, torch.Tensor]]) -> str:
    """The profile's name and a digest of the weights, so that equal weights give an equal version."""
    digest = hashlib.sha256()
    for discriminator in weights.values():
        for tensor in discriminator.values():
            digest.update(tensor.numpy().tobytes())
    return f"{profile.name}-{digest.hexdigest()[:8]}"


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
