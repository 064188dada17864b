"""Files that claim more than they can hold are refused before they are opened, and lawful files never are."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from protos.reader import FILE_LIMITS, ClipTooLarge, UnreadableClip, open_source
from protos.reader.guard import Guard
from protos.reader.payload import Payload
from protos.reader.plausible import MAX_TRACKS, check_plausible
from protos.reader.sniff import sniff
from protos.types import Limits
from tests import bombs, media, odd_files

SERVED = Limits(  # the server's defaults
    max_bytes=256 * 1024**2,
    max_frames=2000,
    max_frame_pixels=3840 * 2160,
    max_duration_s=120.0,
    max_clips_per_request=64,
)
FRAMES = media.texture(24, step=4)
MKV = media.video(FRAMES, fps=12, container="matroska", codec="ffv1", pix_fmt="bgr0")


def check(data: bytes, limits: Limits = SERVED, max_decode_s: float = 30.0) -> None:
    payload = Payload(io.BytesIO(data))
    check_plausible(payload, sniff(payload), Guard(limits=limits, max_decode_s=max_decode_s))


# --- mp4 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tracks", "words"),
    [
        ([bombs.track(4001)], "4001 packets of video, over the limit of 4000 for 2000 frames; cut the clip or raise"),
        (
            [bombs.track(10), bombs.track(204_000)],
            "204010 packets of video, over the limit of 204000 for 2000 frames and other tracks; copy one video track",
        ),
        ([bombs.track(10, edits=101)], "edit list has 101 entries, over the limit of 100"),
        ([bombs.track(10), bombs.track(1_000_001, handler=b"soun", ticks=2)], "1000001 samples beside its video"),
        (
            [bombs.track(10), bombs.track(99_000, handler=b"soun", ticks=2, edits=50)],
            "4950010 times, over the limit of 4000000",
        ),
        ([bombs.track(2000, edits=90)] * 40, "over the limit of 4000000"),
        ([bombs.track(10)] * (MAX_TRACKS + 1), "over 128 tracks, the limit; keep one of video"),
    ],
    ids=["frames", "other tracks", "edits", "sound", "repeated sound", "repeated tracks", "tracks"],
)
def test_an_index_over_a_limit_is_refused(tracks: list[bytes], words: str) -> None:
    """Regression: ffmpeg built tables of gigabytes, or decoders for a thousand tracks, before a limit was looked at."""
    with pytest.raises(ClipTooLarge, match=words):
        check(bombs.mp4(tracks))


@pytest.mark.parametrize(
    ("name", "body", "needed"),
    [
        (b"stsz", struct.pack(">II", 0, 1000), 4012),
        (b"stts", struct.pack(">III", 1000, 10, 1), 8008),
        (b"ctts", struct.pack(">III", 1000, 10, 0), 8008),
        (b"stsc", struct.pack(">IIII", 1000, 1, 10, 1), 12008),
        (b"stco", struct.pack(">II", 1000, 8), 4008),
        (b"co64", struct.pack(">IQ", 1000, 8), 8008),
        (b"stss", struct.pack(">II", 1000, 1), 4008),
    ],
)
def test_a_table_that_claims_more_entries_than_its_box_holds_is_refused(name: bytes, body: bytes, needed: int) -> None:
    words = f"{name.decode()} box claims 1000 entries, which need {needed} bytes, but has {4 + len(body)}"
    with pytest.raises(UnreadableClip, match=words):
        check(bombs.mp4([bombs.track(10, tables={name: body})]))


def test_two_edit_lists_of_a_track_count_together() -> None:
    edts = bombs.box(b"edts", bombs.full(b"elst", struct.pack(">I", 60), bytes(12 * 60)))
    with pytest.raises(ClipTooLarge, match="edit list has 120 entries"):
        check(bombs.mp4([bombs.box(b"trak", edts, edts)]))


def test_boxes_nested_without_end_are_refused() -> None:
    """Regression: a thousand levels ended as a RecursionError, which blamed the server."""
    with pytest.raises(UnreadableClip, match="nested over 8 deep"):
        check(bombs.nested(2000))


# --- matroska and avi ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entry"),
    [(b"\x1c\x53\xbb\x6b", b"\xbb"), (b"\x12\x54\xc3\x67", b"\x73\x73"), (b"\x11\x4d\x9b\x74", b"\x4d\xbb")],
    ids=["cues", "tags", "seek"],
)
def test_a_matroska_list_of_empty_entries_is_refused(name: bytes, entry: bytes) -> None:
    with pytest.raises(ClipTooLarge, match=r"over 100016 elements, the limit for a file of 2 frames; copy its video"):
        check(bombs.with_list(MKV, name, entry, 100_017), replace(SERVED, max_frames=2))


def test_a_matroska_file_with_too_many_tracks_is_refused() -> None:
    crowded = bombs.with_list(MKV, b"\x16\x54\xae\x6b", b"\xae", MAX_TRACKS + 1)
    with pytest.raises(ClipTooLarge, match="over 128 tracks"):
        check(crowded)


def test_an_avi_with_too_many_tracks_is_refused() -> None:
    def listed(kind: bytes, body: bytes) -> bytes:
        return b"LIST" + struct.pack("<I", 4 + len(body)) + kind + body

    body = b"AVI " + listed(b"hdrl", listed(b"strl", b"") * (MAX_TRACKS + 1))
    with pytest.raises(ClipTooLarge, match="over 128 tracks"):
        check(b"RIFF" + struct.pack("<I", len(body)) + body)


# --- animations ---------------------------------------------------------------------------------

ANIMATIONS = {"gif": bombs.gif, "webp": bombs.webp, "apng": bombs.apng}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_an_animation_that_costs_more_than_its_bytes_can_hold_is_refused(name: str) -> None:
    """Regression: 8 kB of gif with a 4K canvas and 151 frames took half a minute."""
    bomb = ANIMATIONS[name](151, 2160, 3840)
    assert len(bomb) < 100_000
    words = r"151 frames of 3840x2160 are 1252454400 pixels, over the limit of 1200000000 .* raise max_decode_s"
    with pytest.raises(ClipTooLarge, match=words):
        check(bomb)
    check(bomb, max_decode_s=32.0)


@pytest.mark.parametrize("name", ANIMATIONS)
def test_a_canvas_over_the_limit_is_refused(name: str) -> None:
    with pytest.raises(ClipTooLarge, match="a frame of 400x300 is 120000 pixels"):
        check(ANIMATIONS[name](3, 300, 400), replace(SERVED, max_frame_pixels=300 * 399))


def test_a_png_chunk_that_claims_more_than_any_frame_is_refused() -> None:
    """Regression: ffmpeg takes memory for what the chunk claims, up to 2 GiB, before it reads it."""
    with pytest.raises(UnreadableClip, match="claims 500000000 bytes, but only 0 are left"):
        check(bombs.claiming_apng(500_000_000))
    check(bombs.claiming_apng(8 * 48 * 64))  # a frame that was cut


@pytest.mark.parametrize("name", ANIMATIONS)
def test_these_animations_are_otherwise_whole(name: str) -> None:
    """So that it is their cost alone that is refused."""
    with open_source(ANIMATIONS[name](12, 96, 128)) as source:
        assert (source.height_px, source.width_px, source.times_s.size) == (96, 128, 12)


@pytest.mark.parametrize("name", ["gif", "webp", "apng"])
def test_an_animation_with_enough_bytes_is_left_to_the_clock(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), dtype=np.uint8)
    makers: dict[str, Callable[[], bytes]] = {
        "gif": lambda: media.gif(noise),
        "webp": lambda: media.webp(noise),
        "apng": lambda: media.video(noise, container="apng", codec="apng", pix_fmt="rgb24", fps=12),
    }
    check(makers[name](), max_decode_s=1e-3)  # 40,000 pixels would be allowed for; each frame has 6,144


# --- lawful files -------------------------------------------------------------------------------

LAWFUL: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: media.video(FRAMES),
    "mp4 with sound": lambda: media.video(FRAMES, with_audio=True),
    "mp4 with b-frames": lambda: media.video(FRAMES, codec_options={"bf": "3", "b-pyramid": "normal"}),
    "mp4 with negative times": lambda: media.video(
        FRAMES, ticks=list(range(-500, 1900, 100)), codec_options={"bf": "0"}
    ),
    "fragmented mp4": lambda: media.video(FRAMES, options={"movflags": "frag_keyframe+empty_moov"}),
    "fast start mp4": lambda: media.video(FRAMES, options={"movflags": "faststart"}),
    "mov": lambda: media.video(FRAMES, container="mov"),
    "hevc": lambda: media.video(FRAMES, codec="libx265", codec_options={"x265-params": "log-level=none"}),
    "mjpeg mov": lambda: media.video(FRAMES, container="mov", codec="mjpeg", pix_fmt="yuvj420p"),
    "mkv": lambda: MKV,
    "webm": lambda: media.video(FRAMES, container="webm", codec="libvpx-vp9"),
    "avi": lambda: odd_files.b_frames_in_avi(FRAMES),
    "avi with sound": lambda: media.video(FRAMES, container="avi", with_audio=True),
    "ts": lambda: odd_files.concatenated_ts(FRAMES),
    "mpg": lambda: media.video(FRAMES, container="mpeg", codec="mpeg2video", fps=24),
    "y4m": lambda: media.video(FRAMES, container="yuv4mpegpipe", codec="wrapped_avframe"),
    "apng": lambda: media.video(FRAMES, container="apng", codec="apng", pix_fmt="rgb24"),
    "gif": lambda: media.gif(FRAMES),
    "webp": lambda: media.webp(FRAMES),
    "cover": lambda: odd_files.with_cover(FRAMES),
    "two tracks": lambda: odd_files.two_tracks(FRAMES[::-1], FRAMES),
    "two sizes": lambda: odd_files.two_sizes(FRAMES),
    "hidden vp9": lambda: odd_files.hidden_vp9(FRAMES),
    "gap": lambda: odd_files.with_gap(FRAMES, after=8, gap_ms=5000),
    "in threes": lambda: odd_files.in_threes(FRAMES),
    "dropped": lambda: odd_files.dropped(FRAMES, 0.3),
    "quick gif": lambda: odd_files.gif_of(FRAMES, 10),
    "see-through webp": lambda: media.webp(odd_files.see_through(FRAMES)),
    "anamorphic": lambda: media.video(FRAMES, pixel_aspect=Fraction(4, 3)),
    "colours": lambda: media.video(FRAMES, colour=(Colorspace.ITU709, ColorRange.MPEG)),
    "still screen": lambda: media.gif(np.repeat(media.texture(1, 540, 960), 100, axis=0)),
}


@pytest.mark.parametrize("name", LAWFUL)
def test_a_lawful_file_is_never_refused(name: str) -> None:
    whole = LAWFUL[name]()
    check(whole)
    check(whole, FILE_LIMITS, 3600.0)


@pytest.mark.parametrize("name", ["mp4", "fast start mp4", "fragmented mp4", "mkv", "avi", "gif", "apng", "webp"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_nor_is_what_is_left_of_one(name: str, share: float) -> None:
    """A cut file is read up to its cut, so what is missing there must not count as a contradiction."""
    whole = LAWFUL[name]()
    check(whole[: int(share * len(whole))])
