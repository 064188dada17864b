"""Joins cached samples into views, each a real clip with its negatives, and holds some of them out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from reward_server.errors import BadRequest
from reward_server.training.feature_cache import GENERATED, Sample


@dataclass(frozen=True, kw_only=True)
class View:
    """A real clip and its negatives, all of the same shape.

    `shared` says whether the negatives show the real clip's own scene. If not, the order within the view says nothing
    about motion.
    """

    real: Sample
    negatives: tuple[Sample, ...]
    shared: bool = True


def views_of(samples: Sequence[Sample]) -> list[View]:
    """Join each real clip with its negatives, which must have the same shape.

    These are its faulty twins. Without any, they are generated clips of the same source (the same first frame), or
    else all generated clips. Real clips without negatives are left out.
    """
    twins, same_source, same_shape = defaultdict(list), defaultdict(list), defaultdict(list)
    for sample in samples:
        if sample.fault == GENERATED:
            same_source[sample.source, sample.shape].append(sample)
            same_shape[sample.shape].append(sample)
        elif sample.fault:
            twins[sample.view, sample.shape].append(sample)
    views = []
    for real in (sample for sample in samples if sample.real):
        own = twins[real.view, real.shape] or same_source[real.source, real.shape]
        if negatives := own or same_shape[real.shape]:
            views.append(View(real=real, negatives=tuple(negatives), shared=bool(own)))
    return views


def clips_of(views: Sequence[View]) -> dict[str, Sample]:
    """All clips of the views, by key. Views may share negatives."""
    return {sample.key: sample for view in views for sample in (view.real, *view.negatives)}


def split_by_source(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[View], list[View]]:
    """Split samples into training views and held-out views by source: no source is in both.

    `share` is the share of sources to hold out. Raises BadRequest with fewer than two real sources, or if one side
    would have no views.
    """
    real = {sample.source for sample in samples if sample.real}
    if len(real) < 2:
        raise BadRequest(
            f"the real clips come from {len(real)} source(s), but at least 2 are needed to hold one out; "
            "give clips from more sources"
        )
    held = _held_out(real, share, seed) | _held_out({sample.source for sample in samples} - real, share, seed)
    views, held_out = (views_of([one for one in samples if (one.source in held) is side]) for side in (False, True))
    if not (views and held_out):
        raise BadRequest(
            f"{len(views)} views with negatives are left to train on and {len(held_out)} to hold out, but at least 1 "
            "of each is needed; give more clips, and generated clips of the same frame size and length as the real ones"
        )
    return views, held_out


def _held_out(sources: Set[str], share: float, seed: int) -> set[str]:
    """Draw a share of the sources: at least one if there are two or more, and never all."""
    ordered = sorted(sources)
    order = np.random.default_rng(seed).permutation(len(ordered))
    return {ordered[i] for i in order[: max(0, min(len(ordered) - 1, max(1, round(share * len(ordered)))))]}
