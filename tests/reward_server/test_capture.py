"""Tests the capture chain: what each stage adds, and that a frozen clip is no longer made of copies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from protos.types import Clip
from reward_server.capture.chain import Capture
from reward_server.capture.codec import CODECS, Codec, available
from reward_server.capture.display import barred, requantised, soft_flicker, tiny_warps
from reward_server.capture.sensor import Flicker, Noise
from reward_server.decoding import encode
from reward_server.faults import with_fault
from tests.media import texture


def clip_of(num: int = 16) -> Clip:
    return Clip(frames=texture(num, 96, 160, seed=3).transpose(0, 3, 1, 2).copy(), fps=12.0)


def gray(level: float, num: int = 8) -> np.ndarray:
    return np.full((num, 64, 96, 3), level, np.float32)


def test_noise_has_its_sigma_and_grows_with_brightness() -> None:
    rng = np.random.default_rng(0)
    noise = Noise(sigma=3.0, shot=1.0, grain_px=0.0)
    dark, middle = (noise.apply(gray(level), rng) - level for level in (32, 128))
    assert middle.std() == pytest.approx(3.0, rel=0.03)
    assert dark.std() == pytest.approx(1.5, rel=0.03)
    assert abs(np.corrcoef(middle[0].ravel(), middle[1].ravel())[0, 1]) < 0.03


def test_coarse_noise_keeps_its_sigma() -> None:
    noisy = Noise(sigma=2.0, shot=0.0, grain_px=0.8).apply(gray(100), np.random.default_rng(1)) - 100
    assert noisy.std() == pytest.approx(2.0, rel=0.05)
    assert np.corrcoef(noisy[:, :, :-1].ravel(), noisy[:, :, 1:].ravel())[0, 1] > 0.3


def test_flicker_changes_frames_and_a_long_memory_drifts() -> None:
    def steps(memory: float) -> float:
        flicker = Flicker(exposure=0.02, balance=0.0, memory=memory)
        levels = flicker.apply(gray(100, num=400), np.random.default_rng(2)).mean(axis=(1, 2, 3))
        assert levels.std() == pytest.approx(2.0, rel=0.4)
        return float(np.abs(np.diff(levels)).mean())

    assert steps(0.9) < 0.6 * steps(0.0)


def test_warps_stay_below_a_tenth_of_a_pixel() -> None:
    rows, columns = np.indices((64, 96)).astype(np.float32)
    ramps = (np.broadcast_to(ramp[None, ..., None], (8, 64, 96, 3)) for ramp in (columns, rows))
    moved = [tiny_warps(ramp, 0.1, np.random.default_rng(0)) - ramp for ramp in ramps]  # the displacement itself
    assert np.hypot(*moved).max() == pytest.approx(0.1, abs=1e-4)
    assert np.hypot(*moved).mean() > 0.02
    assert np.abs(np.diff(moved[0], axis=0)).max() > 0.05


def test_soft_flicker_has_its_size_and_bars_are_black() -> None:
    added = soft_flicker(gray(50), 1.5, 12, np.random.default_rng(0)) - 50
    assert added.std() == pytest.approx(1.5, rel=0.01)
    framed = barred(gray(50), 0.125, upright=False)
    assert (framed[:, :8] == 0).all()
    assert (framed[:, -8:] == 0).all()
    assert (framed[:, 8:-8] == 50).all()


def test_requantised_blocks_hold_multiples_of_a_step_that_differs_by_frame() -> None:
    rng = np.random.default_rng(0)
    frames = rng.uniform(0, 255, (1, 20, 36, 3)).astype(np.float32).repeat(6, axis=0)  # sides of no whole blocks
    shown = requantised(frames, 8.0, rng)
    assert shown.shape == frames.shape
    assert 1 < np.abs(shown - frames).mean() < 8
    assert np.abs(np.diff(shown, axis=0)).mean((1, 2, 3)).min() > 1
    flat = requantised(gray(101, num=200), 8.0, rng)  # its only coefficient is the mean, 8 times the level
    steps = 8 * np.abs(flat[:, 0, 0, 0] - 101)
    assert steps.max() <= 8.01  # half of the largest step
    assert np.ptp(flat, axis=(1, 2, 3)).max() < 0.01


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_returns_every_frame_a_little_changed(name: str) -> None:
    if not available(name):
        pytest.skip(f"this FFmpeg cannot encode {name}")
    frames = np.ascontiguousarray(clip_of().frames.transpose(0, 2, 3, 1))
    decoded = Codec(name=name, quality=28 if name != "mjpeg" else 6, gop=12).apply(frames, 12.0)
    assert decoded.shape == frames.shape
    error = np.abs(decoded.astype(float) - frames).mean()
    assert 0.2 < error < 12


def test_h264_does_not_depend_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = clip_of().frames.transpose(0, 2, 3, 1)
    codec = Codec(name="libx264", quality=22, gop=12)
    ours = codec.apply(frames, 12)
    monkeypatch.setitem(encode.EXACT, "libx264", {"x264-params": "asm=0"})  # no code for any one processor
    assert np.array_equal(codec.apply(frames, 12), ours)


def test_the_same_draw_gives_the_same_clip_and_draws_differ() -> None:
    draws = [Capture.draw(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    clips = [draw.apply(clip_of()).frames for draw in draws]
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])


def test_stages_that_are_left_out_change_nothing() -> None:
    assert np.array_equal(Capture().apply(clip_of()).frames, clip_of().frames)


def test_a_frozen_clip_is_no_longer_made_of_copies() -> None:
    """The shortcut: static, frozen and stutter repeat frames bit for bit, and no real clip does."""
    frozen = with_fault(clip_of(), "static", 1.0, 0)
    assert (np.diff(frozen.frames, axis=0) == 0).all()
    rng = np.random.default_rng(5)
    equal = [float((np.diff(Capture.draw(rng).apply(frozen).frames, axis=0) == 0).mean()) for _ in range(20)]
    assert np.median(equal) < 0.6


def test_only_the_drawn_stages_are_applied() -> None:
    noisy = dataclasses.replace(Capture(), noise=Noise(sigma=4.0, shot=0.0, grain_px=0.0))
    changed = noisy.apply(clip_of()).frames.astype(float) - clip_of().frames
    assert 2.5 < changed.std() < 4.5
