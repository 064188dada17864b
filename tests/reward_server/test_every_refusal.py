"""Tests that every `raise` of the reader and of decoding is reached, and that its message tells what to do.

`CASES` holds a file or a call for each. Which raise statements they reach is taken from the tracebacks.
"""

from __future__ import annotations

import functools
import re
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.reader import Picture, containers, open_source
from protos.reader.boxes import MAX_BOXES
from protos.reader.guard import Guard, decoder_threads
from protos.reader.plausible import MAX_TRACKS
from protos.reader.reel import Reel
from protos.reader.source import _source
from protos.types import Media
from reward_server.decoding.decode import Sampling, decode
from reward_server.decoding.encode import encoded
from reward_server.settings import Settings
from tests import bombs, media, odd_files
from tests.documents import ROOT
from tests.odd_table import FAST_START, FRAGMENTS, FRAMES, coded, lossless
from tests.refusals import raises_not_reached, tells_next_step

ROOMS = ("protos/reader", "reward_server/decoding")
# Raised about a child process, or for one. tests/reward_server/test_decode_children.py tests them without a clip.
OF_CHILDREN = ("children.py", "messages.py")
MKV = media.video(FRAMES, fps=12, container="matroska", codec="ffv1", pix_fmt="bgr0")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is called, the code of the error (or its class, if it is no refusal of a clip), and words of its message."""

    run: Callable[[], object]
    code: str
    words: tuple[str, ...]


def clip(payload: bytes, media_kind: Media = Media.CONTAINER, max_decode_s: float = 60.0, **limits: Any) -> object:
    return decode(media.submission(payload, media_kind), Sampling(), replace(media.LIMITS, **limits), max_decode_s)


def opened(path: Path | bytes, fps: float | None = 12.0, **options: Any) -> object:
    with open_source(path, media.LIMITS, fps=fps, **options) as source:
        return list(source.frames(range(source.times_s.size)))


def folder(*pictures: bytes) -> Path:
    made = Path(tempfile.mkdtemp())
    for number, data in enumerate(pictures):
        (made / f"{number}.png").write_bytes(data)
    return made


def indexed(*tracks: bytes) -> object:
    return opened(bombs.mp4(tracks))


def png(frame: media.Frames = FRAMES[0]) -> bytes:
    return odd_files.picture(frame, "PNG")


def png_header(side_px: int) -> bytes:
    """A png that claims to be a large square."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def webp_header(side_px: int) -> bytes:
    """A still webp that claims to be a large square."""
    body = b"\x2f" + struct.pack("<I", (side_px - 1) | (side_px - 1) << 14) + bytes(201)
    parts = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def with_first_frame(webp: bytes, at: int, value: bytes) -> bytes:
    """The animation with another byte `at` in its first frame's head: 0 is its place from the left, 6 its width."""
    start = webp.index(b"ANMF") + 8 + at
    return webp[:start] + value + webp[start + 1 :]


def noise_after_index() -> bytes:
    payload = coded(options=FAST_START)
    start = payload.index(b"mdat") + 4
    return payload[:start] + bytes(len(payload) - start)


def source_without_pictures(times_s: Any) -> object:
    """The reader's last defence: a decoder that gives nothing, and reports no damage."""
    first = Picture(height_px=16, width_px=16, rgb=lambda: FRAMES[0], luma=lambda: FRAMES[0, ..., 0])
    reel = Reel(codec="h264", times_s=np.array(times_s), pictures=lambda wanted: iter(()))
    if len(times_s) < 2:
        return _source(reel, Guard())
    source = _source(replace(reel, pictures=lambda wanted: iter([(0.0, first)])), Guard())
    return list(replace(source, _reel=reel).frames([0, 1]))


def threads(value: str) -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MOTION_REWARD_DECODER_THREADS", value)
        return decoder_threads()


