"""Tests annotated clips: what is drawn and where, that every frame and its time are kept, and how files are written."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from protos.explanation import Explanation, PairMaps, TrackExplanation, WindowExplanation
from protos.types import Bounds, Logits, Outcome, OutcomeKind, Provenance, Reward, Source, WindowLogits
from reward_server.__main__ import app
from reward_server.errors import InvalidClip
from reward_server.evaluation.drawings import TOO_OLD, Drawings
from reward_server.explain.annotate import annotate, drawn_size
from reward_server.explain.drawing import HAZE, LOWERS, RAISES, Frame, Scale, drawn
from reward_server.explain.panel import Panel
from reward_server.explain.timeline import Moment, Timeline
from tests import media

HEIGHT, WIDTH, FRAMES = 48, 64, 8


def track(x: float, y: float, *, visible: bool = True, share: float = 1.0, step: float = 2.0) -> TrackExplanation:
    """A track that moves `step` px to the right per frame."""
    return TrackExplanation(
        x_px=tuple(x + step * t for t in range(FRAMES)),
        y_px=(y,) * FRAMES,
        visibility=(float(visible),) * FRAMES,
        confidence=(1.0,) * FRAMES,
        share=share,
    )


def window(start_s: float, *tracks: TrackExplanation, level: int = 0) -> WindowExplanation:
    """A window at 4 frames per second. The residual is high in the right half, and in pair 3 everywhere `level`."""
    cells = np.zeros((FRAMES - 1, 6, 8), np.uint8)
    cells[:, :, 4:] = 255
    cells[3] = level
    return WindowExplanation(
        times_s=tuple(start_s + t / 4 for t in range(FRAMES)),
        tracks=tracks,
        residual=PairMaps.of(cells, 20.0),
        flow_confidence=PairMaps.of(cells, 1.0),
        residual_curve=tuple(float(t) for t in range(FRAMES - 1)),
        flow_confidence_curve=(0.5,) * (FRAMES - 1),
    )


def reward(*windows: WindowExplanation, height: int = HEIGHT, width: int = WIDTH, duration_s: float = 4.0) -> Reward:
    logits = Logits(instantaneous=0.5, long_term=-0.5)
    source = Source(frames=16, fps=4, duration_s=duration_s, height_px=height, width_px=width, codec="h264")
    return Reward(
        combined=0.0,
        instantaneous=0.5,
        long_term=-0.5,
        logits=logits,
        clipped=False,
        bounds=Bounds(min=-10, max=10),
        windows=tuple(WindowLogits(start_s=one.times_s[0], logits=logits) for one in windows),
        provenance=Provenance(
            profile="embedded",
            discriminator_version="v",
            weights_digest="",
            preprocessing_digest="",
            query_seed=0,
            num_tracks=1,
            source=source,
            fps_used=4,
            frames_used=FRAMES,
            height_px=6,
            width_px=8,
            mean_visibility=1,
            mean_confidence=1,
        ),
        explanation=Explanation(windows=windows),
    )


def plain(level: int, height: int = 480, width: int = 640) -> Frame:
    return np.full((height, width, 3), level, np.uint8)


def moment(*windows: WindowExplanation, time_s: float) -> Moment:
    found = Timeline(Explanation(windows=windows)).at(time_s)
    assert found is not None
    return found


SCALE = Scale(height=480, width=640, x=10.0, y=10.0)

# --- what is shown when -------------------------------------------------------------------------


def test_places_between_two_frames_are_between_their_places() -> None:
    seen = moment(window(1.0, track(10, 20)), time_s=1.375)
    assert (seen.marks[0].x_px, seen.marks[0].y_px) == pytest.approx((13.0, 20.0))
    assert seen.marks[0].tail[0] == (10.0, 20.0)
    assert seen.marks[0].tail[-1] == pytest.approx((13.0, 20.0))


def test_a_moment_is_of_the_window_around_it_or_of_none() -> None:
    timeline = Timeline(Explanation(windows=(window(0.0), window(1.0), window(4.0))))
    found = {time_s: timeline.at(time_s) for time_s in (-1.0, 0.0, 1.3, 1.5, 2.75, 3.4, 4.0, 5.8, 6.2)}
    shown = {time_s: seen and seen.window for time_s, seen in found.items()}
    assert shown == {-1.0: None, 0.0: 0, 1.3: 0, 1.5: 1, 2.75: 1, 3.4: None, 4.0: 2, 5.8: 2, 6.2: None}


def test_each_moment_has_the_residual_of_its_pair() -> None:
    assert moment(window(0.0, level=51), time_s=0.80).residual == pytest.approx(4.0)
    assert moment(window(0.0, level=51), time_s=0.70).residual.max() == pytest.approx(20.0)


# --- how it is drawn ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 20, 128, 235, 255])
def test_marks_are_told_from_dark_and_light_pictures(level: int) -> None:
    """A visible track is solid in the colour of its share, and a lost one is a ring that one can look through."""
    tracks = track(8, 8), track(8, 24, share=-1.0), track(8, 40, visible=False)
    image = drawn(plain(level), moment(window(0.0, *tracks), time_s=0.25), SCALE, (1000.0, 2000.0))
    centres = [tuple(image[round(10 * (y + 0.5) - 0.5), round(10 * 10.5 - 0.5)]) for y in (8, 24, 40)]
    assert centres == [RAISES, LOWERS, (level,) * 3]
    for y in (8, 24, 40):
        row = image[10 * y + 5, 85:125].astype(int)
        assert np.abs(row - level).max() > 60  # something is to be seen, whatever is below
        assert row.sum(axis=1).min() < 200  # and it has a dark edge
    assert (image[400:, 300:] == level).all()


def test_the_haze_lies_where_the_residual_is_high() -> None:
    seen = moment(window(0.0), time_s=0.0)
    image = drawn(plain(128), seen, SCALE, (10.0, 20.0)).astype(int)
    assert (image[:, :200] == 128).all()
    assert np.abs(image[:, 450:] - (0.4 * 128 + 0.6 * np.array(HAZE))).max() <= 1


def test_without_a_moment_or_a_map_the_picture_stays() -> None:
    picture = plain(77)
    assert drawn(picture, None, SCALE, (0.0, 1.0)) is picture
    bare = replace(window(0.0), residual=PairMaps.of(np.zeros((FRAMES - 1, 0, 0), np.uint8), 0.0))
    timeline = Timeline(Explanation(windows=(bare,)))
    seen = timeline.at(0.0)
    assert (drawn(picture, seen, SCALE, timeline.residual_range()) == picture).all()


def test_a_track_far_outside_does_no_harm() -> None:
    far = moment(window(0.0, track(1e9, -1e9)), time_s=0.5)
    assert (drawn(plain(9), far, SCALE, (1000.0, 2000.0)) == 9).all()


def test_the_cursor_moves_with_time() -> None:
    seen = reward(window(0.0), window(2.0))
    assert seen.explanation
    panel = Panel(seen, seen.explanation, width=640, size_px=16)
    first, later = panel.at(0.5), panel.at(2.5)
    assert first.shape == (panel.height, 640, 3)
    middle = panel.height // 2
    found = [np.flatnonzero((image[middle] > 240).all(axis=-1)).mean() for image in (first, later)]
    assert found == pytest.approx([14.4 + 611.2 / 8, 14.4 + 611.2 * 5 / 8], abs=2)
    assert panel.at(0.5, 2.5).shape == first.shape


def test_drawn_frames_are_neither_tiny_nor_huge_and_have_even_sides() -> None:
    sizes = {(240, 426): (480, 852), (1080, 1920): (1080, 1920), (2160, 3840): (1080, 1920)}
    sizes |= {(426, 240): (852, 480), (33, 47): (480, 684), (100, 2000): (96, 1920)}
    assert {size: drawn_size(*size) for size in sizes} == sizes


# --- files --------------------------------------------------------------------------------------


def frames_of(path: Path) -> list[tuple[float, Frame]]:
    with av.open(str(path)) as file:
        return [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Sixteen frames at uneven times."""
    ticks = [250 * at + (90 if at % 3 == 1 else 0) for at in range(16)]
    path = tmp_path / "clip.mp4"
    path.write_bytes(media.video(media.texture(16, HEIGHT, WIDTH), ticks=ticks))
    return path


