"""Tests the probe for shortcuts: it finds exact copies and a change of noise, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.recipe.probe import LIMIT, STATISTICS, Probed, separation, still_statistics
from protos.types import Clip
from reward_server.capture.chain import Capture
from reward_server.errors import BadRequest
from reward_server.faults import with_fault
from tests.media import texture


def clip_of(seed: int) -> Clip:
    """A moving texture before a plain wall, through a camera's noise: the wall shows no motion."""
    frames = texture(12, 96, 160, seed=seed).transpose(0, 3, 1, 2).astype(float)
    frames[..., 60:] = 40 + 5 * seed
    frames += np.random.default_rng(seed).normal(0, 1.5, frames.shape)
    return Clip(frames=frames.clip(0, 255).round().astype(np.uint8), fps=12.0)


def probed(captured: bool) -> list[Probed]:
    found = []
    for seed in range(30):
        clip, rng = clip_of(seed), np.random.default_rng(seed)
        for fault, one in (("", clip), ("static", with_fault(clip, "static", 1.0, 0))):
            shown = Capture.draw(rng).apply(one) if captured else one
            found.append(Probed(source=str(seed), fault=fault, values=still_statistics(shown)))
    return found


def test_exact_copies_are_found_without_the_chain() -> None:
    clips = probed(captured=False)
    assert len(clips[0].values) == len(STATISTICS)
    assert separation(clips) > 0.9 > LIMIT


@pytest.mark.parametrize("statistic", ["equal", "change"])
def test_the_chain_hides_exact_copies(statistic: str) -> None:
    """Whether the pixels of a still wall repeat tells held pictures from real ones, but not behind the chain."""
    at = STATISTICS.index(statistic)

    def told(clips: list[Probed]) -> float:
        area = float(roc_auc_score([not clip.fault for clip in clips], [clip.values[at] for clip in clips]))
        return max(area, 1 - area)

    assert told(probed(captured=False)) > 0.95
    assert told(probed(captured=True)) < 0.7


def test_chance_is_one_half() -> None:
    rng = np.random.default_rng(0)
    clips = [
        Probed(source=str(i % 20), fault="" if i % 2 else "static", values=tuple(rng.normal(size=len(STATISTICS))))
        for i in range(600)
    ]
    assert abs(separation(clips) - 0.5) < 0.08


def test_one_side_or_one_source_is_refused() -> None:
    real = Probed(source="a", fault="", values=(0.0,) * len(STATISTICS))
    with pytest.raises(BadRequest, match="2 sources or more, and got 2 clips of 1 sources"):
        separation([real, real])