CASES: dict[str, Case] = {
    # --- limits ---
    "no bytes": Case(run=lambda: clip(b""), code="empty_payload", words=("0 bytes",)),
    "bytes": Case(
        run=lambda: clip(coded(), max_bytes=100),
        code="clip_too_large",
        words=("bytes, over the limit of 100", "MOTION_REWARD_MAX_BYTES"),
    ),
    "frames": Case(
        run=lambda: clip(coded(), max_frames=23),
        code="clip_too_large",
        words=("24 frames, over the limit of 23", "MOTION_REWARD_MAX_FRAMES"),
    ),
    "packets": Case(
        run=lambda: clip(coded(), max_frames=11),
        code="clip_too_large",
        words=("24 packets of video, over the limit of 22 for 11 frames", "MOTION_REWARD_MAX_FRAMES"),
    ),
    "seconds": Case(
        run=lambda: clip(coded(), max_duration_s=1.0),
        code="clip_too_large",
        words=("1.84 seconds, over the limit of 1.0", "MOTION_REWARD_MAX_DURATION_S"),
    ),
    "pixels": Case(
        run=lambda: clip(coded(), max_frame_pixels=1000),
        code="clip_too_large",
        words=("96x64 is 6144 pixels, over the limit of 1000", "MOTION_REWARD_MAX_FRAME_PIXELS"),
    ),
    "wall time": Case(
        run=lambda: clip(coded(), max_decode_s=1e-9),
        code="decode_too_slow",
        words=("over 1e-09 s", "MOTION_REWARD_MAX_DECODE_S"),
    ),
    "threads": Case(run=lambda: threads("none"), code="ValueError", words=("DECODER_THREADS='none'", "1 to 64")),
    "edits": Case(
        run=lambda: clip(odd_files.claiming(10, edits=1000)),
        code="clip_too_large",
        words=("1000 entries, over the limit of 100",),
    ),
    "samples beside the video": Case(
        run=lambda: clip(odd_files.claiming(2_000_000, handler=b"soun")),
        code="clip_too_large",
        words=("2000000 samples beside its video, over the limit of 1000000",),
    ),
    "boxes": Case(
        run=lambda: clip(struct.pack(">I4s", 8, b"free") * (MAX_BOXES + 1)),
        code="clip_too_large",
        words=(f"over {MAX_BOXES} boxes",),
    ),
    "webp of 16383 x 16383": Case(
        run=lambda: clip(webp_header(16383)),
        code="clip_too_large",
        words=("268402689 pixels", "at most 307200 pixels", "MOTION_REWARD_MAX_FRAME_PIXELS"),
    ),
    "png of 20000 x 20000": Case(
        run=lambda: opened(folder(png_header(20000), png())),
        code="clip_too_large",
        words=("0.png' is too large", "400000000 pixels", "at most 307200 pixels", "MOTION_REWARD_MAX_FRAME_PIXELS"),
    ),
    # --- no video ---
    "text": Case(run=lambda: clip(b"a text" * 20), code="unreadable_clip", words=("120 bytes", "text ('a text", "mp4")),
    "index missing": Case(
        run=lambda: clip(odd_files.cut(coded())), code="unreadable_clip", words=("begin like mov", "never arrived")
    ),
    "index compressed": Case(
        run=lambda: clip(odd_files.compressed_index(coded(options=FAST_START))),
        code="unreadable_clip",
        words=("compressed (cmov)",),
    ),
    "webp without a picture": Case(
        run=lambda: clip(b"RIFF" + struct.pack("<I", 4) + b"WEBP"),
        code="unreadable_clip",
        words=("the webp's 12 bytes cannot be opened",),
    ),
    "sound": Case(run=lambda: clip(media.sound()), code="unreadable_clip", words=("no video stream, only audio",)),
    "codec unknown": Case(
        run=lambda: clip(lossless().replace(b"V_FFV1", b"V_XXXX")),
        code="unreadable_clip",
        words=("does not know the codec of video track 0 of 1", "h264, vp9 or av1"),
    ),
    "no such track": Case(
        run=lambda: opened(coded(), track=2), code="unreadable_clip", words=("track=2 does not exist", "has 1 video")
    ),
    "no such track of a tensor": Case(
        run=lambda: opened(media.tensor(FRAMES, 12.0), track=1),
        code="unreadable_clip",
        words=("track=1 does not exist", "has 1 video"),
    ),
    "track without packets": Case(
        run=lambda: clip((whole := coded(options=FRAGMENTS))[: whole.index(b"moof") - 4]),
        code="unreadable_clip",
        words=("1 video track(s) have no frames (it is empty)",),
    ),
    "all frames edited away": Case(
        run=lambda: clip(odd_files.edited_mov(FRAMES[:8])),
        code="unreadable_clip",
        words=("video track 0 has no frame to show", "edit list"),
    ),
    "another file": Case(
        run=lambda: containers._refuse_to_open("/etc/passwd"), code="PermissionError", words=("'/etc/passwd'",)
    ),
    # --- damage ---
    "frames that cannot be decoded": Case(
        run=lambda: clip(noise_after_index()),
        code="unreadable_clip",
        words=("only 0 of the file's 24", "under the minimum of", "track 0 is cut or damaged from 0.00 s on"),
    ),
    "cut within the first frame": Case(
        run=lambda: clip(odd_files.cut(coded(options=FAST_START), 0.5)),
        code="unreadable_clip",
        words=("mov file", "within its first frame"),
    ),
    "a damaged webp frame": Case(
        run=lambda: clip(odd_files.damaged_webp(media.webp(FRAMES, 80), 6)),
        code="unreadable_clip",
        words=("frame 6 of the webp's 24, at 0.48 s",),
    ),
    "a damaged still webp": Case(
        run=lambda: clip((still := odd_files.picture(FRAMES[0], "WEBP"))[:40] + b"\xff" * (len(still) - 40)),
        code="unreadable_clip",
        words=("frame 0 of the webp's 1, at 0.00 s",),
    ),
    "a png chunk beyond the file": Case(
        run=lambda: clip(bombs.claiming_apng(500_000_000)),
        code="unreadable_clip",
        words=("a chunk of the png claims 500000000 bytes", "only 0 are left"),
    ),
    "a webp frame beside its canvas": Case(
        run=lambda: clip(with_first_frame(media.webp(FRAMES, 80), 0, b"\1")),
        code="unreadable_clip",
        words=("frame 0 of the webp's 24", "outside the canvas"),
    ),
    "a webp frame of another size": Case(
        run=lambda: clip(with_first_frame(media.webp(FRAMES, 80), 6, b"\5")),
        code="unreadable_clip",
        words=("frame 0 of the webp's 24", "not the declared one"),
    ),
    "a decoder that gives nothing": Case(
        run=lambda: source_without_pictures([0.0]), code="unreadable_clip", words=("none of the file's 1 h264 frames",)
    ),
    "a decoder that gives nothing later": Case(
        run=lambda: source_without_pictures([0.0, 0.1]),
        code="unreadable_clip",
        words=("none of the 2 frames from 0.00 s on",),
    ),
    "colours": Case(
        run=lambda: clip(coded(codec_options={"x264-params": "colormatrix=YCgCo"})),
        code="unreadable_clip",
        words=("colour matrix 8", "at 0.00 s"),
    ),
    "a tensor": Case(
        run=lambda: clip(media.tensor(FRAMES, 12.0)[:-1], Media.TENSOR), code="bad_tensor", words=("declares",)
    ),
    # --- times ---
    "one frame": Case(
        run=lambda: clip(coded(frames=FRAMES[:1])),
        code="clip_too_short",
        words=("1 frame(s)", "minimum of 8", "0.67 s"),
    ),
    "few frames": Case(
        run=lambda: clip(coded(frames=FRAMES[:7])),
        code="clip_too_short",
        words=("7 frame(s) after resampling to 12.5 fps", "minimum of 8", "0.64 s"),
    ),
    "few frames before a cut": Case(
        run=lambda: clip(odd_files.cut(coded("matroska", "mjpeg", pix_fmt="yuvj420p"), 0.25)),
        code="clip_too_short",
        words=("minimum of 8", "the file ends after", "of 1.9 s"),
    ),
    "uneven times": Case(
        run=lambda: clip(odd_files.dropped(media.texture(40), 0.4, fps=10)),
        code="unreadable_clip",
        words=("at 10 fps", "over the limit of 20%", "constant rate"),
    ),
    # --- image sequences ---
    "no picture": Case(
        run=lambda: opened(folder() / "%04d.png"),
        code="unreadable_clip",
        words=("no png or jpg picture matches", "%04d"),
    ),
    "no frame rate": Case(
        run=lambda: opened(folder(png(), png()), fps=None), code="unreadable_clip", words=("2 pictures", "--fps")
    ),
    "two sizes": Case(
        run=lambda: opened(folder(png(), png(FRAMES[0][:32]))),
        code="unreadable_clip",
        words=("1.png' is 96x32, but '0.png' is 96x64",),
    ),
    "a file that is no picture": Case(
        run=lambda: opened(folder(png(), b"text")), code="unreadable_clip", words=("1.png' cannot be opened",)
    ),
    "a cut picture": Case(
        run=lambda: opened(folder(png(), png()[:200])), code="unreadable_clip", words=("1.png' cannot be decoded",)
    ),
    # --- claims beyond the file (more in tests/protos/test_plausible.py) ---
    "an index that its box cannot hold": Case(
        run=lambda: indexed(bombs.track(10, tables={b"stco": struct.pack(">II", 1000, 8)})),
        code="unreadable_clip",
        words=("stco box claims 1000 entries, which need 4008 bytes",),
    ),
    "too many edits": Case(
        run=lambda: indexed(bombs.track(10, edits=101)),
        code="clip_too_large",
        words=("101 entries, over the limit of 100",),
    ),
    "too many samples beside the video": Case(
        run=lambda: indexed(bombs.track(10), bombs.track(1_000_001, handler=b"soun", ticks=2)),
        code="clip_too_large",
        words=("1000001 samples beside its video",),
    ),
    "samples repeated by edits": Case(
        run=lambda: indexed(bombs.track(10), bombs.track(99_000, handler=b"soun", ticks=2, edits=50)),
        code="clip_too_large",
        words=("4950010 times, over the limit of 4000000",),
    ),
    "too many tracks": Case(
        run=lambda: indexed(*[bombs.track(10)] * (MAX_TRACKS + 1)), code="clip_too_large", words=("over 128 tracks",)
    ),
    "boxes nested without end": Case(
        run=lambda: opened(bombs.nested(2000)), code="unreadable_clip", words=("nested over 8 deep",)
    ),
    "an animation of few bytes": Case(
        run=lambda: Guard(limits=media.LIMITS, max_decode_s=0.5).composed(200, 300, 400, num_bytes=1000),
        code="clip_too_large",
        words=("200 frames of 400x300 are 24000000 pixels, over the limit of 20000000",),
    ),
    "a list of empty entries": Case(
        run=lambda: clip(bombs.with_list(MKV, b"\x1c\x53\xbb\x6b", b"\xbb", 100_100), max_frames=10),
        code="clip_too_large",
        words=("elements, the limit for a file of 10 frames", "MOTION_REWARD_MAX_FRAMES"),
    ),
    # --- calls ---
    "sampling without frames": Case(
        run=lambda: Sampling(min_frames=1), code="ValueError", words=("2 <= min_frames", "min_frames=1")
    ),
    "sampling without pixels": Case(
        run=lambda: Sampling(area_px=100, multiple_px=16), code="ValueError", words=("got 16 and 100",)
    ),
    "odd sides": Case(
        run=lambda: encoded(FRAMES[:, :63], 12.0, codec="libx264", options={}, container="mp4"),
        code="ValueError",
        words=("even sides, got 63x96",),
    ),
}


