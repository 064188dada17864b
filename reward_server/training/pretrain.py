"""Pretrains a profile's discriminators on folders of real clips: `motion-reward pretrain`.

1. Views of every real clip, and their negatives, pass through the frozen estimators once. The motion features are
   stored on disk. Negatives are motion faults applied to the views, the user's generated clips, or both.
2. The discriminators train on the stored features alone (`discriminator_trainer.py`). Held-out sources decide when
   to stop.
3. The best averaged weights are written as one safetensors file, with a reference table of the held-out real clips.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from protos.reader import Source, open_source, with_true_times
from protos.reader.told import log_warnings
from protos.types import DISCRIMINATORS, ClipWarning, DiscriminatorName
from reward_server.capture import chain
from reward_server.capture.smoothing import SHARES
from reward_server.data.shots import SourceClip, find_clips
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.errors import BadRequest, InvalidClip
from reward_server.networks.prepacked import Compute
from reward_server.pipeline import Pipeline
from reward_server.profiles import Profile
from reward_server.profiles.discriminators import load_discriminators, save_discriminators, save_reference
from reward_server.settings import Settings
from reward_server.training.discriminator_trainer import TrainingConfig
from reward_server.training.examples import View, split_by_source
from reward_server.training.feature_cache import GENERATED, FeatureCache, Sample
from reward_server.training.generated import GeneratedClips, weighed
from reward_server.training.jobs import DiscriminatorJob, ProfileSource, as_helper, opened, train_discriminators
from reward_server.training.reference_table import reference_table
from reward_server.training.samples import TRAINED_FAULTS, CacheConfig, clip_samples, seed_of

log = logging.getLogger(__name__)


def pretrain(
    *,
    real: Sequence[Path],
    generated: Path | None,
    generated_share: float = 1.0,
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

    The file also gets a reference table of the held-out real clips, unless they are too few; the reason is printed.
    Generated clips, if given, are the only negatives. With a `generated_share` below 1, they have this share of the
    negatives' loss beside faults, each weighed so that its rate and looks say nothing (`generated.py`), and do not
    decide when to stop. `work` is the run's folder; an interrupted run resumes from it. Motion features are stored in
    `features`, by default a folder in `work`. Faults in `left_out` are cached like the others, but not used to train
    or to decide when to stop. `fps` is the rate of image sequences. The profile's frozen networks, if any, are read
    from `models` and run on `device` as `compute` says. The discriminators train on the same device. Raises NotReady
    if frozen networks are missing, BadRequest for an unknown fault, a folder without clips, or a share of generated
    clips of which there are none.
    """
    source = ProfileSource(name=cache_config.profile, models=models, device=device, compute=compute or Compute())
    profile = opened(source)
    _check_negatives(left_out, generated, generated_share)
    beside = generated_share < 1
    clips = _clips(real, generated, fps)
    if generated and not beside:
        cache_config = replace(cache_config, faults=())
    processes = processes if device == "cpu" else min(processes, 2)  # they share one device
    cache = FeatureCache((features or work / "features") / _cache_name(profile, cache_config, source.compute))
    for reason in build_cache(cache, clips, cache_config, source, processes):
        print(f"skipped {reason}")
    samples = [sample for sample in cache.samples({clip.part for clip in clips}) if sample.fault not in left_out]
    views, held_out, crowd = _examples(samples, held_out_share, cache_config.seed, beside=beside)
    runs = work / "-".join(["without", *sorted(left_out)]) if left_out else work
    share = generated_share if beside else 0.0
    job = partial(DiscriminatorJob, profile=source, cache=cache.folder, generated=crowd)
    jobs = [
        job(name=name, config=replace(training[name], generated_share=share), folder=runs / name)
        for name in DISCRIMINATORS
    ]
    trained = train_discriminators(jobs, views, held_out, processes)
    _save_best(out, profile, {job.name: job.folder for job in jobs}, version)
    sources = {view.real.source for view in held_out}
    _add_reference(out, [clip for clip in clips if clip.real and clip.source in sources], source, processes)
    return trained


def _check_negatives(left_out: Sequence[str], generated: Path | None, generated_share: float) -> None:
    """Raises BadRequest for an unknown fault, or a share of generated clips of which there are none."""
    if unknown := set(left_out) - set(TRAINED_FAULTS):
        raise BadRequest(f"{sorted(unknown)} are not trained faults; choose from {', '.join(TRAINED_FAULTS)}")
    if generated_share < 1 and not generated:
        raise BadRequest(f"a generated share of {generated_share:g} has no generated clips; name their folder")


def _save_best(out: Path, profile: Profile, folders: Mapping[DiscriminatorName, Path], version: str | None) -> None:
    """Write the weights that each discriminator's training has kept, under this version or one of their own."""
    weights = {name: _best(folder) for name, folder in folders.items()}
    save_discriminators(
        out,
        profile=profile,
        version=version or _version(profile, weights),
        instantaneous=weights["instantaneous"],
        long_term=weights["long_term"],
    )


