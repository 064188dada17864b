"""Tests that the server, pretraining, evaluation and the trainer all get the reader's frames at the reader's times."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from protos.reader import Source, Stretch, open_source, with_true_times
from protos.reader.times import even_positions, nearest_frames
from protos.types import Media, Submission
from reward_server.data.shots import Shot
from reward_server.decoding.decode import Sampling, decode
from reward_server.training import source_views
from reward_server.training.source_views import ViewPlan
from reward_server.training.views import DrawnView
from tests import media, odd_files
from tests.odd_files import GOOD, LOSSLESS
from tests.paff import field_coded
from trainer.video import ClipForm, read_clip

Frames = NDArray[np.uint8]
FRAMES = media.texture(36, step=4)
LUMA = np.repeat(np.repeat(np.arange(36, dtype=np.uint8)[:, None, None] * 6 + 20, 64, axis=1), 96, axis=2)

ODD: dict[str, Callable[[], bytes]] = {
    "plain": lambda: media.video(FRAMES, fps=12, codec_options=GOOD),
    "avi with b-frames": lambda: odd_files.b_frames_in_avi(FRAMES),
    "fields in ts": lambda: field_coded(LUMA, "mpegts"),
    "fields in mkv": lambda: field_coded(LUMA, "matroska"),
    "fields in mp4": lambda: field_coded(LUMA, "mp4"),
    "hidden vp9": lambda: odd_files.hidden_vp9(FRAMES),
    "two recordings in a ts": lambda: odd_files.concatenated_ts(FRAMES),
    "a gap": lambda: odd_files.with_gap(FRAMES, after=12, gap_ms=2000),
    "times in threes": lambda: odd_files.in_threes(media.texture(72, step=4)),
    "a tenth dropped": lambda: odd_files.dropped(FRAMES, 0.1),
    "turned": lambda: media.with_display_matrix(ODD["plain"](), odd_files.TURNED),
    "mirrored": lambda: media.with_display_matrix(ODD["plain"](), odd_files.MIRRORED),
    "wide pixels": lambda: media.video(FRAMES, fps=12, pixel_aspect=Fraction(3, 2), codec_options=GOOD),
    "odd size": lambda: media.video(FRAMES[:, :63, :95], fps=12, **LOSSLESS),
    "two sizes": lambda: odd_files.two_sizes(FRAMES),
    "still track first": lambda: odd_files.two_tracks(np.repeat(FRAMES[:1], 36, axis=0), FRAMES),
    "picture track first": lambda: odd_files.with_cover(FRAMES),
    "quick gif": lambda: odd_files.gif_of(FRAMES, 10),
    "transparent gif": lambda: odd_files.gif_of(odd_files.see_through(FRAMES), 80),
    "transparent webp": lambda: media.webp(odd_files.see_through(FRAMES), 80),
    "edit list": lambda: media.video(
        FRAMES, ticks=list(range(-400, 1400, 50)), container="mov", codec="qtrle", pix_fmt="rgb24"
    ),
    "10 bit": lambda: media.video(FRAMES, fps=12, pix_fmt="yuv420p10le", codec_options=GOOD),
    "tensor": lambda: media.tensor(FRAMES, 12.0),
}


@pytest.fixture(scope="module", params=ODD)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose name does not show its format."""
    file = tmp_path_factory.mktemp("odd") / "clip.bin"
    file.write_bytes(ODD[request.param]())
    return file


def read(path: Path) -> tuple[Source, Stretch, Frames]:
    """The file, its longest stretch, and all frames of that stretch."""
    with open_source(path) as opened:
        return with_true_times(opened, _longest)


def _longest(source: Source) -> tuple[Source, Stretch, Frames]:
    stretch = max(source.stretches, key=lambda one: one.last - one.first)
    return source, stretch, np.stack([frame for _, frame in source.frames(range(stretch.first, stretch.last))])


def positions(found: Frames, reference: Frames) -> list[int]:
    """The positions of these frames [T,H,W,3] in the reference. Fails for a frame that is not in it."""
    at = {frame.tobytes(): index for index, frame in enumerate(reference)}
    assert len(at) == len(reference), "frames of this file cannot be told apart"
    return [at[np.ascontiguousarray(frame).tobytes()] for frame in found]


def test_the_server_gets_the_readers_frames_and_times(path: Path) -> None:
    source, stretch, frames = read(path)
    sampling = Sampling(
        fps=1000,
        window_frames=stretch.last - stretch.first,
        max_windows=1,
        area_px=stretch.height_px * stretch.width_px,
        multiple_px=1,
    )
    data = path.read_bytes()
    kind = Media.TENSOR if source.codec == "safetensors" else Media.CONTAINER
    decoded = decode(Submission(payload=data, media=kind), sampling, media.LIMITS, 600.0)
    (window,) = decoded.windows
    found = positions(window.clip.frames.transpose(0, 2, 3, 1), frames)
    times_s = source.times_s[stretch.first : stretch.last] - source.times_s[0]
    wanted_s = window.start_s + np.arange(len(found)) / decoded.fps_used
    assert found == [int(np.abs(times_s - wanted).argmin()) for wanted in wanted_s]
    assert (decoded.source.frames, decoded.source.codec) == (source.times_s.size, source.codec)
    assert (decoded.source.height_px, decoded.source.width_px) == (stretch.height_px, stretch.width_px)


def test_the_trainer_gets_the_readers_frames(path: Path) -> None:
    source, stretch, frames = read(path)
    form = ClipForm(num_frames=5, fps=source.fps / 3, height_px=stretch.height_px, width_px=stretch.width_px)
    clip = read_clip(path, form, first=stretch.first, last=stretch.last)
    found = positions(clip.frames.transpose(0, 2, 3, 1), frames)
    times_s = source.times_s[stretch.first : stretch.last]
    assert found == nearest_frames(times_s, (times_s[0] + 3 / source.fps * np.arange(5)).tolist()).tolist()


def test_an_evaluation_shot_has_the_readers_frames(path: Path) -> None:
    source, stretch, frames = read(path)
    clip = Shot(path=path, first=stretch.first, last=stretch.last).clip()
    found = positions(clip.frames.transpose(0, 2, 3, 1), frames)
    assert found == even_positions(source.times_s[stretch.first : stretch.last]).tolist()
    assert clip.fps == source.fps


def test_pretraining_views_come_from_the_readers_frames(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stretch, frames = read(path)
    seen: list[tuple[int, Frames]] = []
    cut = DrawnView.cut

    def recorded(view: DrawnView, at: int, frame: Frames) -> Frames:
        seen.append((view.positions[at], frame))
        return cut(view, at, frame)

    monkeypatch.setattr(DrawnView, "cut", recorded)
    plan = ViewPlan(sampling=Sampling(), frames_per_view=6, most_views=100, max_side_px=640, seed=(0,))

    def views(source: Source) -> list[object]:
        seen.clear()  # forget the frames from before the times were counted
        return list(source_views.source_views(source, 0, None, plan))

    with open_source(path) as opened:
        assert with_true_times(opened, views)
    inside = [(at - stretch.first, frame) for at, frame in seen if stretch.first <= at < stretch.last]
    assert inside
    for at, frame in inside:
        assert np.array_equal(frame, frames[at])