# Limits without a setting: they bound what a file may claim, not what a clip may be.
FIXED = {
    *("edits", "samples beside the video", "boxes", "uneven times", "too many edits"),
    *("too many samples beside the video", "samples repeated by edits", "too many tracks", "boxes nested without end"),
}


@functools.cache
def error_of(name: str) -> Exception:
    with pytest.raises(Exception, match=r".") as caught:  # each case says which
        CASES[name].run()
    return caught.value


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_has_its_code_and_names_the_value_the_limit_and_the_next_step(name: str) -> None:
    error, case = error_of(name), CASES[name]
    assert getattr(error, "code", type(error).__name__) == case.code
    for words in case.words:
        assert words in str(error)
    assert case.code == "PermissionError" or tells_next_step(error), str(error)


def test_a_message_about_a_limit_names_its_setting() -> None:
    about_limits = {name for name in CASES if re.search(r"\bover\b|\blimit\b|at most \d", str(error_of(name)))}
    assert about_limits >= FIXED
    for name in about_limits - FIXED:
        settings = re.findall(r"MOTION_REWARD_([A-Z_]+)", str(error_of(name)))
        assert settings, f"{name}: {error_of(name)}"
        assert {setting.lower() for setting in settings} <= set(Settings.model_fields), name


def test_every_raise_is_reached() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).glob("*.py") if path.name not in OF_CHILDREN]
    assert raises_not_reached(files, map(error_of, CASES)) == []
