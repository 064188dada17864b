"""Tests streams that begin or end in odd places, and tiny clips. test_reader_users.py tests the table of odd files."""

from __future__ import annotations

import numpy as np
import pytest

from protos.reader import Source, UnreadableClip, open_source, with_true_times
from tests import media, odd_files
from tests.media import Frames
from tests.odd_files import GOOD

FRAMES = media.texture(24, step=4)


def read(payload: bytes) -> tuple[Source, Frames]:
    def use(source: Source) -> tuple[Source, Frames]:
        return source, np.stack([frame for _, frame in source.frames(range(source.times_s.size))])

    with open_source(payload) as opened:
        return with_true_times(opened, use)


def test_a_stream_without_its_start_begins_at_a_key_frame() -> None:
    frames = media.texture(36, step=4)
    whole = media.video(
        frames, fps=12, container="mpegts", codec_options={**GOOD, "g": "12", "bf": "2", "x264-params": "open-gop=1"}
    )
    _, found = read(whole[len(whole) // 3 // 188 * 188 :])
    first = len(frames) - len(found)
    distances = np.abs(found[:, None].astype(np.int16) - frames[None]).mean(axis=(2, 3, 4))
    assert first % 12 == 0
    assert distances.argmin(axis=1).tolist() == list(range(first, 36))


@pytest.mark.parametrize("form", ["matroska", "mpegts"])
def test_frames_without_display_times_come_in_the_order_of_the_decoder(form: str) -> None:
    source, found = read(odd_files.without_display_times(FRAMES, form))
    distances = np.abs(found[:, None].astype(np.int16) - FRAMES[None]).mean(axis=(2, 3, 4))
    assert distances.argmin(axis=1).tolist() == list(range(24))
    assert np.diff(source.times_s) == pytest.approx(1 / 12, abs=0.001)


@pytest.mark.parametrize("form", ["matroska", "mpegts"])
@pytest.mark.parametrize("share", [0.55, 0.7, 0.9])
def test_of_a_cut_file_without_display_times_no_frame_is_missing_between_others(form: str, share: float) -> None:
    frames = media.texture(60, step=4)
    whole = odd_files.without_display_times(frames, form)
    source, found = read(odd_files.cut(whole, share))
    distances = np.abs(found[:, None].astype(np.int16) - frames[None]).mean(axis=(2, 3, 4))
    assert distances.argmin(axis=1).tolist() == list(range(len(found)))
    assert len(found) > 30 * share  # the first frame is the largest
    assert [one.code for one in source.warnings] == ["truncated"]


def test_two_equal_times_do_not_hide_that_display_times_are_missing() -> None:
    frames = media.texture(60, step=4)
    ticks = [7500 * (at if at < 30 else at - 1) for at in range(60)]
    payload = odd_files.remuxed([odd_files.moved(frames)], "matroska", ticks)
    _, found = read(payload)
    assert len(found) >= 58


def test_a_damaged_stream_without_display_times_is_refused() -> None:
    whole = bytearray(odd_files.without_display_times(media.texture(60, step=4), "mpegts"))
    at = len(whole) // 2
    whole[at : at + 30] = bytes(30)
    with pytest.raises(UnreadableClip, match="cut or damaged"):
        read(bytes(whole))


def test_a_tiny_clip_and_a_single_frame_are_read() -> None:
    tiny = media.video(FRAMES[:, :16, :16], fps=12, **odd_files.LOSSLESS)
    assert np.array_equal(read(tiny)[1], FRAMES[:, :16, :16])
    source, frames = read(media.video(FRAMES[:1], fps=12, codec_options=GOOD))
    assert (len(frames), source.fps) == (1, 0.0)
