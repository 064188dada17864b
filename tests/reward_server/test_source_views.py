"""Tests the views of a file: one pass decodes each frame once, views come as they end, and none crosses a cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protos.reader import ReaderError, Source, decoding, open_source, with_true_times
from protos.types import Clip, ClipWarning
from reward_server.decoding.sampling import Sampling
from reward_server.errors import UnreadableClip
from reward_server.training.source_views import ViewPlan, source_views
from reward_server.training.views import NEAR, DrawnView, Take, draw_view
from tests import media, odd_files
from tests.odd_files import LOSSLESS

PLAN = ViewPlan(sampling=Sampling(area_px=64 * 96), frames_per_view=6, most_views=100, max_side_px=640, seed=(0, 1))
MOVING = media.texture(72, step=3)


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """A function that says how many frames have been decoded so far."""
    made: list[int] = []
    picture = decoding.picture

    def counted(*arguments: object) -> object:
        made.append(1)
        return picture(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "picture", counted)
    return lambda: len(made)


def views_of(payload: bytes, plan: ViewPlan = PLAN, first: int = 0, last: int | None = None) -> list[Clip]:
    def use(source: Source) -> list[Clip]:
        return [view for _, view, _ in source_views(source, first, last, plan)]

    with open_source(payload) as opened:
        return with_true_times(opened, use)


def test_a_file_is_decoded_once_for_all_its_views(num_decoded: Callable[[], int]) -> None:
    views = views_of(media.video(MOVING, fps=12, **LOSSLESS))
    assert len(views) == 12
    assert 60 <= num_decoded() <= len(MOVING) + 1  # the first frame is decoded once more when the file is opened


def test_views_are_given_while_the_file_is_decoded(num_decoded: Callable[[], int]) -> None:
    payload = media.video(media.texture(120, step=3), fps=12, container="avi", codec="ffv1", pix_fmt="bgr0")
    with open_source(payload) as source:
        views = source_views(source, 0, None, PLAN)
        next(views)
        assert num_decoded() < 60
        assert sum(1 for _ in views) == 19


def test_a_stretch_that_lost_many_frames_is_left_out_and_few_are_told() -> None:
    """Regression: the nearest frame was repeated without a limit and without a word."""
    ticks = np.concatenate([np.arange(36), 100 + odd_files.kept(36, 0.3, seed=1)])
    few, many = np.delete(ticks, 8), ticks[36:]
    warned: list[ClipWarning] = []

    def coded(at: np.ndarray) -> bytes:
        return media.video(MOVING[: at.size], ticks=[round(1000 * tick / 12) for tick in at], **LOSSLESS)

    with open_source(coded(few)) as source:
        assert len(list(source_views(source, 0, None, PLAN, warned.extend))) == 6
    (uneven,) = (one for one in warned if one.code == "uneven_times")
    assert uneven.share == pytest.approx(1 / 36)
    with pytest.raises(ReaderError, match="have no frame within half a step, over the limit of 20%"):
        views_of(coded(many))


def test_the_same_seed_draws_the_same_views() -> None:
    payload = media.video(MOVING, fps=12, **LOSSLESS)
    for one, other in zip(views_of(payload), views_of(payload), strict=True):
        assert np.array_equal(one.frames, other.frames)


def test_a_view_without_motion_is_drawn_again_or_dropped() -> None:
    still_then_moving = np.concatenate([np.repeat(MOVING[:1], 36, axis=0), MOVING[:36]])
    payload = media.video(still_then_moving, fps=12, **LOSSLESS)

    def moves(view: Clip) -> bool:
        return bool((np.diff(view.frames.astype(int), axis=0) != 0).any())

    plan = ViewPlan(**{**vars(PLAN), "tries": 4, "good": moves})
    views = views_of(payload, plan)
    assert 4 <= len(views) <= 12
    assert all(moves(view) for view in views)
    assert not all(moves(view) for view in views_of(payload))


def test_all_draws_of_a_view_are_near_each_other() -> None:
    """Regression: a view waited for a draw at the end of the file, so memory use grew with the file."""
    take = Take(positions=np.arange(5000), fps=12.0, height_px=64, width_px=96)
    rng = np.random.default_rng(0)
    for near in (0, 2500, 4999):
        starts = [draw_view(take, Sampling(), rng, near=near).start for _ in range(50)]
        assert max(abs(start - near) for start in starts) <= NEAR + 16 * 2
        assert len(set(starts)) > 10


def test_no_view_crosses_a_cut_or_a_jump_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    clip = DrawnView.clip

    def recorded(view: DrawnView, frames: list[np.ndarray]) -> Clip:
        drawn.append(view.positions)
        return clip(view, frames)

    monkeypatch.setattr(DrawnView, "clip", recorded)
    dark_then_bright = np.concatenate([MOVING[:36] // 4, 255 - MOVING[36:] // 4])
    views = views_of(media.video(dark_then_bright, fps=12, **LOSSLESS))
    across = [positions for positions in drawn if positions[0] < 36 <= positions[-1]]
    assert across, "the seed draws no view across the cut"
    assert len(views) == len(drawn) - len(across)
    drawn.clear()
    views_of(odd_files.with_gap(MOVING, after=36, gap_ms=2000))
    assert not [positions for positions in drawn if positions[0] < 36 <= positions[-1]]


def test_both_sizes_of_a_turned_recording_are_used() -> None:
    """Regression: pretraining ended with a ValueError that named no file."""
    views = views_of(odd_files.two_sizes(MOVING))
    assert len(views) == 12


def test_too_few_frames_are_refused_with_their_number() -> None:
    with pytest.raises(UnreadableClip, match=r"7 frames without a jump of time, 8 are needed"):
        views_of(media.video(MOVING[:7], fps=12, **LOSSLESS))


def test_a_shot_gives_views_of_its_own_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(media.video(MOVING, fps=12, **LOSSLESS))
    with open_source(path) as source:
        assert sum(1 for _ in source_views(source, 12, 60, PLAN)) == 8
