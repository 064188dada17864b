"""Has copies of clips made that every browser can play, plain or with a fault of the ladder (copy_process.py).

The doors import this module, so it imports no decoder.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

from pydantic import ValidationError

from protos.types import Model, Submission
from reward_server.decoding.sandbox import NO_MEMORY, clean_environment
from reward_server.errors import (
    BadRequest,
    DecodeMemory,
    DecoderCrashed,
    DecodeTooSlow,
    InvalidClip,
    Overloaded,
    RewardServerError,
    ScoringFailed,
)
from reward_server.page.messages import COPY_ANSWERS, COPY_REQUESTS, CopyAnswer, CopyRequest
from reward_server.settings import Settings

MAX_WAITING = 4  # copies that wait for the one that is made; each holds its clip in memory
MORE_MEMORY_MIB = 512  # for the frames, a fault's copies of them, and the encoder
MAKING_S = 60.0  # to start, to apply a fault and to encode, on top of decoding
RETRY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class PlayableCopy:
    """An h264 mp4 of `fps` frames per second, which begins `start_s` seconds after the clip's first frame."""

    video: bytes
    fps: float
    start_s: float


class Copies:
    """Makes one copy at a time, each in a new process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def made(self, clip: Submission, model: Model, fault: str = "", strength: float = 1.0) -> PlayableCopy:
        """A copy at the model's rate; with `fault`, its faulty twin at `strength` in (0, 1].

        Raises InvalidClip, BadRequest for an unknown fault, Overloaded if too many wait, and ScoringFailed.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded(
                f"{self._waiting} copies wait already, the limit is {MAX_WAITING}; try again shortly",
                retry_after_s=RETRY_S,
            )
        self._waiting += 1
        try:
            async with self._turn:
                return await self._made(self._request(clip, model, fault, strength), clip.payload)
        finally:
            self._waiting -= 1

    def _request(self, clip: Submission, model: Model, fault: str, strength: float) -> CopyRequest:
        settings = self._settings
        return CopyRequest(
            media=clip.media,
            fps=model.input.fps,
            fault=fault,
            strength=strength,
            limits=model.limits,
            max_decode_s=settings.max_decode_s,
            threads=settings.decoder_threads,
            memory_mib=settings.decode_memory_mib + MORE_MEMORY_MIB,
            confined=settings.decode_isolation and sys.platform == "linux",
        )

    async def _made(self, request: CopyRequest, payload: bytes) -> PlayableCopy:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "reward_server.page.copy_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=clean_environment(),
        )
        limit_s = request.max_decode_s + MAKING_S
        try:
            async with asyncio.timeout(limit_s):
                written, _ = await child.communicate(COPY_REQUESTS.dump_json(request) + b"\n" + payload)
        except TimeoutError as error:
            raise DecodeTooSlow(f"the copy was not made within {limit_s:g} s; send a shorter clip") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return _copy_of(written, child.returncode)


def _copy_of(written: bytes, status: int | None) -> PlayableCopy:
    line, _, video = written.partition(b"\n")
    try:
        answer = COPY_ANSWERS.validate_json(line)
    except ValidationError as error:
        raise _death(status) from error
    if answer.code:
        raise _error(answer)
    return PlayableCopy(video=video, fps=answer.fps, start_s=answer.start_s)


def _error(answer: CopyAnswer) -> RewardServerError:
    known: tuple[type[RewardServerError], ...] = (BadRequest, InvalidClip, *InvalidClip.__subclasses__())
    kind = next((kind for kind in known if kind.code == answer.code), ScoringFailed)
    return kind(answer.message)


def _death(status: int | None) -> RewardServerError:
    if status == NO_MEMORY:
        return DecodeMemory("the copy needs more memory than one may take; send a clip with fewer pixels per frame")
    return DecoderCrashed(
        f"the process that made the copy ended with status {status}: the file breaks the decoder; re-encode it "
        "(ffmpeg -i IN -c:v libx264 OUT.mp4)"
    )
