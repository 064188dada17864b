"""Tests what smooths a clip in time: a denoiser that keeps motion, and a stabiliser that keeps a steady pan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from protos.reader import open_source
from protos.types import Clip
from reward_server.capture import smoothing
from reward_server.capture.smoothing import SHARES, drawn, smoothed
from reward_server.data.shots import SourceClip
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.training import samples
from tests import media
from tests.media import texture

NUM = 16


def clip_of(frames: np.ndarray) -> Clip:
    return Clip(frames=np.ascontiguousarray(frames.transpose(0, 3, 1, 2)), fps=8.0)


def changes(clip: Clip) -> float:
    return float(np.abs(np.diff(clip.frames.astype(float), axis=0)).mean())


def camera(places: Sequence[tuple[float, float]], turns: Sequence[float] = ()) -> Clip:
    """A wide still scene through a window at these places, x and y in px, turned about its middle by degrees."""
    coarse = np.random.default_rng(3).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    wide = cv2.resize(coarse, (500, 400), interpolation=cv2.INTER_CUBIC)
    shots = [cv2.warpAffine(wide, np.array([[1.0, 0.0, -x], [0.0, 1.0, -y]]), (272, 208)) for x, y in places]
    for at, turn in enumerate(turns):
        shots[at] = cv2.warpAffine(shots[at], cv2.getRotationMatrix2D((136, 104), turn, 1.0), (272, 208))
    return clip_of(np.stack(shots))


def path_of(clip: Clip) -> np.ndarray:
    """How far the middle of each frame is found in the next one, x and y in px [T-1,2], to a quarter of a pixel."""
    fine = [cv2.resize(frame[1], None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) for frame in clip.frames]
    height, width = fine[0].shape
    top, left = height // 3, width // 3
    found = []
    for first, second in pairwise(fine):
        match = cv2.matchTemplate(second, first[top:-top, left:-left], cv2.TM_CCOEFF_NORMED)
        y, x = np.unravel_index(match.argmax(), match.shape)
        found.append(((x - left) / 4, (y - top) / 4))
    return np.array(found)


def test_the_denoiser_takes_noise_from_a_still_scene() -> None:
    still = np.repeat(texture(1, 96, 128), NUM, axis=0).astype(float)
    noise = np.random.default_rng(0).normal(0, 1.5, still.shape)
    noisy = clip_of((still + noise).round().clip(0, 255).astype(np.uint8))
    clean = smoothed(noisy, "denoised")
    assert clean.frames.shape == noisy.frames.shape and clean.fps == noisy.fps
    assert changes(clean) < 0.7 * changes(noisy)


def test_the_denoiser_keeps_what_moves() -> None:
    moving = clip_of(texture(NUM, 96, 128, step=4))
    assert changes(smoothed(moving, "denoised")) > 0.9 * changes(moving)


@pytest.mark.parametrize("lost", [1, -1])
def test_a_denoiser_that_returns_another_number_of_frames_is_refused(
    monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr(smoothing, "_filtered", lambda frames, *_: iter([*frames, frames[0]][: len(frames) - lost]))
    with pytest.raises(RuntimeError, match=rf"returned {NUM - lost} of {NUM} frames"):
        smoothed(clip_of(texture(NUM)), "denoised")


def test_an_ffmpeg_without_the_denoiser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av.filter, "filters_available", set())
    with pytest.raises(RuntimeError, match="no filter atadenoise"):
        smoothed(clip_of(texture(NUM)), "denoised")


def test_the_stabiliser_takes_the_shake_from_a_pan_and_keeps_the_pan() -> None:
    rng = np.random.default_rng(1)
    pan = [(20 + 3 * t, 40) for t in range(NUM)]
    shaken = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(pan, rng.normal(0, 2, (NUM, 2)), strict=True)]
    before, after = path_of(camera(shaken)), path_of(smoothed(camera(shaken), "stabilised"))
    assert np.diff(after, axis=0).std() < 0.35 * np.diff(before, axis=0).std()
    assert after.mean(axis=0) == pytest.approx(smoothing.ZOOM * before.mean(axis=0), abs=0.5)


def test_the_stabiliser_takes_a_shaken_turn_and_adds_no_shift() -> None:
    turns = np.random.default_rng(2).normal(0, 1.0, NUM)
    shaken = camera([(100, 80)] * NUM, turns.tolist())
    steady = smoothed(shaken, "stabilised")
    assert changes(steady) < 0.5 * changes(shaken)
    assert np.abs(path_of(steady)).max() <= 0.5


def test_a_single_thing_that_moves_is_no_camera() -> None:
    falling = np.full((NUM, 208, 272, 3), 90, np.uint8)
    for at in range(NUM):
        falling[at, 5 + at * at // 2 :][:40, 120:160] = texture(1, 40, 40)[0]
    clip = clip_of(falling)
    assert np.array_equal(smoothed(clip, "stabilised").frames, clip.frames)


def test_a_shake_that_is_too_wide_is_left() -> None:
    wild = camera([(100 + 30 * (at % 2), 80) for at in range(NUM)])
    assert np.array_equal(smoothed(wild, "stabilised").frames, wild.frames)


def test_the_stabiliser_leaves_a_steady_pan_steady() -> None:
    steady = smoothed(camera([(20 + 4 * t, 40) for t in range(NUM)]), "stabilised")
    assert np.abs(path_of(steady) - [-4 * smoothing.ZOOM, 0]).max() <= 0.5


def test_a_scene_without_points_is_left() -> None:
    plain = np.full((NUM, 64, 96, 3), 90, np.uint8)
    plain[:, :, 60:] = 200  # an edge
    assert np.array_equal(smoothed(clip_of(plain), "stabilised").frames, clip_of(plain).frames)


def test_ways_are_drawn_as_often_as_stated_and_none_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    found = Counter(drawn(rng) for _ in range(4000))
    for name, share in SHARES.items():
        assert found[name] / 4000 == pytest.approx(share, abs=0.03)
    clip = clip_of(texture(NUM))
    assert smoothed(clip, "") is clip


@pytest.mark.parametrize("real", [True, False])
def test_a_real_view_that_stands_still_once_smoothed_is_kept_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    """A generated one is taken as it is."""
    (tmp_path / "clip.mp4").write_bytes(media.video(texture(24, 160, 256, step=4), fps=12.0))
    monkeypatch.setattr(
        samples, "smoothed", lambda view, _: replace(view, frames=np.repeat(view.frames[:1], 16, axis=0))
    )
    clip = SourceClip(source="clip", path=tmp_path / "clip.mp4", real=real)
    with open_source(clip.path) as source:
        found = list(samples.clip_samples(source, clip, EmbeddedProfile(), samples.CacheConfig(frames_per_view=100)))
    assert found and all((sample.change > samples.MIN_CHANGE) is real for sample, _ in found)
