"""Tests a run's real clips: which files and frames are used, in which order, and how bad files are reported."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protos.types import Clip
from tests import media
from trainer.data import Clips, DataConfig, Source, find_sources
from trainer.errors import ConfigError, DataError
from trainer.measures.dynamics import dynamic_degree
from trainer.measures.tracks import track_motion, with_tracks
from trainer.video import ClipForm, fit, mp4_bytes, read_clip, side_by_side, write_clip

FFV1 = {"container": "matroska", "codec": "ffv1", "pix_fmt": "bgr0"}
FORM = ClipForm(num_frames=4, fps=8.0, height_px=16, width_px=24)


def gray_clip(levels: list[int], *, fps: float = 8.0, height: int = 16, width: int = 24) -> Clip:
    """A clip whose frame t has the gray level levels[t] everywhere, so that picked frames can be identified."""
    frames = np.repeat(np.array(levels, np.uint8), 3 * height * width).reshape(-1, 3, height, width)
    return Clip(frames=frames, fps=fps)


def levels_of(clip: Clip) -> list[int]:
    return [round(float(frame.mean())) for frame in clip.frames]


def ramp(num: int) -> list[int]:
    return [10 * index for index in range(num)]


@pytest.mark.parametrize("suffix", [".mp4", ".safetensors"])
def test_a_written_clip_reads_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_clip(path, gray_clip(ramp(4)))
    found = read_clip(path, FORM)
    assert found.fps == 8.0
    assert levels_of(found) == pytest.approx(ramp(4), abs=0 if suffix == ".safetensors" else 2)


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_start_chooses_where_in_a_long_file_a_clip_begins(tmp_path: Path, start: float, first: int) -> None:
    write_clip(tmp_path / "clip.safetensors", gray_clip(ramp(12)))
    found = read_clip(tmp_path / "clip.safetensors", FORM, start=start)
    assert levels_of(found) == ramp(12)[first : first + 4]


def test_a_clip_stays_within_first_and_last(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.safetensors", gray_clip(ramp(12)))
    for start in (0.0, 0.3, 1.0):
        found = levels_of(read_clip(tmp_path / "clip.safetensors", FORM, start=start, first=3, last=8))
        assert set(found) <= set(ramp(12)[3:8])


@pytest.mark.parametrize(
    ("fps", "stride"), [(8.0, 1), (7.9, 1), (7.0, 1), (9.0, 1), (24.0, 3), (23.976, 3), (22.0, 3), (14.0, 2), (18.0, 2)]
)
@pytest.mark.parametrize("start", [0.0, 0.37, 1.0])
def test_files_are_thinned_evenly_within_the_speed_tolerance(
    tmp_path: Path, fps: float, stride: int, start: float
) -> None:
    path = tmp_path / "clip.safetensors"
    write_clip(path, gray_clip(ramp(24), fps=fps))
    first, *_ = found = levels_of(read_clip(path, FORM, start=start))
    assert found == [first + 10 * stride * index for index in range(4)]
    assert {0.0: first == 0, 1.0: found[-1] == 230}.get(start, 0 < first < found[-1] < 230)


def test_the_nearest_frames_are_used_outside_the_tolerance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "clip.safetensors"
    write_clip(path, gray_clip(ramp(12), fps=10.0))
    assert levels_of(read_clip(path, FORM)) == [0, 10, 20, 40]  # at 0, 125, 250 and 375 ms; 100 ms a frame
    (told,) = (record.getMessage() for record in caplog.records if "unevenly" in record.getMessage())
    assert "10.00 frames per second are thinned to 8 unevenly" in told
    assert levels_of(read_clip(path, FORM, speed_tolerance=0.25)) == [0, 10, 20, 30]


def test_too_few_frames_are_refused_instead_of_repeated(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    write_clip(path, gray_clip(ramp(12), fps=7.5))
    assert levels_of(read_clip(path, FORM)) == ramp(4)
    with pytest.raises(DataError, match=r"has 7\.50 frames per second, the policy needs 8; frames would repeat"):
        read_clip(path, ClipForm(num_frames=12, fps=8.0, height_px=16, width_px=24), speed_tolerance=0.0)


def test_a_speed_tolerance_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.speed_tolerance=1\.5 must be from 0"):
        DataConfig(speed_tolerance=1.5)


def test_a_clip_can_be_read_from_the_end_of_a_long_video(tmp_path: Path) -> None:
    levels = [2 * index for index in range(100)]
    (tmp_path / "clip.mp4").write_bytes(mp4_bytes(gray_clip(levels)))
    assert levels_of(read_clip(tmp_path / "clip.mp4", FORM, start=1.0)) == pytest.approx(levels[-4:], abs=2)


def test_frames_that_an_edit_list_cuts_off_are_not_counted(tmp_path: Path) -> None:
    """`ffmpeg -ss ... -c copy` keeps the packets since the previous key frame, but players do not show them."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_clip(whole, gray_clip([8 * index for index in range(24)]))
    with av.open(str(whole)) as source, av.open(str(cut), "w") as to:
        stream = source.streams.video[0]
        copied = to.add_stream_from_template(stream)
        skipped = round(6 / 8.0 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - skipped, packet.dts - skipped, copied
                to.mux(packet)
    assert levels_of(read_clip(cut, FORM)) == pytest.approx([8 * index for index in range(6, 10)], abs=3)


def test_a_video_with_uneven_frame_times_is_sampled_by_time(tmp_path: Path) -> None:
    path = tmp_path / "uneven.mkv"
    times_ms = [0, 20, 60, 125, 140, 250, 260, 375, 400]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=50)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((16, 24, 3), 10 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    nearest = [int(np.abs(np.array(times_ms) - 125 * k).argmin()) for k in range(4)]
    assert levels_of(read_clip(path, FORM)) == [10 * index for index in nearest]


@pytest.mark.parametrize("start", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_a_clip_crosses_a_cut_only_if_no_part_is_long_enough(tmp_path: Path, start: float) -> None:
    path = tmp_path / "clip.safetensors"
    write_clip(path, gray_clip([*range(0, 50, 10), *range(200, 250, 10)]))
    found = levels_of(read_clip(path, FORM, start=start))
    assert max(found) < 50 or min(found) >= 200, found
    told: list[str] = []
    write_clip(path, gray_clip([0, 10, 200, 210, 220]))
    found = levels_of(read_clip(path, FORM, start=start, warn=lambda warnings: told.extend(w.code for w in warnings)))
    assert found in ([0, 10, 200, 210], [10, 200, 210, 220])
    assert told == ["cuts"]


def test_a_clip_is_placed_behind_several_cuts(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    short = [level + step for level in (0, 60, 120, 0, 60, 120) for step in range(3)]
    write_clip(path, gray_clip([*short, *range(200, 208)]))
    assert min(levels_of(read_clip(path, FORM))) >= 200


def test_a_file_that_lost_many_frames_is_refused_by_the_rule_of_all_users(tmp_path: Path) -> None:
    """At the clip's rate: a file that is fast enough in spite of its lost frames is used."""
    path = tmp_path / "lost.mkv"
    kept = [at for at in range(60) if at % 6 not in (1, 2, 3)]
    path.write_bytes(media.video(media.texture(60, 16, 24)[kept], ticks=[round(1000 * at / 24) for at in kept], **FFV1))
    with pytest.raises(DataError, match=r"of the times at 12\.06 fps have no frame within half a step, over"):
        read_clip(path, ClipForm(num_frames=4, fps=12.0, height_px=16, width_px=24))
    assert read_clip(path, ClipForm(num_frames=4, fps=4.0, height_px=16, width_px=24)).frames.shape[0] == 4


@pytest.mark.parametrize(
    ("levels", "fps", "reason"),
    [
        (ramp(1), 8.0, "has 1 frames, 4 are needed; leave it out, or lower policy.num_frames"),
        (ramp(3), 8.0, "has 3 frames, 4 are needed; leave it out, or lower policy.num_frames"),
        (ramp(6), 16.0, "has 6 frames, 7 are needed to take 1 in 2; leave it out, or lower policy.num_frames"),
        (ramp(4), 11.0, "lasts 0.27 s, the policy needs 0.38 s; leave it out, or lower policy.num_frames"),
        (ramp(9), 4.0, "has 4.00 frames per second, the policy needs 8; frames would repeat; leave it out"),
    ],
)
def test_short_and_slow_files_are_refused_with_the_figures(
    tmp_path: Path, levels: list[int], fps: float, reason: str
) -> None:
    write_clip(tmp_path / "clip.safetensors", gray_clip(levels, fps=fps))
    with pytest.raises(DataError, match=reason):
        read_clip(tmp_path / "clip.safetensors", FORM)


def test_images_are_scaled_to_cover_the_size_and_cropped() -> None:
    image = np.zeros((8, 40, 3), np.uint8)
    image[:, 14:26] = 200  # the middle 12 of 40 columns: after doubling, a crop of 16x24 shows only these
    assert fit(image, 16, 24).shape == (16, 24, 3)
    assert fit(image, 16, 24).min() > 150


def test_clips_stand_side_by_side_with_a_line_between() -> None:
    both = side_by_side([gray_clip([10, 20]), gray_clip([30, 40])])
    assert both.frames.shape == (2, 3, 16, 50)
    assert [int(both.frames[1, 0, 0, column]) for column in (0, 24, 49)] == [20, 255, 40]


# --- sources ------------------------------------------------------------------------------------


def manifest_records() -> list[dict[str, object]]:
    return [
        {"path": "a.mp4", "caption": "a ball", "split": "train"},
        {"path": "b.mp4", "caption": "", "first": 3, "last": 9},
        {"path": "c.mp4", "split": "held_out"},
    ]


def write_manifest(path: Path) -> Path:
    records = manifest_records()
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "caption", "first", "last", "split"])
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("name", ["clips.json", "clips.jsonl", "clips.csv"])
def test_manifests_give_captions_frames_and_splits(tmp_path: Path, name: str) -> None:
    manifest = write_manifest(tmp_path / name)
    train = [
        Source(path=tmp_path / "a.mp4", caption="a ball"),
        Source(path=tmp_path / "b.mp4", caption="moving", first=3, last=9),
    ]
    assert find_sources([str(manifest)], "train", "moving") == train
    held_out = find_sources([str(manifest)], "held_out")
    assert [source.path.name for source in held_out] == ["b.mp4", "c.mp4"]


def test_folders_are_searched_unless_they_have_a_manifest(tmp_path: Path) -> None:
    for name in ("b/two.mp4", "a/one.MKV", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [source.path.name for source in find_sources([str(tmp_path)], "train")] == ["one.MKV", "two.mp4"]
    write_manifest(tmp_path / "manifest.jsonl")
    assert [source.path.name for source in find_sources([str(tmp_path)], "train")] == ["a.mp4", "b.mp4"]


def test_paths_without_clips_are_errors(tmp_path: Path) -> None:
    for paths, reason in (([], "no clips"), (["nowhere"], "does not exist"), ([str(tmp_path)], "has no clip")):
        with pytest.raises(DataError, match=reason):
            find_sources(paths, "train")
    (tmp_path / "bad.json").write_text('[{"file": "a.mp4"}]')
    with pytest.raises(DataError, match="entry 1: needs a path"):
        find_sources([str(tmp_path / "bad.json")], "train")


# --- order --------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Five clips. Frame t of clip i has the gray level 10 i + t."""
    for index in range(5):
        write_clip(tmp_path / f"{index}.safetensors", gray_clip([40 * index + t for t in range(4)]))
    return [Source(path=tmp_path / f"{index}.safetensors") for index in range(5)]


def names(clips: Clips, slots: range) -> list[str]:
    return [clips.at(slot).path.stem for slot in slots]


def test_every_epoch_has_every_clip_once_in_a_new_order(sources: list[Source]) -> None:
    clips = Clips(sources, FORM, seed=0)
    epochs = [names(clips, range(first, first + 5)) for first in (0, 5, 10)]
    assert all(sorted(epoch) == ["0", "1", "2", "3", "4"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_order_does_not_depend_on_earlier_slots(sources: list[Source]) -> None:
    whole = names(Clips(sources, FORM, seed=0), range(12))
    assert names(Clips(sources, FORM, seed=0), range(7, 12)) == whole[7:]
    assert names(Clips(sources, FORM, seed=1), range(12)) != whole


def test_bad_files_are_counted_and_their_slots_filled(sources: list[Source]) -> None:
    sources[2].path.write_bytes(b"not a clip")
    clips = Clips(sources, FORM, seed=0)
    found = names(clips, range(10))
    assert "2" not in found
    assert len(found) == 10
    assert list(clips.bad) == [sources[2]]
    assert "2.safetensors: cannot be read" in clips.bad[sources[2]]
    assert names(Clips(sources, FORM, seed=0), range(6, 10)) == found[6:]  # whether or not the bad file was met before


def test_the_reader_s_warnings_are_logged_once_for_each_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_clip(tmp_path / "held.mp4", gray_clip([100] * 12))
    write_clip(tmp_path / "cut.mkv.safetensors", gray_clip([0, 0, 0, 0, 200, 200, 200, 200]))
    write_clip(tmp_path / "fine.safetensors", gray_clip(ramp(4)))
    clips = Clips(find_sources([str(tmp_path)], "train"), FORM, seed=0)
    names(clips, range(30))
    told = sorted(record.getMessage().removeprefix(f"{tmp_path}/") for record in caplog.records)
    assert [line.split(": ")[0] for line in told] == ["cut.mkv.safetensors", "held.mp4"]
    assert "repeated_frames: 100% of the" in told[1]
    assert "still_share: nothing moves in 100%" in told[1]


def test_the_good_parts_of_a_damaged_file_are_used(sources: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run gets the same clips as the original run, although it has not met the bad parts."""

    def torn(path: Path, form: ClipForm, *, start: float, **cut: Any) -> Clip:
        if start > 0.5 and path.stem in "012":
            raise DataError("does not decode")
        return read_clip(path, form, start=start, **cut)

    monkeypatch.setattr("trainer.data.read_clip", torn)
    whole = names(clips := Clips(sources, FORM, seed=0), range(40))
    assert len(clips.bad) == 3
    assert [names(Clips(sources, FORM, seed=0), range(slot, slot + 1)) for slot in range(40)] == [[w] for w in whole]


def test_a_run_without_a_good_file_ends_with_the_reason(sources: list[Source]) -> None:
    for source in sources:
        source.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"5 of 5 clips cannot be used, so slot 0 has no clip; .*cannot be read"):
        Clips(sources, FORM, seed=0).at(0)


# --- motion -------------------------------------------------------------------------------------


def drifting(speed_px: float, *, num: int = 16, fps: float = 8.0, size: int = 128) -> Clip:
    """A smooth random texture that moves to the right by `speed_px` per frame."""
    rng = np.random.default_rng(0)
    grid: NDArray[np.float64] = rng.uniform(0, 255, (size // 8 + 1, size // 8 + 64))
    x, y = np.meshgrid(np.arange(size) / 8, np.arange(size) / 8)

    def frame(t: int) -> NDArray[np.uint8]:
        left, top = x - speed_px * t / 8 + 40, y
        i, j = top.astype(int).clip(0, grid.shape[0] - 2), left.astype(int)
        a, b = top - i, left - j
        smooth = (1 - a) * ((1 - b) * grid[i, j] + b * grid[i, j + 1])
        return (smooth + a * ((1 - b) * grid[i + 1, j] + b * grid[i + 1, j + 1])).astype(np.uint8)

    frames = np.stack([np.repeat(frame(t)[None], 3, axis=0) for t in range(num)])
    return Clip(frames=frames, fps=fps)


def test_a_still_clip_has_no_dynamic_degree() -> None:
    found = dynamic_degree(drifting(0.0))
    assert found.flow_px < 0.1
    assert not found.dynamic


def test_the_continuous_degree_is_the_speed_at_256_px() -> None:
    """Speeds are for a short side of 256 px. VBench's threshold of 6 px is between 2 and 4 px per frame at 128 px."""
    slow, fast = dynamic_degree(drifting(2.0)), dynamic_degree(drifting(4.0))
    assert slow.flow_px == pytest.approx(4.0, rel=0.15)
    assert fast.flow_px == pytest.approx(8.0, rel=0.15)
    assert (slow.dynamic, fast.dynamic) == (False, True)


def test_faster_frames_are_thinned_to_about_8_per_second() -> None:
    assert dynamic_degree(drifting(1.0, num=32, fps=16.0)).flow_px == pytest.approx(4.0, rel=0.15)


def test_tracks_are_drawn_on_an_enlarged_copy() -> None:
    clip = drifting(2.0, num=4, size=64)
    drawn = with_tracks(clip)
    assert drawn.frames.shape == (4, 3, 256, 256)
    plain = clip.frames.repeat(4, axis=2).repeat(4, axis=3)
    assert 0 < (drawn.frames[0] != plain[0]).mean() < 0.2
    assert with_tracks(gray_clip([5, 5], height=64, width=64)).frames.max() == 5  # nothing to track


def test_tracks_give_the_speed_per_second_at_256_px() -> None:
    """The clip moves by 2 px per frame at 128 px and 8 fps. Its only acceleration is the tracking error."""
    found = track_motion(drifting(2.0))
    assert found.speeds_px_s.size > 15 * 20
    assert np.median(found.speeds_px_s) == pytest.approx(2 * 2 * 8, rel=0.05)
    assert np.median(found.accelerations_px_s2) < 0.05 * 2 * 2 * 8 * 8


def test_a_still_clip_has_still_tracks_and_a_flat_one_none() -> None:
    still = track_motion(drifting(0.0))
    assert still.speeds_px_s.size > 0
    assert still.speeds_px_s.max() == 0
    bare = track_motion(gray_clip([5, 5, 5], height=64, width=64))
    assert (bare.speeds_px_s.size, bare.accelerations_px_s2.size) == (0, 0)


# --- pictures -----------------------------------------------------------------------------------


def test_a_gif_keeps_frame_times_and_the_maximum_width(tmp_path: Path) -> None:
    clip = side_by_side([drifting(2.0, num=5, fps=14.0, size=512)] * 3)
    write_clip(tmp_path / "clip.gif", clip)
    with Image.open(tmp_path / "clip.gif") as image:
        assert (image.n_frames, image.info["duration"], image.info["loop"]) == (5, 70, 0)
        assert (image.width, image.height) == (960, round(512 * 960 / (3 * 512 + 4)))
        image.seek(3)
        shown = np.asarray(image.convert("RGB")).astype(float)
    wanted = cv2.resize(
        clip.frames[3].transpose(1, 2, 0), (shown.shape[1], shown.shape[0]), interpolation=cv2.INTER_AREA
    )
    assert np.abs(shown - wanted).mean() < 4
