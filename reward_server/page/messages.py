"""Defines what the process that makes a copy is asked, and what it answers: one JSON line each, and then bytes."""

from __future__ import annotations

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from protos.types import Limits, Media

STRICT = ConfigDict(allow_inf_nan=False, extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CopyRequest:
    """A copy at about `fps` frames per second of a clip, whose bytes follow.

    `fault` is the fault to apply at `strength` in (0, 1], or empty for a plain copy. `confined` says whether the
    process gives up files and network before it reads the clip.
    """

    media: Media
    fps: float
    fault: str
    strength: float
    limits: Limits
    max_decode_s: float
    threads: int
    memory_mib: int
    confined: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CopyAnswer:
    """Either an error (`code`, `message`), or a copy whose mp4 bytes follow.

    The copy has `fps` frames per second, and begins `start_s` seconds after the first frame of the clip.
    """

    code: str = ""
    message: str = ""
    fps: float = 0.0
    start_s: float = 0.0


COPY_REQUESTS, COPY_ANSWERS = TypeAdapter(CopyRequest), TypeAdapter(CopyAnswer)
