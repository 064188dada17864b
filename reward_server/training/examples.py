"""What a discriminator learns from: views, each a real clip and its negatives, and which of them are held out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from reward_server.errors import BadRequest
from reward_server.training.feature_cache import Sample


@dataclass(frozen=True, kw_only=True)
class View:
    """A real clip and its negatives, all of one shape."""

    real: Sample
    negatives: tuple[Sample, ...]


def views_of(samples: Sequence[Sample]) -> list[View]:
    """Join each real clip with its negatives of the same shape: its faulty twins; without those, generated
    clips of the same source (same first frame), else any generated clips. Clips without a partner are left out."""
    twins, same_source, same_shape = defaultdict(list), defaultdict(list), defaultdict(list)
    for sample in samples:
        if sample.fault == "generated":
            same_source[sample.source, sample.shape].append(sample)
            same_shape[sample.shape].append(sample)
        elif sample.fault:
            twins[sample.view, sample.shape].append(sample)
    views = []
    for real in (sample for sample in samples if sample.real):
        negatives = twins[real.view, real.shape] or same_source[real.source, real.shape] or same_shape[real.shape]
        if negatives:
            views.append(View(real=real, negatives=tuple(negatives)))
    return views


def clips_of(views: Sequence[View]) -> dict[str, Sample]:
    """By their keys; views may share negatives."""
    return {sample.key: sample for view in views for sample in (view.real, *view.negatives)}


def split_by_source(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[View], list[View]]:
    """(training, held-out) views; no source, real or generated, is on both sides, and views are on each."""
    real = {sample.source for sample in samples if sample.real}
    if len(real) < 2:
        raise BadRequest(f"real clips come from {len(real)} source(s); at least 2 are needed to hold one out")
    held = _held_out(real, share, seed) | _held_out({sample.source for sample in samples} - real, share, seed)
    views, held_out = (views_of([one for one in samples if (one.source in held) is side]) for side in (False, True))
    if not (views and held_out):
        raise BadRequest(
            f"{len(views)} views with negatives are left to train on and {len(held_out)} to hold out, at least 1 is "
            "needed of each; give more clips, generated ones of the size of the real ones"
        )
    return views, held_out


def _held_out(sources: Set[str], share: float, seed: int) -> set[str]:
    """A share of the sources, at least one where there are two."""
    ordered = sorted(sources)
    order = np.random.default_rng(seed).permutation(len(ordered))
    return {ordered[i] for i in order[: max(0, min(len(ordered) - 1, max(1, round(share * len(ordered)))))]}
