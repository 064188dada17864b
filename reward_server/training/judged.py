"""Compares a refreshed discriminator with its parent: on held-out clips, and on the run's anchor set.

On the anchor set it is also attacked in small: do copies of the real clips, which hold or glide over one frame, get
lower logits than their clips (pipeline/copies.py), and does the logit follow how much clips move? The logits of these
two include the terms of the profile, as rewards do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import stats

from protos.types import Anchor, Bounds, Separation
from reward_server.profiles.run_clips import RunClip
from reward_server.stats import Floats, auc, ordered
from reward_server.training.buffers import Buffers

LEAST_AMOUNTS = 16  # clips whose amounts are known; with fewer, a rank correlation says next to nothing
LEAST_PAIRS = 8  # of a clip and a copy

Logit = Callable[[RunClip, int], float]
"""The logit of a clip without its term, from so many of its tracks or pairs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Logits:
    """A discriminator's logits of real clips and of rollouts."""

    real: Floats
    rollouts: Floats

    @property
    def separation(self) -> Separation:
        gap = float(self.real.mean() - self.rollouts.mean())
        return Separation(auc=auc(self.real, self.rollouts), logit_gap=gap)

    @property
    def all(self) -> Floats:
        return np.concatenate([self.real, self.rollouts])

    def saturation(self, bounds: Bounds) -> float:
        """The share of logits outside of the bounds."""
        return float(((self.all < bounds.min) | (self.all > bounds.max)).mean())


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """A discriminator under attack; reward.proto explains the fields. None: the set cannot tell."""

    copies: float | None
    amount_real: float | None
    amount_rollouts: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchored:
    """A discriminator on the run's anchor set."""

    logits: Logits
    attacked: Attacked


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A discriminator on held-out clips and, if the run has one, on its anchor set."""

    held_out: Logits
    anchor: Anchored | None


def attacked(logit: Logit, clips: Buffers, logits: Logits, size: Callable[[RunClip], int], term: int) -> Attacked:
    """Attack a discriminator on an anchor set with these logits.

    `size` is the number of tracks or pairs that a clip holds. `term` is the discriminator's place among a clip's terms.
    """

    def rewarded(clip: RunClip, num: int) -> float:
        return logit(clip, num) + clip.about.terms[term]

    pairs = [
        (rewarded(clip, num), rewarded(copy, num))
        for clip in clips.real
        for copy in clip.copies
        if (num := min(size(clip), size(copy)))
    ]
    return Attacked(
        copies=ordered(*zip(*pairs, strict=True)).fraction if len(pairs) >= LEAST_PAIRS else None,
        amount_real=_follows_amount(clips.real, logits.real, term),
        amount_rollouts=_follows_amount(clips.rollouts, logits.rollouts, term),
    )


def _follows_amount(clips: Sequence[RunClip], logits: Floats, term: int) -> float | None:
    rows = [(logit + clip.about.terms[term], clip.about.amount) for clip, logit in zip(clips, logits, strict=True)]
    known = np.array([row for row in rows if math.isfinite(row[1])])
    if len(known) < LEAST_AMOUNTS or (np.ptp(known, axis=0) == 0).any():
        return None
    return float(stats.spearmanr(*known.T).statistic)


def anchored(old: Judged, new: Judged, bounds: Bounds) -> Anchor | None:
    """The figures of a refresh on the anchor set, if there is one."""
    if old.anchor is None or new.anchor is None:
        return None
    before, after = old.anchor.logits, new.anchor.logits
    under_attack = {
        f"{field.name}_{when}": getattr(one.attacked, field.name)
        for when, one in (("before", old.anchor), ("after", new.anchor))
        for field in fields(Attacked)
    }
    return Anchor(
        before=before.separation,
        after=after.separation,
        drift=float(np.abs(after.all - before.all).mean() / (bounds.max - bounds.min)),
        saturation_before=before.saturation(bounds),
        saturation_after=after.saturation(bounds),
        **under_attack,
    )
