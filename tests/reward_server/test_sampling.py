"""Tests sampling: even strides, times by timestamps, windows from the first to the last frame, and frame sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reward_server.decoding.sampling import (
    Sampling,
    frame_interval,
    nearest,
    profile_size,
    resize_frame,
    schedule,
    stride_of,
)
from reward_server.errors import ClipTooShort

SAMPLING = Sampling()


@pytest.mark.parametrize(
    ("fps", "stride"),
    [
        *((5, 1), (10, 1), (14, 1), (15, 1), (16, 1), (18, 1), (24, 2), (25, 2)),
        *((29.97, 2), (30, 2), (30.3, 2), (48, 4), (50, 4), (59.94, 5), (60, 5), (120, 10)),
    ],
)
def test_common_rates_are_thinned_by_these_strides(fps, stride):
    assert stride_of(fps, 12.0) == stride


def picks(times_s, sampling=SAMPLING):
    """The indices of each window's frames."""
    plan = schedule(times_s, sampling)
    chosen = list(nearest(zip(times_s, range(len(times_s)), strict=True), [plan.time_s(k) for k in plan.steps]))
    row = {step: index for index, step in enumerate(plan.steps)}
    return [[chosen[row[start] + k] for k in range(plan.length)] for start in plan.starts]


@given(
    fps=st.floats(4, 100),
    num_frames=st.integers(1, 400),
    first_s=st.floats(-5, 5),
    tick_s=st.sampled_from([1e-3, 1 / 90000, 1 / 12288, 1e-6]),
)
@settings(deadline=None)
def test_rounded_times_of_a_constant_rate_give_even_strides(fps, num_frames, first_s, tick_s):
    stride = stride_of(fps, SAMPLING.fps)
    assume(abs(fps / SAMPLING.fps - 0.55 - round(fps / SAMPLING.fps - 0.55)) > 0.02)  # not at a threshold
    times_s = np.round((first_s + np.arange(num_frames) / fps) / tick_s) * tick_s
    num_used = math.ceil(num_frames / stride)
    if num_used < SAMPLING.min_frames:
        with pytest.raises(ClipTooShort):
            picks(times_s)
        return
    windows = picks(times_s)
    assert windows[0][0] == 0
    assert windows[-1][-1] == (num_used - 1) * stride
    for window in windows:
        assert np.diff(window).tolist() == [stride] * (min(num_used, SAMPLING.window_frames) - 1)


@pytest.mark.parametrize("fps", [10, 15, 16, 20, 25, 30, 100 / 3])
def test_gif_rates_in_hundredths_give_even_strides(fps):
    (window,) = picks(np.round(np.arange(32) / fps * 100) / 100, Sampling(max_windows=1, window_frames=8))
    assert np.diff(window).tolist() == [stride_of(fps, 12.0)] * 7


def test_timestamps_decide_not_frame_counts():
    # Ten frames at 10 fps, then twenty at 20 fps: one second each, and equally many picks from each.
    times_s = np.concatenate([np.arange(10) / 10, 1 + np.arange(20) / 20])
    assert picks(times_s, Sampling(fps=10, window_frames=20)) == [[*range(10), *range(10, 30, 2)]]


def test_the_nearest_frame_is_repeated_in_a_gap():
    times_s = np.concatenate([np.arange(8), 10 + np.arange(8)]) / 10  # no frame at 0.8 s and 0.9 s
    assert picks(times_s, Sampling(window_frames=18)) == [[*range(8), 7, 8, *range(8, 16)]]


def test_repeated_and_unordered_timestamps_count_once():
    assert frame_interval(np.array([0.0, 0.0, 0.1, 0.1, 0.2, 0.3])) == pytest.approx(0.1)
    assert frame_interval(np.array([0.5, 0.5])) == 0
    assert frame_interval(np.array([])) == 0


def test_alternating_intervals_have_the_median_interval():
    gaps = np.tile([0.04, 0.2], 6)  # an even number of gaps; the median, 0.12, is near neither of them
    assert frame_interval(np.concatenate([[0.0], gaps.cumsum()])) == pytest.approx(0.12)


@given(total=st.integers(8, 500), max_windows=st.integers(1, 8), window_frames=st.integers(8, 40))
@settings(deadline=None)
def test_windows_are_even_from_the_first_frame_to_the_last(total, max_windows, window_frames):
    plan = schedule(np.arange(total) / 10, Sampling(max_windows=max_windows, window_frames=window_frames))
    assert plan.length == min(total, window_frames)
    assert len(plan.starts) == min(max_windows, math.ceil(total / plan.length))
    assert plan.starts[0] == 0
    if len(plan.starts) > 1:
        assert plan.starts[-1] == total - plan.length
        gaps = np.diff(plan.starts)
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("num_frames", "fps", "used"), [(0, 10, 0), (1, 10, 1), (7, 10, 7), (14, 24, 7)])
def test_a_too_short_clip_is_refused_with_the_needed_length(num_frames, fps, used):
    with pytest.raises(ClipTooShort, match=rf"become {used} frame\(s\).*minimum of 8;.*at least 0\.\d+ s"):
        schedule(np.arange(num_frames) / fps, SAMPLING)
    if used == 7:
        schedule(np.arange(num_frames + 1) / fps, SAMPLING)  # one more frame is enough


rising = st.lists(st.integers(-50, 50), min_size=1, max_size=30, unique=True).map(sorted)


@given(times=rising, wanted=st.lists(st.integers(-60, 60), max_size=30).map(sorted))
@settings(deadline=None)
def test_nearest_equals_brute_force_with_ties_to_the_earlier(times, wanted):
    consumed = iter([(float(time), time) for time in times])
    expected = [min(times, key=lambda time: (abs(time - want), time)) for want in wanted]
    assert list(nearest(consumed, [float(want) for want in wanted])) == expected
    assert next(consumed, None) is None  # all frames were consumed, also those after the last wanted time


def test_nearest_of_no_frames_is_nothing():
    assert list(nearest(iter([]), [0.0, 1.0])) == []


@given(height=st.integers(16, 4320), width=st.integers(16, 7680))
@settings(deadline=None)
def test_sizes_keep_area_and_shape(height, width):
    rows, columns = profile_size(height, width, SAMPLING)
    assert rows % 16 == columns % 16 == 0
    assert 0.8 <= rows * columns / SAMPLING.area_px <= 1.2
    aspect = min(4.0, max(0.25, width / height))
    assert 0.9 <= columns / rows / aspect <= 1.1
    assert profile_size(width, height, SAMPLING) == (columns, rows)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *(((320, 576), (144, 256)), ((480, 832), (144, 256)), ((512, 512), (192, 192)), ((320, 512), (160, 256))),
        *(((1920, 1080), (256, 144)), ((2, 4000), (96, 384)), ((4000, 2), (384, 96)), ((1, 1), (192, 192))),
    ],
)
def test_sizes_of_common_clips(size, expected):
    assert profile_size(*size, SAMPLING) == expected


def test_resizing_averages_areas_and_keeps_equal_sizes():
    frame = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    means = frame.reshape(32, 2, 48, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(resize_frame(frame, 32, 48) - means).max() <= 0.5
    assert resize_frame(frame, 64, 96) is frame
    flat = np.full((30, 50, 3), 77, np.uint8)
    assert (resize_frame(flat, 144, 256) == 77).all()
    assert (resize_frame(flat, 16, 16) == 77).all()


@pytest.mark.parametrize("wrong", [{"min_frames": 1}, {"min_frames": 17}, {"max_windows": 0}, {"fps": 0.0}])
def test_an_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="need"):
        Sampling(**wrong)
