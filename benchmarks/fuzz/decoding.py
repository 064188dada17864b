"""Decodes mutated files in a decode child with the limits of a server, and counts how they end."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field

from benchmarks.fuzz.mutate import Seed, files, mutated
from benchmarks.memory import peak_mib
from protos.types import Limits, Submission
from reward_server.decoding.children import GRACE_S, DecodePool
from reward_server.decoding.sampling import Sampling
from reward_server.errors import InvalidClip
from reward_server.settings import Settings

OVERHEAD_S = 3.0  # to start a child on a loaded machine
FAULTS = ("decoder_crashed", "decode_memory")  # each costs only its own clip, but a file should not come so far


@dataclass
class Decoded:
    """How the files ended. `found` are those that ended as none should, by what was wrong."""

    codes: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[bytes]] = field(default_factory=dict)
    slowest_s: float = 0.0
    peak_mib: float = 0.0

    def add(self, code: str, data: bytes, taken_s: float, limit_s: float) -> None:
        self.codes[code] += 1
        self.slowest_s = max(self.slowest_s, taken_s)
        late = ["over the time limit"] if taken_s > limit_s + GRACE_S + OVERHEAD_S else []
        for fault in late + [code] * (code in FAULTS or code.startswith("error:")):
            self.found.setdefault(fault, []).append(data)


def fuzz_decoding(num: int, seed: int, *, max_decode_s: float = 10.0) -> Decoded:
    """Decode `num` mutated files. An error other than InvalidClip would be the server's."""
    rng, seeds, settings, decoded = random.Random(seed), files(), Settings(), Decoded()
    limits = Limits(
        max_bytes=settings.max_bytes,
        max_frames=settings.max_frames,
        max_frame_pixels=settings.max_frame_pixels,
        max_duration_s=settings.max_duration_s,
        max_clips_per_request=settings.max_clips_per_request,
    )
    pool = DecodePool(size=1, memory_mib=settings.decode_memory_mib)
    try:
        for _ in range(num):
            clip = _clip(rng, seeds)
            began_s = time.monotonic()
            code = _code(pool, clip, limits, max_decode_s)
            decoded.add(code, clip.payload, time.monotonic() - began_s, max_decode_s)
            decoded.peak_mib = max(decoded.peak_mib, *(peak_mib(pid) for pid in pool.pids()), 0.0)
    finally:
        pool.close()
    return decoded


def _clip(rng: random.Random, seeds: tuple[Seed, ...]) -> Submission:
    form, data = rng.choice(seeds)
    return Submission(payload=mutated(data, rng, [other for _, other in seeds]) or b"x", media=form)


def _code(pool: DecodePool, clip: Submission, limits: Limits, max_decode_s: float) -> str:
    try:
        pool.decode(clip, Sampling(), limits, max_decode_s)
    except InvalidClip as error:
        return error.code
    except Exception as error:
        return f"error: {error}"[:200]
    return "ok"
