"""Tests image sequences: order, times, sizes, pictures, and that every user of the reader takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protos.reader import Source, UnreadableClip, open_source
from protos.reader.sequences import pictures_of
from protos.types import Media
from reward_server.data.shots import Shot, find_clips, find_files
from reward_server.errors import BadRequest
from reward_server.evaluation.score import score_files
from tests import media
from tests.media import Frames
from tests.plain_scorer import PlainScorer
from trainer.data import DataConfig, find_sources
from trainer.errors import ConfigError, DataError
from trainer.video import ClipForm, read_clip

FRAMES = media.texture(24, step=4)


def write(folder: Path, frames: Frames = FRAMES, name: str = "frame_{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for at, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(at + 1))
    return folder


def read(path: Path, fps: float | None = 12.0) -> tuple[Source, Frames]:
    with open_source(path, fps=fps) as source:
        return source, np.stack([frame for _, frame in source.frames(range(source.times_s.size))])


@pytest.mark.parametrize("pattern", ["", "frame_%d.png", "frame_*.png"])
def test_pictures_are_frames_in_the_order_of_their_numbers(tmp_path: Path, pattern: str) -> None:
    write(tmp_path)
    (tmp_path / "notes.txt").write_text("not a picture")
    source, frames = read(tmp_path / pattern)
    assert np.array_equal(frames, FRAMES)
    assert source.times_s == pytest.approx(np.arange(24) / 12)
    assert source.fps == pytest.approx(12)
    assert source.codec == "pictures"


def test_a_printf_pattern_takes_only_the_numbered_pictures(tmp_path: Path) -> None:
    write(tmp_path, name="a_{:04d}.png")
    write(tmp_path, FRAMES[:3], name="a_{:04d}_mask.png")
    assert len(pictures_of(tmp_path / "a_%04d.png")) == 24


def test_only_the_wanted_pictures_are_decoded(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "frame_24.png").write_bytes((tmp_path / "frame_24.png").read_bytes()[:200])
    with open_source(tmp_path, fps=12) as source:
        assert [index for index, _ in source.frames([3, 9])] == [3, 9]
        with pytest.raises(UnreadableClip, match=r"frame_24\.png' cannot be decoded"):
            list(source.frames([23]))


def test_a_missing_picture_is_a_gap_in_time(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "frame_10.png").unlink()
    source, _ = read(tmp_path)
    assert np.diff(source.times_s)[8] == pytest.approx(2 / 12)
    assert source.times_s[-1] == pytest.approx(23 / 12)


def test_every_second_number_is_an_even_sequence(tmp_path: Path) -> None:
    write(tmp_path)
    for at in range(1, 24, 2):
        (tmp_path / f"frame_{at}.png").unlink()
    assert read(tmp_path)[0].times_s == pytest.approx(np.arange(12) / 12)


def test_a_sequence_needs_its_frame_rate(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UnreadableClip, match=r"sequence of 24 pictures and needs its frame rate.*--fps"):
        read(tmp_path, fps=None)
    with pytest.raises(UnreadableClip, match="positive number, got -1"):
        read(tmp_path, fps=-1)
    with pytest.raises(BadRequest, match="give their frame rate with --fps"):
        find_files([str(tmp_path)])
    with pytest.raises(BadRequest, match="give their frame rate with --fps"):
        find_clips(tmp_path, real=True)
    with pytest.raises(ConfigError, match=r"data\.fps=0 must be positive"):
        DataConfig(fps=0)


def test_pictures_of_two_sizes_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    Image.fromarray(FRAMES[0][:32]).save(tmp_path / "frame_7.png")
    with pytest.raises(UnreadableClip, match=r"frame_7\.png' is 96x32, but 'frame_1\.png' is 96x64"):
        read(tmp_path)


def test_alpha_orientation_and_16_bits_are_shown_as_they_look(tmp_path: Path) -> None:
    half = np.full((64, 96, 4), 200, np.uint8)
    half[..., 3] = 128
    Image.fromarray(half).save(tmp_path / "1.png")
    Image.fromarray(np.full((64, 96), 200 * 257, np.uint16)).save(tmp_path / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(FRAMES[0]))).save(tmp_path / "3.jpg", exif=exif, quality=95)
    _, frames = read(tmp_path)
    assert frames[0].mean() == pytest.approx(100, abs=1)
    assert np.all(frames[1] == 200)
    assert np.abs(frames[2].astype(int) - FRAMES[0]).mean() < 5


def test_paths_name_sequences(tmp_path: Path) -> None:
    write(tmp_path / "shots" / "a")
    write(tmp_path / "shots" / "b")
    (tmp_path / "shots" / "c.mp4").write_bytes(media.video(FRAMES))
    found = find_files([str(tmp_path / "shots")], fps=12)
    assert [path.name for path in found] == ["c.mp4", "a", "b"]
    assert [path.name for path in find_files([str(tmp_path / "shots")])] == ["c.mp4"]
    pattern = str(tmp_path / "shots" / "a" / "frame_%d.png")
    assert find_files([pattern], fps=12) == [Path(pattern)]


def test_a_sequence_is_scored_as_a_tensor(tmp_path: Path) -> None:
    write(tmp_path / "a")
    sent = Shot(path=tmp_path / "a", fps=12).submission()
    assert sent.media is Media.TENSOR
    (scored,) = score_files([tmp_path / "a"], PlainScorer().scorer, 12.0)
    assert scored.ok
    (refused,) = score_files([tmp_path / "a"], PlainScorer().scorer, None)
    assert refused.outcome.error is not None
    assert refused.outcome.error.code == "unreadable_clip"


def test_pretraining_and_the_trainer_take_sequences(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (clip,) = find_clips(tmp_path, real=True, fps=12)
    assert np.array_equal(clip.clip().frames.transpose(0, 2, 3, 1), FRAMES)
    part = clip.part
    Image.fromarray(FRAMES[5]).save(tmp_path / "a" / "frame_1.png")
    (changed,) = find_clips(tmp_path, real=True, fps=12)
    assert changed.part != part  # its features must not be taken from the cache
    (source,) = find_sources([str(tmp_path)], "train", fps=12)
    form = ClipForm(num_frames=5, fps=6, height_px=64, width_px=96)
    found = read_clip(source.path, form, fps=source.fps, first=1)
    assert np.array_equal(found.frames.transpose(0, 2, 3, 1), FRAMES[1:10:2])
    with pytest.raises(DataError, match="has no clip"):
        find_sources([str(tmp_path)], "train")


def test_a_manifest_can_name_a_sequence(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "list.csv").write_text("path,fps\na,12\n")
    (source,) = find_sources([str(tmp_path / "list.csv")], "train")
    assert (source.path, source.fps) == (tmp_path / "a", 12.0)
