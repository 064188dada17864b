"""Tests which clips decoding refuses, when and with which message, and that bad bytes raise no other errors."""

from __future__ import annotations

import dataclasses
import json
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from protos.types import Media
from reward_server.decoding.decode import DecodedClip, Sampling, decode
from reward_server.errors import (
    BadTensor,
    ClipTooLarge,
    ClipTooShort,
    DecodeTooSlow,
    EmptyPayload,
    InvalidClip,
    UnreadableClip,
)
from tests import media, odd_files

FAST_START = {"options": {"movflags": "faststart"}}
NO_ENCODER_NOTE = {"x264-params": "no-info=1"}  # so that the bytes are frames and not the encoder's note


def run(payload, kind=Media.CONTAINER, max_decode_s=60.0, **limits):
    return decode(
        media.submission(payload, kind), Sampling(), dataclasses.replace(media.LIMITS, **limits), max_decode_s
    )


def refused(leaf, payload, *words, **options):
    with pytest.raises(leaf) as caught:
        run(payload, **options)
    assert type(caught.value) is leaf
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def mp4(num_frames=24, **options):
    return media.video(media.texture(num_frames), **{"fps": 10, **options})


# --- not a video ---


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"This is my holiday video, I promise.\n" * 40, ["text ('This is my holiday"]),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", ["text ('#EXTM3U"]),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", ["text ('ffconcat"]),
        (b"<html><body>404</body></html>", ["text"]),
        (json.dumps({"error": "not found"}).encode(), ["text"]),
        (b"\x00", ["1 bytes"]),
        (bytes(1000), ["1000 bytes"]),
        (bytes(range(7, 256)) * 10, ["07 08 09"]),
        (odd_files.picture(media.texture(1)[0], "PNG"), ["a PNG picture"]),
        (media.tensor(media.texture(8), 10.0), ["media 'tensor'"]),
        (b"\x00\x00\x00\x18ftypmp42", ["cannot be opened"]),
        (b"\x1a\x45\xdf\xa3" + bytes(100), ["cannot be opened"]),
        (b"GIF89a;", ["cannot be opened"]),
        (b"RIFF\x10\x00\x00\x00WAVE" + bytes(12), ["unknown"]),
    ],
)
def test_files_that_are_not_videos_are_refused_by_name(payload, words):
    refused(UnreadableClip, payload, *words)


def test_an_empty_payload_has_its_own_error():
    refused(EmptyPayload, b"", "0 bytes")
    refused(EmptyPayload, b"", kind=Media.TENSOR)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
def test_sound_alone_is_refused_by_name(container):
    refused(UnreadableClip, media.sound(container), "no video stream, only audio")


def test_a_cover_picture_does_not_count_as_video():
    refused(UnreadableClip, media.sound("mp4", with_cover=True), "no video stream, only audio, video")


def test_a_single_frame_is_refused_with_the_needed_length():
    for payload in (mp4(1), media.webp(media.texture(1)), media.gif(media.texture(1))):
        refused(ClipTooShort, payload, "1 frame(s) after resampling", "minimum of 8", "at least 0.67 s")
    refused(ClipTooShort, media.tensor(media.texture(7), 10.0), "7 frame(s)", "at least 0.80 s", kind=Media.TENSOR)


# --- too large: refused before decoding. The frames are noise, so decoding them would raise UnreadableClip. ---


def undecodable(**options):
    payload = mp4(**FAST_START, **options)
    start = payload.index(b"mdat") + 4
    return payload[:start] + bytes(len(payload) - start)


def test_the_undecodable_clip_cannot_be_decoded():
    refused(UnreadableClip, undecodable(), "only 0 of the file's 24", "upload the whole file")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_frames": 11}, ["24 packets", "limit of 22 for 11 frames", "max_frames", "MOTION_REWARD_MAX_FRAMES"]),
        ({"max_duration_s": 2.0}, ["2.3 seconds", "limit of 2.0", "max_duration_s"]),
        ({"max_frame_pixels": 64 * 96 - 1}, ["96x64", "6144 pixels", "limit of 6143"]),
        ({"max_bytes": 1000}, ["bytes", "limit of 1000"]),
    ],
)
def test_limits_are_checked_before_decoding(limits, words):
    refused(ClipTooLarge, undecodable(), *words, **limits)
    exact = {"max_frames": 24, "max_duration_s": 2.3, "max_frame_pixels": 64 * 96}
    assert run(mp4(), **exact).source.frames == 24  # values equal to the limit pass


