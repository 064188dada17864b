"""Runs as a process of its own and makes one copy of a clip, as h264 in an mp4 (copies.py starts it).

    python -m reward_server.page.copy_process < REQUEST_LINE_AND_CLIP > ANSWER_LINE_AND_COPY

It takes the clip at the rate at which it is scored, applies a fault if asked to, and ends. A bad clip can hurt only
this process: it gives up files, network and memory before it reads the clip, as a decode child does.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import cv2
import numpy as np

from protos.error_codes import ErrorCode
from protos.types import Clip
from reward_server.decoding.child import import_the_rest, refusal
from reward_server.decoding.decode import decode_payload
from reward_server.decoding.encode import encode_h264
from reward_server.decoding.sampling import Sampling
from reward_server.decoding.sandbox import NO_MEMORY, confine
from reward_server.errors import InvalidClip
from reward_server.faults import MIN_FRAMES, MIN_SIDE_PX, NAMES, with_fault
from reward_server.page.messages import COPY_ANSWERS, COPY_REQUESTS, CopyAnswer, CopyRequest

MAX_FRAMES = 144  # of a copy: 12 s at 12 frames per second
AREA_PX = 384 * 216
SEED = 0  # of a fault, so that the same request gives the same copy


@dataclass(frozen=True, kw_only=True)
class Copy:
    """The mp4 bytes of a copy, and the answer that goes before them."""

    answer: CopyAnswer
    video: bytes = b""


def main() -> None:
    """Answer the request on standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print, and an answer must stay alone
    request = COPY_REQUESTS.validate_json(sys.stdin.buffer.readline())
    cv2.setNumThreads(1)
    import_the_rest()
    _warm_up(request.fault)
    if request.confined:
        confine(request.memory_mib)
    try:
        made = _answered(request, sys.stdin.buffer.read())
        answers.write(COPY_ANSWERS.dump_json(made.answer) + b"\n" + made.video)
        answers.flush()
    except MemoryError:  # not even enough for an answer
        os._exit(NO_MEMORY)


def _warm_up(fault: str) -> None:
    """Do everything once on a tiny clip: libraries import modules at their first use, and no file opens later."""
    frames = np.random.default_rng(0).integers(0, 256, (2 * MIN_FRAMES, 3, MIN_SIDE_PX, MIN_SIDE_PX), dtype=np.uint8)
    clip = Clip(frames=frames, fps=12.0)
    encode_h264(with_fault(clip, fault, 1.0, SEED) if fault in NAMES else clip)


def _answered(request: CopyRequest, payload: bytes) -> Copy:
    if request.fault not in ("", *NAMES):
        told = f"no fault named '{request.fault[:40]}'; choose one of {', '.join(NAMES)}"
        return Copy(answer=CopyAnswer(code=ErrorCode.BAD_REQUEST, message=told))
    try:
        return copied(request, payload)
    except Exception as error:  # whatever a crafted file makes a library raise is that clip's answer
        told_error = refusal(error, request.memory_mib)
        return Copy(answer=CopyAnswer(code=told_error.code, message=told_error.message))


def copied(request: CopyRequest, payload: bytes) -> Copy:
    """The copy that a request asks for. Raises InvalidClip, also if the clip is too small for a fault."""
    sampling = Sampling(
        fps=request.fps, window_frames=MAX_FRAMES, min_frames=MIN_FRAMES, max_windows=1, area_px=AREA_PX, multiple_px=2
    )
    decoded = decode_payload(
        payload, request.media, sampling, request.limits, request.max_decode_s, threads=request.threads
    )
    [window] = decoded.windows
    clip = _faulty(window.clip, request) if request.fault else window.clip
    return Copy(answer=CopyAnswer(fps=clip.fps, start_s=window.start_s), video=encode_h264(clip))


def _faulty(clip: Clip, request: CopyRequest) -> Clip:
    try:
        return with_fault(clip, request.fault, request.strength, SEED)
    except ValueError as error:
        raise InvalidClip(str(error)) from error


if __name__ == "__main__":
    main()