def _clips(real: Sequence[Path], generated: Path | None, fps: float | None) -> list[SourceClip]:
    """All clips, the real ones first. Raises BadRequest for a folder without clips."""
    clips = [clip for folder in real for clip in find_clips(folder, real=True, fps=fps)]
    return [*clips, *(find_clips(generated, real=False, fps=fps) if generated else ())]


def _best(folder: Path) -> dict[str, Tensor]:
    """The averaged weights that a discriminator's training has kept."""
    state = torch.load(folder / "best.pt", map_location="cpu", weights_only=True)
    return dict(state["average"])


def _examples(
    samples: Sequence[Sample], held_out_share: float, seed: int, *, beside: bool
) -> tuple[list[View], list[View], GeneratedClips | None]:
    """The views to train on, those held out, and the generated clips if they are negatives `beside` those of the views.

    Raises BadRequest as `split_by_source` and `weighed`.
    """
    generated = [sample for sample in samples if beside and sample.fault == GENERATED]
    others = [sample for sample in samples if not beside or sample.fault != GENERATED]
    views, held_out = split_by_source(others, held_out_share, seed)
    print(f"{len(views)} views to train on, {len(held_out)} held out by source")
    if not beside:
        return views, held_out, None
    crowd = weighed(generated, [view.real for view in views])
    fitting = _num_fitting(views, crowd)
    print(f"{len(generated)} views of generated clips; {fitting} of the real views have some of their size and length")
    return views, held_out, crowd


def _num_fitting(views: Sequence[View], crowd: GeneratedClips) -> int:
    """How many views have generated clips of their shape. The others learn from their faulty twins alone."""
    shapes = {sample.shape for sample in crowd.samples}
    return sum(view.real.shape in shapes for view in views)


def _add_reference(out: Path, held_out: Sequence[SourceClip], source: ProfileSource, threads: int) -> None:
    """Put a reference table of the held-out real clips into the file `out`, or print why it gets none."""
    profile = opened(source)
    settings = Settings(
        profile=source.name,
        device=source.device,
        threads=threads,
        num_tracks=profile.num_tracks,  # whatever the environment says: a server of the default reads the table
        decode_isolation=False,
    )
    pipeline = Pipeline(profile, load_discriminators(profile, out, device=source.device), settings)
    try:
        save_reference(out, out.read_bytes(), reference_table(held_out, pipeline))
    except BadRequest as error:
        print(f"no reference table, so rewards come without percentiles: {error}")


def build_cache(
    cache: FeatureCache, clips: Sequence[SourceClip], config: CacheConfig, source: ProfileSource, processes: int
) -> list[str]:
    """Cache the features of every clip that is not cached yet. Returns the reasons for skipped clips.

    The reader's warnings about the others are logged, once a file.
    """
    waiting = {clip.part: clip for clip in clips if not cache.has_part(clip.part)}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=as_helper) as pool:
        tasks = [pool.submit(_cache_clip, cache.folder, clip, config, source) for clip in waiting.values()]
        done = [task.result() for task in track(as_completed(tasks), "motion features", total=len(tasks))]
    for one in done:
        log_warnings(log, one.name, one.warnings)
    return [one.skipped for one in done if one.skipped]


@dataclass(frozen=True, kw_only=True)
class _Cached:
    """What became of a clip: the reader's warnings, or why it was skipped."""

    name: str
    warnings: tuple[ClipWarning, ...] = ()
    skipped: str = ""


def _cache_clip(folder: Path, clip: SourceClip, config: CacheConfig, source: ProfileSource) -> _Cached:
    """Cache one part: the views of one clip, each with its negatives. It runs in a worker process."""
    cache, profile, warnings = FeatureCache(folder), opened(source), list[ClipWarning]()

    def cached(opened_file: Source) -> list[Sample]:
        samples: list[Sample] = []
        for sample, pixels in clip_samples(opened_file, clip, profile, config, warnings.extend):
            motion = profile.motion(pixels, query_seed=seed_of(sample.view), num_tracks=config.num_tracks)
            cache.add(sample, motion, num_pairs=config.num_pairs)
            samples.append(sample)
        return samples

    try:
        with as_invalid_clip(), open_source(clip.path, fps=clip.fps) as opened_file:
            samples = with_true_times(opened_file, cached)
    except (InvalidClip, OSError) as error:
        return _Cached(name=clip.name, skipped=f"{clip.path}: {error}")
    cache.close_part(clip.part, samples)
    skipped = "" if samples else f"{clip.path}: no view without a cut shows motion"
    return _Cached(name=clip.name, warnings=tuple(warnings), skipped=skipped)


def _cache_name(profile: Profile, config: CacheConfig, compute: Compute) -> str:
    made = f"{profile.preprocessing_digest} {config} {SHARES} {chain.REVISION} {compute.precision}"
    return hashlib.sha256(made.encode()).hexdigest()[:16]


def _version(profile: Profile, weights: dict[DiscriminatorName, dict[str, torch.Tensor]]) -> str:
    """The profile's name and a digest of the weights, so that equal weights give an equal version."""
    digest = hashlib.sha256()
    for discriminator in weights.values():
        for tensor in discriminator.values():
            digest.update(tensor.numpy().tobytes())
    return f"{profile.name}-{digest.hexdigest()[:8]}"