@pytest.mark.parametrize("container", ["matroska", "avi", "mpegts"])
def test_frames_and_seconds_are_limited_in_every_container(container):
    payload = mp4(container=container)
    refused(ClipTooLarge, payload, "limit of 23", max_frames=23)
    refused(ClipTooLarge, payload, "limit of 2.0", max_duration_s=2.0)
    refused(ClipTooLarge, payload, "limit of 6143", max_frame_pixels=6143)


@pytest.mark.parametrize("payload", [media.gif(media.texture(24)), media.webp(media.texture(24))], ids=["gif", "webp"])
def test_limits_hold_for_animated_pictures(payload):
    refused(ClipTooLarge, payload, "limit of 23", max_frames=23)
    refused(ClipTooLarge, payload, "limit of 2.0", max_duration_s=2.0)
    refused(ClipTooLarge, payload, "limit of 6143", max_frame_pixels=6143)


def test_limits_hold_for_tensors_before_their_data_are_read():
    header = json.dumps(
        {
            "__metadata__": {"layout": "TCHW", "range": "0-255", "fps": "10"},
            "frames": {"dtype": "U8", "shape": [24, 3, 64, 96], "data_offsets": [0, 24 * 3 * 64 * 96]},
        }
    ).encode()
    payload = struct.pack("<Q", len(header)) + header  # without any data
    for limits in ({"max_frames": 23}, {"max_duration_s": 2.0}, {"max_frame_pixels": 6143}):
        refused(ClipTooLarge, payload, "over the limit", kind=Media.TENSOR, **limits)
    refused(BadTensor, payload, "damaged", kind=Media.TENSOR)


def test_a_header_of_20000_by_20000_is_refused_early():
    payload = media.with_declared_size(mp4(), 20000, 20000)
    refused(ClipTooLarge, payload, "20000x20000", "400000000 pixels", max_frame_pixels=3840 * 2160)
    vp8x = struct.pack("<4sI4xHBHB", b"VP8X", 10, 19999 & 0xFFFF, 0, 19999 & 0xFFFF, 0)
    refused(ClipTooLarge, b"RIFF" + struct.pack("<I", 4 + len(vp8x)) + b"WEBP" + vp8x, "20000x20000")
    huge = b"GIF89a" + struct.pack("<HHBBB", 20000, 20000, 0, 0, 0) + b";"
    with pytest.raises(InvalidClip):
        run(huge)


def test_a_stream_larger_than_its_header_says_is_refused():
    payload = media.with_declared_size(mp4(), 32, 16)
    for limit in (6143, 1000):  # 6143 is checked on the first frame, 1000 before it is decoded
        refused(ClipTooLarge, payload, "96x64", f"limit of {limit}", max_frame_pixels=limit)
    assert run(payload).source.height_px == 64  # within the limit, the decoded size is used


def test_thousands_of_frames_are_refused():
    payload = media.video(media.numbered(128, 16, 16).repeat(16, axis=0), fps=100, container="matroska")
    refused(ClipTooLarge, payload, "limit of 2000", max_frames=2000)


def box(name, *parts, fields=()):
    """An mp4 box of some 32-bit fields, then bytes."""
    body = struct.pack(f">{len(fields)}I", *fields) + b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + name + body


