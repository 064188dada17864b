"""Clips are decoded in child processes: the same frames, and whatever happens to a child costs one clip."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protos.types import Media, Source
from reward_server.decoding.children import AVAILABLE, DecodePool
from reward_server.decoding.decode import Sampling, decode
from reward_server.decoding.messages import Answer, decoded_clip, shared
from reward_server.decoding.sandbox import can_filter
from reward_server.errors import ClipTooLarge, DecodeMemory, DecoderCrashed, DecodeTooSlow, UnreadableClip
from reward_server.evaluation.scoring import open_scorer
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings
from tests import media

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="children need Linux")

SAMPLING = Sampling()
CLIP = media.texture(20)
VIDEO = media.video(CLIP, fps=12)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(size=1, memory_mib=512)
    yield pool
    pool.close()


def decoded(pool: DecodePool, payload: bytes, kind: Media = Media.CONTAINER, max_decode_s: float = 60.0) -> object:
    return pool.decode(media.submission(payload, kind), SAMPLING, media.LIMITS, max_decode_s)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (VIDEO, Media.CONTAINER),
        (media.gif(CLIP), Media.CONTAINER),
        (media.webp(CLIP), Media.CONTAINER),
        (media.tensor(CLIP, 12.0), Media.TENSOR),
    ],
    ids=["mp4", "gif", "webp", "tensor"],
)
def test_a_child_gives_what_this_process_gives(pool: DecodePool, payload: bytes, kind: Media) -> None:
    submission = media.submission(payload, kind)
    there = pool.decode(submission, SAMPLING, media.LIMITS, 60.0)
    here = decode(submission, SAMPLING, media.LIMITS, 60.0)
    assert (there.source, there.fps_used, there.warnings) == (here.source, here.fps_used, here.warnings)
    assert [window.start_s for window in there.windows] == [window.start_s for window in here.windows]
    for ours, theirs in zip(here.windows, there.windows, strict=True):
        np.testing.assert_array_equal(ours.clip.frames, theirs.clip.frames)


def test_a_refusal_keeps_its_class_and_words_and_the_child(pool: DecodePool) -> None:
    decoded(pool, VIDEO)
    before = pool.pids()
    with pytest.raises(UnreadableClip, match="not a known video"):
        decoded(pool, b"no video at all")
    with pytest.raises(ClipTooLarge, match="over the limit of"):
        pool.decode(media.submission(VIDEO), SAMPLING, replace(media.LIMITS, max_frames=5), 60.0)
    assert pool.pids() == before


def while_stopped(pool: DecodePool, signum: int | None, max_decode_s: float) -> None:
    """Decode while the child is stopped, and send it `signum` once it has been asked."""
    decoded(pool, VIDEO)
    [pid] = pool.pids()
    resource.prlimit(pid, resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(decoded, pool, VIDEO, max_decode_s=max_decode_s)
        if signum:
            while resource.prlimit(pid, resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY:
                assert not running.done()
            os.kill(pid, signum)
            if signum != signal.SIGKILL:
                os.kill(pid, signal.SIGCONT)
        running.result()


def test_a_child_that_dies_costs_its_own_clip_only(pool: DecodePool) -> None:
    with pytest.raises(DecoderCrashed, match=r"ended with SIGKILL.*re-encode"):
        while_stopped(pool, signal.SIGKILL, 60.0)
    decoded(pool, VIDEO)


def test_a_child_that_used_up_its_processor_time_was_too_slow(pool: DecodePool) -> None:
    with pytest.raises(DecodeTooSlow, match="over the limit of 60 s"):
        while_stopped(pool, signal.SIGXCPU, 60.0)
    decoded(pool, VIDEO)


def test_a_child_that_does_not_answer_is_killed_at_the_limit(pool: DecodePool) -> None:
    with pytest.raises(DecodeTooSlow, match=r"over the limit of 0\.1 s"):
        while_stopped(pool, None, 0.1)
    decoded(pool, VIDEO)


def test_a_child_that_died_while_idle_costs_no_clip(pool: DecodePool) -> None:
    decoded(pool, VIDEO)
    [pid] = pool.pids()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    decoded(pool, VIDEO)


def test_a_clip_that_needs_too_much_memory_is_refused_and_the_next_one_is_not() -> None:
    pool = DecodePool(size=1, memory_mib=192)
    tensor = media.tensor(np.zeros((4, 6000, 8000, 3), np.uint8), 12.0)  # 137 MiB a frame
    limits = replace(media.LIMITS, max_bytes=len(tensor), max_frame_pixels=6000 * 8000)
    try:
        with pytest.raises(DecodeMemory, match=r"more than 192 MiB.*DECODE_MEMORY_MIB"):
            pool.decode(media.submission(tensor, Media.TENSOR), SAMPLING, limits, 60.0)
        decoded(pool, VIDEO)
    finally:
        pool.close()


def test_a_tensor_may_be_larger_than_the_memory_of_the_child() -> None:
    pool = DecodePool(size=1, memory_mib=192)
    tensor = media.submission(media.tensor(media.texture(80, 720, 1280), 12.0), Media.TENSOR)  # 211 MiB
    limits = replace(media.LIMITS, max_bytes=len(tensor.payload), max_frame_pixels=720 * 1280)
    try:
        clip, known = (one(tensor, SAMPLING, limits, 60.0) for one in (pool.decode, decode))
    finally:
        pool.close()
    for window, expected in zip(clip.windows, known.windows, strict=True):
        np.testing.assert_array_equal(window.clip.frames, expected.clip.frames)


def test_a_file_whose_index_claims_millions_of_samples_takes_no_memory(pool: DecodePool) -> None:
    at = VIDEO.index(b"stsz") + 8
    with pytest.raises(ClipTooLarge, match="75000000 packets of video, over the limit of"):
        decoded(pool, VIDEO[:at] + struct.pack(">II", 1, 75_000_000) + VIDEO[at + 8 :])


# --- a child that lies --------------------------------------------------------------------------

SOURCE = Source(frames=20, fps=12.0, duration_s=2.0, height_px=64, width_px=96, codec="h264")
HONEST = Answer(starts_s=(0.0,), frames_per_window=16, height_px=160, width_px=240, fps_used=12.0, source=SOURCE)
NUM_BYTES = 16 * 3 * 160 * 240


def clip_of(answer: Answer, num_bytes: int) -> object:
    held = shared([bytes(num_bytes)])
    try:
        return decoded_clip(answer, held, SAMPLING)
    finally:
        os.close(held)


def test_an_honest_answer_is_taken() -> None:
    clip_of(HONEST, NUM_BYTES)


@pytest.mark.parametrize(
    ("changes", "num_bytes"),
    [
        ({}, NUM_BYTES - 1),
        ({}, NUM_BYTES + 1),
        ({"starts_s": ()}, 0),
        ({"starts_s": (0.0,) * 60}, 60 * NUM_BYTES),
        ({"frames_per_window": 10_000}, NUM_BYTES),
        ({"height_px": 16, "width_px": 2400}, NUM_BYTES),
        ({"height_px": -160, "width_px": -240}, NUM_BYTES),
        ({"fps_used": 0.0}, NUM_BYTES),
        ({"source": None}, NUM_BYTES),
        ({"source": replace(SOURCE, height_px=0)}, NUM_BYTES),
    ],
)
def test_a_wrong_answer_is_refused(changes: dict[str, Any], num_bytes: int) -> None:
    with pytest.raises(ValueError, match="its answer has"):
        clip_of(replace(HONEST, **changes), num_bytes)


def test_frames_in_something_that_is_no_memory_are_refused() -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(OSError, match=r"not permitted|Invalid argument"):
            decoded_clip(HONEST, reading, SAMPLING)
    finally:
        os.close(reading)
        os.close(writing)


# --- what a child may do ------------------------------------------------------------------------

ATTEMPTS = {
    "reads a file": "open('/etc/hostname')",
    "writes a file": "open('/tmp/x', 'w')",
    "opens a socket": "__import__('socket').socket()",
    "starts a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "forks": "os.fork()",
    "kills": "os.kill(os.getppid(), 0)",
    "raises its limits": "resource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
}


@pytest.mark.skipif(not can_filter(), reason="needs libseccomp")
@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_a_child_may_not(attempt: str) -> None:
    code = (
        "import os, resource, socket\nfrom reward_server.decoding.sandbox import confine\n"
        f"assert confine(512)\ntry:\n    {attempt}\nexcept (OSError, ValueError):\n    os._exit(7)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 7, ran.stderr


def test_a_child_knows_no_secret_of_its_parent(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "hidden")
    fresh = DecodePool(size=1, memory_mib=512)
    try:
        decoded(fresh, VIDEO)
        [pid] = fresh.pids()
        with open(f"/proc/{pid}/environ", "rb") as environment:  # noqa: PTH123
            assert b"hidden" not in environment.read()
    finally:
        fresh.close()


def test_scoring_in_process_is_isolated_unless_turned_off() -> None:
    isolated = Pipeline.load(Settings(num_tracks=16, threads=1))
    direct = Pipeline.load(Settings(num_tracks=16, threads=1, decode_isolation=False))
    [one], [other] = (one.score_submissions([media.submission(VIDEO)]) for one in (isolated, direct))
    assert isolated.decode_pids
    assert not direct.decode_pids
    assert one.reward
    assert other.reward
    assert one.reward.logits == other.reward.logits


@pytest.mark.parametrize("isolated", [True, False])
def test_what_a_command_decodes_itself_is_isolated_too(isolated: bool) -> None:
    settings = Settings(num_tracks=16, threads=1, decode_isolation=isolated)
    with open_scorer(settings, None) as scorer:
        clip = scorer.decode(media.submission(VIDEO), replace(SAMPLING, max_windows=1), settings)
        assert (scorer.children is not None) == isolated
        assert bool(scorer.children and scorer.children.pids()) == isolated
    assert len(clip.windows) == 1