def test_an_annotated_video_has_every_frame_at_its_time(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.mp4"
    annotate(clip, reward(window(0.0, track(20, 20, step=1))), out, "mp4")
    before, after = frames_of(clip), frames_of(out)
    assert [time_s for time_s, _ in after] == pytest.approx([time_s for time_s, _ in before], abs=1e-3)
    assert after[0][1].shape[1] == 640
    assert after[0][1].shape[0] > 480
    for t, x in ((0, 20), (4, 24)):
        dot = after[t][1][205, 10 * x + 5].astype(int)
        assert np.abs(dot - RAISES).max() < 60  # h264 in yuv420p blurs small dots
    assert list(out.parent.iterdir()) == [out]


def test_a_sheet_shows_at_most_twelve_frames(clip: Path, tmp_path: Path) -> None:
    annotate(clip, reward(window(0.0, track(20, 20)), window(2.0)), tmp_path / "out.png", "png")
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size[0] == 4 * 480 + 3 * 8
        assert sheet.size[1] > 3 * 360
        assert len(np.unique(np.asarray(sheet.resize((8, 6))).reshape(-1, 3), axis=0)) > 12


def test_a_turned_clip_is_drawn_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    stored = media.video(media.texture(8, HEIGHT, WIDTH), fps=4)
    path.write_bytes(media.with_display_matrix(stored, (0, 1, -1, 0)))
    annotate(path, reward(window(0.0, track(5, 50)), height=WIDTH, width=HEIGHT), tmp_path / "out.mp4", "mp4")
    height, width = frames_of(tmp_path / "out.mp4")[0][1].shape[:2]
    assert width == 480
    assert height > 640


def test_a_clip_that_cannot_be_read_leaves_an_older_drawing_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    (tmp_path / "out.mp4").write_bytes(b"an older drawing")
    with pytest.raises(InvalidClip):
        annotate(tmp_path / "clip.mp4", reward(window(0.0)), tmp_path / "out.mp4", "mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"an older drawing"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


def test_drawings_are_named_after_their_clips_and_never_meet(tmp_path: Path) -> None:
    drawings = Drawings(folder=tmp_path / "out", form="png")
    below = tmp_path / "clips"
    names = ["a.mp4", "a.webm", "b/a.mp4", "b_a.mp4"]
    written = [drawings.path_of(below / name, below) for name in names]
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == [f"{n}.annotated.png" for n in names]


def test_a_reward_without_an_explanation_says_why_it_is_not_drawn(clip: Path, tmp_path: Path) -> None:
    drawings = Drawings(folder=tmp_path / "out", form="mp4")
    old = Outcome(job_id="", kind=OutcomeKind.OK, reward=replace(reward(window(0.0)), explanation=None))
    assert drawings.draw(clip, old, below=tmp_path, fps=None) == TOO_OLD
    gone = Outcome(job_id="", kind=OutcomeKind.OK, reward=reward(window(0.0)))
    assert "No such file" in drawings.draw(tmp_path / "gone.mp4", gone, below=tmp_path, fps=None)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# --- the command --------------------------------------------------------------------------------


def test_score_writes_one_drawing_per_clip_that_has_a_reward(
    tmp_path: Path, discriminators_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"CHECKPOINT": discriminators_file, "NUM_TRACKS": 16, "THREADS": 1}.items():
        monkeypatch.setenv(f"MOTION_REWARD_{name}", str(value))
    clips, out = tmp_path / "clips", tmp_path / "out"
    (clips / "nested").mkdir(parents=True)
    out.mkdir()
    (out / "a.mp4").write_text("of someone else")
    (out / "a.mp4.annotated.png").write_text("an older drawing")
    moving = media.texture(8, HEIGHT, WIDTH)
    (clips / "a.mp4").write_bytes(media.video(moving, fps=12.0))
    (clips / "nested" / "b.safetensors").write_bytes(media.tensor(moving, 12.0))
    (clips / "broken.mp4").write_bytes(b"no video")
    (clips / "pictures").mkdir()
    for number, frame in enumerate(moving):
        Image.fromarray(frame).save(clips / "pictures" / f"{number}.png")
    arguments = ["score", clips, "--fps", 12, "--annotate", out, "--annotate-format", "png"]
    ran = CliRunner().invoke(app, [str(item) for item in [*arguments, "--json", tmp_path / "out.json"]])
    assert ran.exit_code == 1, ran.output  # for the broken clip alone
    assert "not drawn" not in ran.output
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    drawings = {f"{name}.annotated.png" for name in ("a.mp4", "nested/b.safetensors", "pictures")}
    assert written == {"a.mp4", *drawings}
    assert (out / "a.mp4").read_text() == "of someone else"
    for name in drawings:
        with Image.open(io.BytesIO((out / name).read_bytes())) as sheet:
            assert sheet.size[0] == 4 * 480 + 3 * 8
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [result["outcome"] for result in results].count("ok") == 3
    assert all(result["reward"]["explanation"] is None for result in results if result["reward"])