def mp4_that_reads_itself_again(num_samples, num_bytes):
    """An mp4 with `num_bytes` of data. Its index points each of the `num_samples` frames to all of these bytes."""
    start = box(b"ftyp", b"isom\0\0\2\0isommp41")
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    entry = b"\0" * 6 + struct.pack(">H16xHHIIIH32xHh", 1, 64, 64, 0x480000, 0x480000, 0, 1, 24, -1)
    index = [
        box(b"stsd", box(b"mp4v", entry), fields=(0, 1)),
        box(b"stts", fields=(0, 1, num_samples, 40)),
        box(b"stsc", fields=(0, 1, 1, 1, 1)),
        box(b"stsz", fields=(0, num_bytes, num_samples)),
        box(b"stco", fields=(0, num_samples, *[len(start) + 8] * num_samples)),
    ]
    media_info = box(b"minf", box(b"vmhd", fields=(1, 0, 0)), box(b"stbl", *index))
    header = box(b"mdhd", struct.pack(">HH", 0x55C4, 0), fields=(0, 0, 0, 1000, 40 * num_samples))
    handler = box(b"hdlr", b"vide" + b"\0" * 13, fields=(0, 0))
    size = struct.pack(">II", 64 << 16, 64 << 16)
    track = box(b"tkhd", bytes(16), matrix, size, fields=(3, 0, 0, 1, 0, 40 * num_samples))
    movie = box(b"mvhd", bytes(16), matrix, bytes(28), fields=(0, 0, 0, 1000, 40 * num_samples, 0x10000))
    moov = box(b"moov", movie, box(b"trak", track, box(b"mdia", header, handler, media_info)))
    return start + box(b"mdat", bytes(num_bytes)) + moov


def test_an_index_that_repeats_the_same_bytes_is_refused():
    payload = mp4_that_reads_itself_again(40, 10_000)
    message = refused(ClipTooLarge, payload, "over the limit of 100000", "max_bytes", max_bytes=100_000)
    assert "110000 bytes" in message
    with pytest.raises(UnreadableClip):  # within the limit it is read, but has no picture
        run(payload)


def test_wall_time_is_limited():
    for payload in (mp4(), media.webp(media.texture(24))):
        refused(DecodeTooSlow, payload, "over 1e-09 s", "max_decode_s", max_decode_s=1e-9)


# --- cut or damaged ---


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_mp4_cut_before_its_index_is_refused(share):
    whole = mp4(codec_options=NO_ENCODER_NOTE)
    refused(UnreadableClip, whole[: int(len(whole) * share)], "its index never arrived", "upload the whole file")


