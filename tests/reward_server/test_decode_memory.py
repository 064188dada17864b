"""A decode stays within the memory of its child at the default limits, whatever the file: bombs and heavy clips."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protos.types import Limits, Media
from reward_server.decoding.children import AVAILABLE, DecodePool
from reward_server.decoding.decode import DecodedClip, Sampling
from reward_server.errors import ClipTooLarge, InvalidClip, UnreadableClip
from reward_server.settings import Settings
from tests import bombs, media
from tests.media import Frames

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="children need Linux")

SETTINGS = Settings()
LIMITS = Limits(
    max_bytes=SETTINGS.max_bytes,
    max_frames=SETTINGS.max_frames,
    max_frame_pixels=SETTINGS.max_frame_pixels,
    max_duration_s=SETTINGS.max_duration_s,
    max_clips_per_request=SETTINGS.max_clips_per_request,
)
HEIGHT, WIDTH = 2160, 3840
MIB = 1024**2
MKV = media.video(media.texture(20), fps=12, container="matroska", codec="ffv1", pix_fmt="bgr0")


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(size=1, memory_mib=SETTINGS.decode_memory_mib)
    pool.start(1)
    yield pool
    pool.close()


def decoded(pool: DecodePool, payload: bytes, kind: Media = Media.CONTAINER) -> DecodedClip:
    return pool.decode(media.submission(payload, kind), Sampling(), LIMITS, 600.0)


def peak_mib(pool: DecodePool) -> float:
    """The most resident memory that the child has had."""
    [pid] = pool.pids()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


REFUSED: dict[str, Callable[[], bytes]] = {
    "samples": lambda: bombs.mp4([bombs.track(25_000_000)] * 3),
    "edits": lambda: bombs.mp4([bombs.track(1000, edits=100_000)]),
    "repeated sound": lambda: bombs.mp4([bombs.track(20), bombs.track(999_000, handler=b"soun", ticks=2, edits=100)]),
    "tracks": lambda: bombs.mp4([bombs.track(20, codec=b"avc1")] * 5000),
    "matroska cues": lambda: bombs.with_list(MKV, b"\x1c\x53\xbb\x6b", b"\xbb", 400_000),
    "matroska tags": lambda: bombs.with_list(MKV, b"\x12\x54\xc3\x67", b"\x73\x73", 400_000),
    "nested boxes": lambda: bombs.nested(5000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_before_it_takes_memory(pool: DecodePool, name: str) -> None:
    decoded(pool, MKV)
    before = peak_mib(pool)
    with pytest.raises((ClipTooLarge, UnreadableClip)):
        decoded(pool, REFUSED[name]())
    assert peak_mib(pool) < before + 32


def test_sound_that_claims_billions_of_samples_takes_no_memory(pool: DecodePool) -> None:
    with pytest.raises(InvalidClip):
        decoded(pool, bombs.mp4([bombs.track(20), *[bombs.track(2**32 - 2, handler=b"soun")] * 100]))
    assert peak_mib(pool) < SETTINGS.decode_memory_mib / 2


@pytest.mark.parametrize("make", [bombs.gif, bombs.webp, bombs.apng])
def test_an_animation_of_large_canvases_stays_below(pool: DecodePool, make: Callable[[int, int, int], bytes]) -> None:
    """Regression: frames in reference cycles added up to 4.4 GiB for 151 of them."""
    decoded(pool, make(12, HEIGHT, WIDTH))
    assert peak_mib(pool) < SETTINGS.decode_memory_mib


def large(num_frames: int) -> Frames:
    """A 4K texture that moves; the frames are made one by one, because 120 would take 3 GiB."""
    whole = media.texture(1, HEIGHT, WIDTH + 2 * num_frames)[0]
    return np.lib.stride_tricks.as_strided(
        whole, (num_frames, HEIGHT, WIDTH, 3), (2 * whole.strides[1], *whole.strides), writeable=False
    )


@pytest.mark.parametrize(
    "num_frames", [pytest.param(12, marks=pytest.mark.slow), pytest.param(120, marks=pytest.mark.long)]
)
def test_h264_of_4k_stays_below(pool: DecodePool, num_frames: int) -> None:
    clip = decoded(pool, media.video(large(num_frames), fps=12, codec_options={"preset": "ultrafast"}))
    assert clip.source.frames == num_frames
    assert peak_mib(pool) < SETTINGS.decode_memory_mib


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(720, 1280), (HEIGHT, WIDTH)])
def test_a_tensor_of_252_mib_stays_below(pool: DecodePool, height: int, width: int) -> None:
    num_frames = 252 * MIB // (3 * height * width)
    frames = np.broadcast_to(media.texture(1, height, width), (num_frames, height, width, 3))
    clip = decoded(pool, media.tensor(frames, 12.0), Media.TENSOR)
    assert clip.source.frames == num_frames
    assert peak_mib(pool) < SETTINGS.decode_memory_mib


def test_a_webp_is_read_frame_by_frame() -> None:
    """Regression: the whole file was copied once by the reader and once by Pillow, and had no room."""
    small, junk = bombs.webp(20, 48, 64), bytes(160 * MIB)
    chunks = small[8:] + b"JUNK" + struct.pack("<I", len(junk)) + junk
    pool = DecodePool(size=1, memory_mib=400)
    try:
        assert decoded(pool, b"RIFF" + struct.pack("<I", len(chunks)) + chunks).source.frames == 20
    finally:
        pool.close()
