"""Tests the filters that smooth a clip in time: a denoiser that keeps motion, and a stabiliser."""

from __future__ import annotations

from collections import Counter

import av
import numpy as np
import pytest

from protos.types import Clip
from reward_server.capture.smoothing import CHANCES, DENOISER, STABILISER, Smoothing
from tests.media import texture

NUM = 12


def clip_of(frames: np.ndarray) -> Clip:
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=8.0)


def needs(name: str) -> None:
    if name not in av.filter.filters_available:
        pytest.skip(f"this FFmpeg has no {name}")


def changes(clip: Clip) -> float:
    return float(np.abs(np.diff(clip.frames.astype(float), axis=0)).mean())


def test_the_denoiser_takes_noise_from_a_still_scene() -> None:
    needs(DENOISER)
    still = np.repeat(texture(1, 96, 128), NUM, axis=0).astype(float)
    noisy = clip_of(
        (still + np.random.default_rng(0).normal(0, 1.5, still.shape)).round().clip(0, 255).astype(np.uint8)
    )
    clean = Smoothing(filter=DENOISER).apply(noisy)
    assert clean.frames.shape == noisy.frames.shape and clean.fps == noisy.fps
    assert changes(clean) < 0.7 * changes(noisy)


def test_the_denoiser_keeps_what_moves() -> None:
    needs(DENOISER)
    moving = clip_of(texture(NUM, 96, 128, step=4))
    assert changes(Smoothing(filter=DENOISER).apply(moving)) > 0.9 * changes(moving)


def test_the_stabiliser_takes_the_shake_from_a_shaken_scene() -> None:
    needs(STABILISER)
    wide = texture(1, 224, 288)[0]
    rng = np.random.default_rng(1)
    places = [(int(y), int(x)) for y, x in rng.integers(0, 9, (NUM, 2))]
    shaken = clip_of(np.stack([wide[y : y + 208, x : x + 272] for y, x in places]))
    steady = Smoothing(filter=STABILISER).apply(shaken)
    middle = (slice(None), slice(None), slice(24, -24), slice(24, -24))
    assert np.abs(np.diff(steady.frames[middle].astype(float), axis=0)).mean() < 0.7 * changes(shaken)


def test_filters_are_drawn_as_often_as_stated_and_none_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    drawn = Counter(Smoothing.draw(rng).filter for _ in range(4000))
    for name, chance in CHANCES.items():
        needs(name)
        assert drawn[name] / 4000 == pytest.approx(chance, abs=0.03)
    clip = clip_of(texture(NUM))
    assert Smoothing().apply(clip) is clip