def test_a_webp_cut_within_its_first_frame_is_refused():
    whole = media.webp(media.texture(24))
    refused(UnreadableClip, whole[: len(whole) // 50], "webp", "upload")


def test_a_webp_that_is_damaged_in_the_middle_is_refused_with_the_time():
    whole = media.webp(media.texture(24))
    start = [at for at in range(len(whole)) if whole[at : at + 4] == b"ANMF"][12] + 60
    damaged = whole[:start] + b"\xff" * 4000 + whole[start + 4000 :]
    refused(UnreadableClip, damaged, "webp", "frame 12 of", "at 1.20 s", "upload")


def test_a_cut_tensor_is_refused():
    payload = media.tensor(media.texture(24), 10.0)
    refused(BadTensor, payload[:-1], "damaged", kind=Media.TENSOR)


def test_damaged_frames_are_refused_above_the_tolerance():
    whole = media.video(media.texture(60), fps=10, codec="mjpeg", pix_fmt="yuvj420p", container="matroska")
    refused(UnreadableClip, odd_files.spoiled(whole, range(20, 30)), "mjpeg frames can be decoded", "under the")
    assert run(odd_files.spoiled(whole, [20])).source.frames == 60


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_frames_built_on_a_damaged_one_count_as_damaged(codec):
    whole = media.video(media.texture(48), fps=24, codec=codec, container="matroska", codec_options={"g": "48"})
    refused(UnreadableClip, media.with_noise(whole, 0.3, 0.32), "frames can be decoded, under the minimum of 47")


def test_a_colour_matrix_that_cannot_be_converted_is_named():
    payload = media.video(media.texture(10), fps=10, codec_options={"x264-params": "colormatrix=YCgCo"})
    refused(UnreadableClip, payload, "yuv420p frames of colour matrix 8", "re-encode")


# --- tensors that break the contract ---

FRAMES = np.zeros((8, 3, 16, 16), np.uint8)
META = {"layout": "TCHW", "range": "0-255", "fps": "10"}


@pytest.mark.parametrize(
    ("tensors", "meta", "word"),
    [
        ({"video": FRAMES}, META, "named 'frames'"),
        ({"frames": FRAMES, "more": FRAMES}, META, "exactly one"),
        ({"frames": FRAMES.astype(np.int32)}, META, "dtype"),
        ({"frames": FRAMES.transpose(0, 2, 3, 1).copy()}, META, "[T,3,H,W]"),
        ({"frames": FRAMES}, META | {"layout": "THWC"}, "layout"),
        ({"frames": FRAMES}, META | {"range": "0-1"}, "range"),
        ({"frames": FRAMES}, META | {"fps": "fast"}, "fps"),
        ({"frames": FRAMES}, META | {"fps": "0"}, "fps"),
        ({"frames": FRAMES.astype(np.float32) + 2}, META | {"range": "0-1"}, "0..1"),
        ({"frames": FRAMES.astype(np.float32) * np.nan}, META | {"range": "0-1"}, "finite"),
        ({"frames": FRAMES + np.arange(2, dtype=np.uint8)[:, None].repeat(8, 1).reshape(1, 1, 16, 1)}, META, "0 or 1"),
    ],
)
def test_a_tensor_that_breaks_the_contract_is_named(tensors, meta, word):
    refused(BadTensor, save(tensors, meta), word, kind=Media.TENSOR)


@pytest.mark.parametrize("payload", [b"x", b"not a tensor at all", mp4(8)])
def test_the_refusal_of_a_non_tensor_names_the_other_media(payload):
    refused(BadTensor, payload, "container", kind=Media.TENSOR)


def header_only(**frames):
    header = json.dumps({"__metadata__": META, "frames": frames}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(64)


@pytest.mark.parametrize(
    "frames",
    [
        {},
        {"dtype": "U8", "shape": 7},
        {"dtype": ["U8"], "shape": [8, 3, 16, 16]},
        {"dtype": "U8", "shape": ["8", 3, 16, 16]},
        {"dtype": "U8", "shape": [8.5, 3, 16, 16]},
        {"dtype": "U8", "shape": [True, 3, 16, 16]},
        {"dtype": "U8", "shape": [8, 3, None, 16]},
        {"dtype": "U8", "shape": [8, 3, 16, 16], "data_offsets": "everywhere"},
    ],
)
def test_a_tensor_header_of_nonsense_is_refused(frames):
    refused(BadTensor, header_only(**frames), kind=Media.TENSOR)


# --- damaged bytes raise no other errors ---

FUZZED = [
    mp4(16),
    mp4(16, **FAST_START, codec_options=NO_ENCODER_NOTE),
    mp4(16, container="matroska"),
    mp4(16, container="webm", codec="libvpx-vp9"),
    mp4(16, container="avi", codec="mpeg4"),
    mp4(16, container="mpegts"),
    mp4(16, container="mpeg", codec="mpeg2video", fps=24),
    media.gif(media.texture(16, 32, 48)),
    media.webp(media.texture(16, 32, 48)),
    media.tensor(media.texture(8, 16, 16), 10.0),
]


def outcome(payload, kind):
    """A clip that meets the contract, or an error of a subclass of InvalidClip. Other errors are raised."""
    try:
        decoded = run(payload, kind)
    except InvalidClip as error:
        assert type(error) is not InvalidClip
        assert len(str(error)) > 20
        return error
    for window in decoded.windows:
        assert window.clip.frames.shape[1] == 3
        assert 8 <= window.clip.frames.shape[0] <= 16
    return decoded


@given(
    st.sampled_from(FUZZED), st.floats(0, 1), st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7))), st.data()
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_damaged_bytes_give_a_clip_or_a_refusal(payload, share, flips, data):
    cut = bytearray(payload if data.draw(st.booleans()) else payload[: round(len(payload) * share)])
    for position, bit in flips:
        if cut:
            # often near the start, where the headers are
            at = int(len(cut) * (position**3 if data.draw(st.booleans()) else position))
            cut[at] ^= 1 << bit
    kind = Media.TENSOR if payload is FUZZED[-1] else Media.CONTAINER
    assert isinstance(outcome(bytes(cut), kind), DecodedClip | InvalidClip)


@given(st.binary(max_size=2000), st.sampled_from(Media))
@example(b"\x00\x00\x00\x08moov", Media.CONTAINER)
@example(b"RIFF\xff\xff\xff\xffWEBPVP8X", Media.CONTAINER)
@example(b"\x47" * 188, Media.CONTAINER)
@example(b"\x00\x00\x01\xba" * 50, Media.CONTAINER)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_random_bytes_are_refused(payload, kind):
    with pytest.raises(InvalidClip):
        run(payload, kind)
