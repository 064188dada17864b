"""Tests the warnings about odd clips, and that windows avoid cuts, jumps of time and changes of size."""

from __future__ import annotations

import numpy as np
import pytest

from protos.codec import outcome_from_message, outcome_to_message
from protos.json_codec import result_from_json, result_to_json
from protos.types import Media
from reward_server.decoding.decode import DecodedClip, Sampling, decode
from reward_server.errors import ClipTooShort, UnreadableClip
from reward_server.pipeline import Pipeline
from tests import media, odd_files
from tests.odd_files import LOSSLESS

SAME_SIZE = Sampling(area_px=64 * 96)
MOVING = media.texture(100, step=3)


def run(payload: bytes, media_kind: Media = Media.CONTAINER, sampling: Sampling = SAME_SIZE) -> DecodedClip:
    return decode(media.submission(payload, media_kind), sampling, media.LIMITS, 600.0)


def told(decoded: DecodedClip) -> dict[str, float]:
    return {warning.code: warning.share for warning in decoded.warnings}


def lossless(frames: np.ndarray, fps: float = 12.0) -> bytes:
    return media.video(frames, fps=fps, **LOSSLESS)


def with_cut(at: int, num: int = 60) -> np.ndarray:
    """Frames that change to another, much brighter scene at frame `at`."""
    other = 255 - media.texture(num, seed=3, step=3) // 4
    return np.concatenate([media.texture(num, step=3)[:at] // 4, other[at:]])


def test_an_even_clip_has_no_warning() -> None:
    assert told(run(lossless(MOVING))) == {}
    assert told(run(media.tensor(MOVING, 12.0), Media.TENSOR)) == {}


@pytest.mark.parametrize("at", [16, 25, 31, 40])
def test_windows_avoid_a_cut(at: int) -> None:
    decoded = run(lossless(with_cut(at)))
    assert told(decoded) == {"cuts": pytest.approx(1 / 59)}
    assert f"at {at / 12:.2f} s" in decoded.warnings[0].message
    for window in decoded.windows:
        first = round(window.start_s * 12)
        assert not first < at < first + 16
        assert len(window.clip.frames) == 16


def test_frames_skipped_between_windows_are_not_a_cut() -> None:
    """Regression: the first frame after a skipped group was compared with the last frame before it."""
    fading = np.clip(media.texture(240, step=1)[:, :32, :48] * np.linspace(0.1, 1, 240)[:, None, None, None], 0, 255)
    payload = media.video(fading.astype(np.uint8), fps=12, codec_options={"g": "12", "crf": "10"})
    assert told(run(payload, sampling=Sampling(max_windows=2, area_px=32 * 48))) == {}


def test_a_short_clip_is_scored_across_its_cut_with_a_warning() -> None:
    decoded = run(lossless(with_cut(8, num=16)))
    assert len(decoded.windows) == 1
    assert "cuts" in told(decoded)


def test_wild_motion_is_not_a_cut() -> None:
    order = np.random.default_rng(0).permutation(100)
    assert told(run(lossless(MOVING[order]))) == {}


def test_still_and_repeated_frames_are_counted() -> None:
    slides = np.repeat(media.texture(4, step=40), 15, axis=0)
    found = told(run(lossless(slides)))
    assert found["still_share"] > 0.9
    assert found["repeated_frames"] > 0.9
    held = told(run(lossless(np.repeat(MOVING[:30], 2, axis=0))))
    assert held["repeated_frames"] == pytest.approx(0.5, abs=0.02)


HELD = np.repeat(media.texture(1, 144, 256), 40, axis=0)
SLOW = media.texture(40, 144, 256, step=1)


def grainy(frames: np.ndarray, sigma: float, *, fixed: bool = False, size_px: int = 1) -> np.ndarray:
    """With grain of `sigma` grey levels in clumps of `size_px` pixels, the same in each frame or new in each."""
    num, height, width, _ = frames.shape
    grain = np.random.default_rng(0).normal(0, sigma, (1 if fixed else num, height // size_px, width // size_px, 1))
    grown = grain.repeat(size_px, axis=1).repeat(size_px, axis=2)
    return np.clip(frames * 0.7 + 40 + grown, 0, 255).astype(np.uint8)


def still_share(payload: bytes) -> float:
    return told(run(payload, sampling=Sampling(max_windows=1, window_frames=40, fps=24))).get("still_share", 0.0)


@pytest.mark.parametrize(("sigma", "size_px"), [(2, 1), (8, 1), (20, 1), (5, 2)])
def test_a_held_picture_under_grain_is_still(sigma: float, size_px: int) -> None:
    """Regression: at 2 grey levels of grain, a held picture counted as moving."""
    frames = grainy(HELD, sigma, size_px=size_px)
    assert still_share(lossless(frames)) > 0.9
    assert still_share(media.video(frames, fps=12, codec_options={"crf": "14"})) > 0.8


def test_slides_under_grain_are_still() -> None:
    slides = np.repeat(media.texture(3, 144, 256, step=60), 15, axis=0)
    assert still_share(lossless(grainy(slides, 5))) > 0.9


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("sigma", [2, 8, 20])
def test_a_slow_clip_moves_behind_grain(sigma: float, fixed: bool) -> None:
    assert still_share(lossless(grainy(SLOW, sigma, fixed=fixed))) == 0
    assert still_share(media.video(grainy(SLOW, sigma, fixed=fixed), fps=12, codec_options={"crf": "14"})) == 0


def test_shares_are_those_of_the_decoded_frames() -> None:
    """Regression: the message spoke of the clip, where only the groups with a window had been decoded."""
    moving = media.texture(240, step=1)[:, :32, :48]
    moving[:60] = moving[0]  # held in the first quarter, which is all that one window needs
    payload = media.video(moving, fps=12, codec_options={"g": "24", "crf": "10"})
    decoded = run(payload, sampling=Sampling(max_windows=1, area_px=32 * 48))
    (still,) = [warning for warning in decoded.warnings if warning.code == "still_share"]
    assert still.share == pytest.approx(1, abs=0.05)
    assert "of the 24 decoded frames" in still.message


def test_no_window_crosses_a_jump_of_time() -> None:
    decoded = run(odd_files.with_gap(MOVING, after=40, gap_ms=2500))
    assert "several_stretches" in told(decoded)
    assert len(decoded.windows) == 4
    gap = 40 / 12, 40 / 12 + 2.5
    for window in decoded.windows:
        assert window.start_s + 15 / 12 < gap[0] or window.start_s >= gap[1] - 1e-3
    assert decoded.source.fps * decoded.source.duration_s == pytest.approx(decoded.source.frames)


def test_both_parts_of_a_joined_stream_are_sampled() -> None:
    decoded = run(odd_files.concatenated_ts(media.texture(60, step=3)))
    assert decoded.source.frames == 60
    assert {window.start_s >= 2.5 for window in decoded.windows} == {True, False}


def test_a_clip_with_only_short_stretches_is_refused() -> None:
    with pytest.raises(ClipTooShort, match=r"in the longest of 2 stretches between jumps of time"):
        run(odd_files.with_gap(MOVING[:14], after=7, gap_ms=2500))


def test_uneven_times_give_a_warning_and_consistent_figures() -> None:
    decoded = run(odd_files.dropped(MOVING, 0.3))
    assert 0 < told(decoded)["uneven_times"] < 0.5
    source = decoded.source
    assert source.fps * source.duration_s == pytest.approx(source.frames)
    assert told(run(odd_files.dropped(MOVING, 0.0))) == {}


@pytest.mark.parametrize("seed", range(3))
def test_windows_avoid_dropped_frames(seed: int) -> None:
    """Regression: each missing frame was replaced by its neighbour, so the reward saw a stutter that was not real."""
    frames = media.numbered(120, 64, 96)
    decoded = run(odd_files.dropped(frames, 0.3, seed=seed))
    assert decoded.fps_used == pytest.approx(12, rel=0.4)
    for window in decoded.windows:
        numbers = media.numbers(window.clip.frames)
        assert len(set(np.diff(numbers).tolist())) == 1
        assert np.diff(numbers)[0] == pytest.approx(30 / decoded.fps_used, rel=0.01)
        assert numbers[0] == pytest.approx(window.start_s * 30, abs=0.1)
    assert "uneven_times" in told(decoded)


def test_a_slow_clip_that_lost_too_many_frames_for_even_windows_is_refused() -> None:
    """At 10 fps there is no coarser step within the profile's rates, and repeated frames would look like a fault."""
    with pytest.raises(UnreadableClip, match=r"over the limit of 20%: the clip has lost frames"):
        run(odd_files.dropped(media.texture(40), 0.4, fps=10))


def test_even_windows_that_show_little_of_a_clip_are_not_used() -> None:
    """Regression: one window of four showed another part of the clip, and moved its reward by 1.6 mild faults."""
    whole = np.arange(16, 32)  # the only place for an even window; elsewhere two of three frames are there
    kept = [at for at in range(96) if at in whole or at % 3]
    ticks = [round(1000 * at / 12) for at in kept]
    payload = media.video(MOVING[kept], ticks=ticks, **LOSSLESS)
    with pytest.raises(UnreadableClip, match=r"over the limit of 20%: the clip has lost frames"):
        run(payload)
    short = [at for at in kept if at < 32]
    decoded = run(media.video(MOVING[short], ticks=ticks[: len(short)], **LOSSLESS))
    (window,) = decoded.windows
    assert window.start_s == pytest.approx(15 / 12, abs=0.01)  # frame 16, after the first frame, which is 1


def test_a_clip_with_mostly_uneven_times_is_refused() -> None:
    ticks = [1000 * (at // 8) + 20 * (at % 8) for at in range(96)]  # bursts of eight frames, one second apart
    with pytest.raises(UnreadableClip, match=r"frame within half a step, over the limit of 20%: .*constant rate"):
        run(media.video(MOVING[:96], ticks=ticks, **LOSSLESS))


def test_the_answer_includes_the_warnings(small_pipeline: Pipeline) -> None:
    payload = lossless(np.repeat(media.texture(12, step=6), 2, axis=0))
    (outcome,) = small_pipeline.score_submissions([media.submission(payload)])
    assert outcome.reward is not None
    assert [warning.code for warning in outcome.reward.provenance.warnings] == ["repeated_frames", "still_share"]
    assert outcome_from_message(outcome_to_message(outcome)) == outcome
    assert result_from_json(result_to_json(outcome)) == outcome
