"""Checks the training data for shortcuts: can real clips be told from their faulty twins without looking at motion?

A small classifier reads statistics of noise, sharpness, compression and equal frames, measured where nothing is to be
seen moving. If it tells the two sides apart, a discriminator can too, and will. It is tested on sources that it was not
trained on. `python -m experiments.recipe probe` fails above LIMIT; `make weights` runs it before training.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from protos.reader import Source, open_source, with_true_times
from protos.types import Clip
from reward_server.data.shots import SourceClip, find_clips
from reward_server.decoding.refusals import as_invalid_clip
from reward_server.errors import BadRequest, InvalidClip
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.training.jobs import as_helper
from reward_server.training.samples import CacheConfig, clip_samples

Floats = NDArray[np.float64]

LIMIT = 0.55  # largest AUC at which the data are free of shortcuts
BLOCK_PX = 8
FLATTEST = 0.15  # share of the blocks, with the least texture, in which motion cannot be seen
FOLDS = 5
STATISTICS = ("noise", "change", "equal", "flicker", "sharpness", "sharpness_change", "blocking", "coarse_noise")


@dataclass(frozen=True, kw_only=True)
class Probed:
    """The statistics of one clip: `values` in the order of STATISTICS."""

    source: str
    fault: str  # empty for a real clip
    values: tuple[float, ...]


def still_statistics(clip: Clip) -> tuple[float, ...]:
    """Statistics of a clip that carry no motion, in the order of STATISTICS, in gray levels or as shares.

    noise             mean absolute Laplacian of the flattest blocks
    change            median absolute difference of successive frames there
    equal             share of pixels there that do not change at all
    flicker           standard deviation over time of their mean brightness, after its slow course is taken out
    sharpness         mean absolute Laplacian of the whole frame
    sharpness_change  its mean absolute change between frames, as a share
    blocking          mean step across the borders of 8x8 blocks over the mean step inside them
    coarse_noise      standard deviation of the successive frames' difference there after a blur of 2 px
    """
    gray = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.frames.transpose(0, 2, 3, 1)])
    levels = gray.astype(np.float32)
    laplacian = np.stack([np.abs(cv2.Laplacian(frame, cv2.CV_32F)) for frame in levels])
    flat = _flat(levels)
    steps = np.diff(levels, axis=0)
    mean = levels[:, flat].mean(axis=1)
    sharpness = laplacian.mean(axis=(1, 2))
    blurred = np.stack([cv2.GaussianBlur(step, (0, 0), 2.0) for step in steps])
    return (
        float(laplacian[:, flat].mean()),
        float(np.median(np.abs(steps[:, flat]))),
        float((steps[:, flat] == 0).mean()),
        float(np.diff(mean, n=2).std()),
        float(sharpness.mean()),
        float(np.abs(np.diff(sharpness)).mean() / max(sharpness.mean(), 1e-6)),
        _blocking(levels),
        float(blurred[:, flat].std()),
    )


def probed_clips(folders: Sequence[Path], *, num_views: int, seed: int, processes: int) -> list[Probed]:
    """The statistics of about `num_views` training views and their twins, spread evenly over the source clips.

    Raises BadRequest for a folder without clips.
    """
    clips = [clip for folder in folders for clip in find_clips(folder, real=True)]
    config = CacheConfig(frames_per_view=1, most_views=max(1, round(num_views / len(clips))), seed=seed)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=as_helper) as pool:
        tasks = [pool.submit(_probed, clip, config) for clip in clips]
        return [one for task in track(as_completed(tasks), "probe", total=len(tasks)) for one in task.result()]


def _probed(clip: SourceClip, config: CacheConfig) -> list[Probed]:
    def read(source: Source) -> list[Probed]:
        return [
            Probed(source=sample.source, fault=sample.fault, values=still_statistics(pixels))
            for sample, pixels in clip_samples(source, clip, EmbeddedProfile(), config)
        ]

    try:
        with as_invalid_clip(), open_source(clip.path) as source:
            return with_true_times(source, read)
    except InvalidClip:
        return []  # pretraining skips it as well, and says why


def separation(clips: Sequence[Probed], seed: int = 0) -> float:
    """AUC, on sources left out in turn, of a classifier that tells real clips from the others. 0.5 is chance.

    Both sides have the same weight. Raises BadRequest with fewer than two sources or only one side.
    """
    real = np.array([not clip.fault for clip in clips])
    sources = np.array([clip.source for clip in clips])
    if len(set(sources)) < 2 or real.all() or not real.any():
        raise BadRequest(
            f"the probe needs real clips and faulty twins of 2 sources or more, and got {len(clips)} clips of "
            f"{len(set(sources))} sources; name folders with more clips"
        )
    values = np.array([clip.values for clip in clips])
    weight = np.where(real, 1 / real.mean(), 1 / (1 - real.mean()))
    scores = np.empty(len(clips))
    for rest, held in GroupKFold(min(FOLDS, len(set(sources)))).split(values, groups=sources):
        trees = HistGradientBoostingClassifier(max_iter=120, max_leaf_nodes=8, random_state=seed)
        trees.fit(values[rest], real[rest], sample_weight=weight[rest])
        scores[held] = trees.predict_proba(values[held])[:, 1]
    return float(roc_auc_score(real, scores, sample_weight=weight))


def separations(clips: Sequence[Probed], seed: int = 0) -> dict[str, float]:
    """`separation` of all clips ("all"), and of the real clips from each fault apart."""
    return {"all": separation(clips, seed)} | {
        fault: separation([clip for clip in clips if clip.fault in ("", fault)], seed) for fault in _faults(clips)
    }


def _faults(clips: Iterable[Probed]) -> list[str]:
    return sorted({clip.fault for clip in clips if clip.fault})


def _flat(levels_THW: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which pixels [H,W] lie in the blocks with the least texture in any frame."""
    num, height, width = levels_THW.shape
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.5) for frame in levels_THW])
    blocks = smooth[:, : rows * BLOCK_PX, : columns * BLOCK_PX].reshape(num, rows, BLOCK_PX, columns, BLOCK_PX)
    texture = blocks.std(axis=(2, 4)).max(axis=0)
    chosen = texture <= np.quantile(texture, FLATTEST)
    mask = np.zeros((height, width), np.bool_)
    mask[: rows * BLOCK_PX, : columns * BLOCK_PX] = chosen.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1)
    return mask


def _blocking(levels_THW: NDArray[np.float32]) -> float:
    steps = np.abs(np.diff(levels_THW, axis=2)).mean(axis=(0, 1))
    border = np.arange(1, len(steps) + 1) % BLOCK_PX == 0
    return float(steps[border].mean() / max(float(steps[~border].mean()), 1e-6))
