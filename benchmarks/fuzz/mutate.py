"""Changes bytes at random, and makes the small good files of every container from which the changes start."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from functools import cache

from protos.types import Media
from tests import bombs, media, odd_files

Seed = tuple[Media, bytes]

MAX_BYTES = 400_000
SIZES = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)  # numbers at which programs err


def mutated(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """The bytes with one to six changes. `others` give parts that are put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        _change(out, rng, others)
    return bytes(out[:MAX_BYTES])


def _change(out: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """One change in place. Half of them are near the start, where the headers are."""
    reach = len(out) if rng.random() < 0.5 else min(len(out), 512)
    at, size = rng.randrange(max(1, reach)), rng.choice((1, 2, 4, 8, 64, 1024))
    match rng.randrange(7):
        case 0:
            out[at : at + 1] = bytes([rng.randrange(256)])
        case 1:
            out[at : at + 4] = struct.pack(rng.choice((">I", "<I")), rng.choice(SIZES))
        case 2:
            del out[at : at + size]
        case 3:
            out[at:at] = out[at : at + size] * rng.choice((1, 2, 50))
        case 4:
            out[at : at + size] = bytes([rng.choice((0, 255))]) * size
        case 5:
            del out[max(1, rng.randrange(max(1, len(out)))) :]
        case _:
            other = rng.choice(others) if others else out
            start = rng.randrange(max(1, len(other)))
            out[at : at + size] = other[start : start + size]


@cache
def files() -> tuple[Seed, ...]:
    """A good file of every container that is read, odd ones, bombs, and a tensor."""
    frames = media.texture(8, 32, 48)
    made = [
        media.video(frames, fps=12),
        media.video(frames, fps=12, container="mov", codec="qtrle", pix_fmt="rgb24"),
        media.video(frames, fps=12, container="matroska", codec="ffv1", pix_fmt="bgr0"),
        media.video(frames, fps=12, container="webm", codec="libvpx"),
        media.video(frames, fps=12, container="webm", codec="libvpx-vp9"),
        media.video(frames, fps=12, container="avi", codec="mjpeg", pix_fmt="yuvj420p"),
        media.video(frames, fps=24, container="mpeg", codec="mpeg1video"),
        media.video(frames, fps=12, container="mpegts"),
        media.gif(frames),
        media.webp(frames),
        odd_files.animated(frames, "AVIF"),
        odd_files.animated(frames, "PNG"),
        odd_files.y4m(frames),
        odd_files.m2ts(media.video(frames, fps=12, container="mpegts")),
        odd_files.edited_mov(media.texture(20, 32, 48)),
        odd_files.claiming(1000, edits=3),
        odd_files.with_cover(frames),
        bombs.mp4([bombs.track(1000, edits=1000)]),
        bombs.gif(20, 2160, 3840),
        bombs.webp(20, 2160, 3840),
        bombs.apng(20, 2160, 3840),
    ]
    return (*((Media.CONTAINER, data) for data in made), (Media.TENSOR, media.tensor(frames, 12.0)))
