"""Tests that a file that is cut or damaged at its end is scored up to there, with a warning, and never beyond."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from reward_server.decoding.decode import DecodedClip, Sampling, decode
from reward_server.errors import ClipTooShort, UnreadableClip
from tests import media
from tests.media import Frames

FRAMES = media.texture(60, step=3)
EVERY_FRAME = Sampling(area_px=64 * 96, fps=10)
FAST_START = {"movflags": "faststart"}
B_FRAMES = {"bf": "3", "g": "24"}

CUT: dict[str, Callable[[Frames], bytes]] = {
    "mp4": lambda frames: media.video(frames, fps=10, options=FAST_START),
    "mp4 b-frames": lambda frames: media.video(frames, fps=10, options=FAST_START, codec_options=B_FRAMES),
    "mp4 with sound": lambda frames: media.video(frames, fps=10, options=FAST_START, with_audio=True),
    "mp4 fragmented": lambda frames: media.video(
        frames, fps=10, codec_options={"g": "6"}, options={"movflags": "frag_keyframe+empty_moov"}
    ),
    "mkv": lambda frames: media.video(frames, fps=10, container="matroska", codec_options=B_FRAMES),
    "webm": lambda frames: media.video(frames, fps=10, container="webm", codec="libvpx-vp9"),
    "avi": lambda frames: media.video(frames, fps=10, container="avi", codec="mpeg4"),
    "avi b-frames": lambda frames: media.video(frames, fps=10, container="avi", codec_options=B_FRAMES),
    "ts": lambda frames: media.video(frames, fps=10, container="mpegts", codec_options=B_FRAMES),
    "gif": media.gif,
    "webp": media.webp,
}
DECLARES_LENGTH = ("mp4", "mp4 b-frames", "mp4 with sound", "mkv", "webm", "avi", "avi b-frames")


def run(payload: bytes) -> DecodedClip:
    return decode(media.submission(payload), EVERY_FRAME, media.LIMITS, 60.0)


def told(decoded: DecodedClip) -> dict[str, float]:
    return {warning.code: warning.share for warning in decoded.warnings}


def shown(decoded: DecodedClip) -> list[list[int]]:
    """For each window, the positions of the most similar frames. Fails for frames that are damaged."""
    found: list[list[int]] = []
    for window in decoded.windows:
        frames = window.clip.frames.transpose(0, 2, 3, 1).astype(np.int16)
        away = np.abs(frames[:, None] - FRAMES[None]).mean(axis=(2, 3, 4))
        assert away.min(axis=1).max() < 20  # a frame that is partly missing is 26 away or more
        found.append(away.argmin(axis=1).tolist())
    return found


@pytest.mark.parametrize("share", [0.79, 0.9])
@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_is_scored_up_to_its_end_with_a_warning(name: str, share: float) -> None:
    whole = CUT[name](FRAMES)
    assert told(run(whole)) == {}
    decoded = run(whole[: int(len(whole) * share) // 188 * 188 + 100])
    assert list(told(decoded)) == ["truncated"]
    for window in shown(decoded):
        assert np.diff(window).tolist() == [1] * 15
        assert window[-1] < decoded.source.frames < 60
    (warning,) = decoded.warnings
    if name in DECLARES_LENGTH:
        assert f"ends after {decoded.source.duration_s:.1f} s of 6.0 s" in warning.message
        assert warning.share == pytest.approx(1 - decoded.source.frames / 60, abs=0.01)
    else:
        assert f"cut or damaged after {decoded.source.duration_s:.1f} s" in warning.message


@pytest.mark.parametrize("filler", ["noise", "zeros"])
@pytest.mark.parametrize("name", [name for name in CUT if name not in ("ts", "webp")])
def test_a_file_whose_end_is_damaged_is_scored_up_to_the_damage(name: str, filler: str) -> None:
    whole = CUT[name](FRAMES)
    first = int(len(whole) * 0.8)
    damaged = media.with_noise(whole, 0.8, 1) if filler == "noise" else whole[:first] + bytes(len(whole) - first)
    decoded = run(damaged)
    assert list(told(decoded)) == ["truncated"]
    assert all(np.diff(window).tolist() == [1] * 15 for window in shown(decoded))


def test_a_cut_file_below_the_minimum_is_refused_by_name() -> None:
    whole = CUT["mkv"](FRAMES)
    with pytest.raises(ClipTooShort, match=r"under the minimum of 8; .*the file ends after 0\.\d s of 6\.0 s"):
        run(whole[: int(len(whole) * 0.3)])


def test_a_file_cut_within_its_first_frame_is_refused() -> None:
    whole = CUT["mp4"](FRAMES)
    with pytest.raises(UnreadableClip, match="within its first frame"):
        run(whole[: int(len(whole) * 0.3)])


def test_damage_in_the_middle_is_refused() -> None:
    whole = CUT["mp4"](FRAMES)
    with pytest.raises(
        UnreadableClip,
        match=r"of the file's 60 or more h264 frames .*under the minimum of 58: track 0 .* from 2\.4\d s on",
    ):
        run(media.with_noise(whole, 0.6, 0.63))


def test_a_long_sound_track_does_not_make_a_file_look_cut() -> None:
    payload = media.video(FRAMES[:5], fps=10, container="matroska", with_audio=True)
    decoded = decode(media.submission(payload), Sampling(fps=10, min_frames=2), media.LIMITS, 60.0)
    assert told(decoded) == {}
