"""Measures the memory and time that decoding takes in a child process, file by file.

    python -m benchmarks.decode_memory FILE... [--seconds 600]

Each file is decoded by a new child at the default limits of the server, with more time if asked for. The peak is the
child's most resident memory, with its libraries (about 100 MiB); the file's bytes and the frames that it gives back are
in shared memory. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from benchmarks.memory import peak_mib
from protos.submissions import submission
from protos.types import Limits
from reward_server.decoding.children import DecodePool
from reward_server.decoding.decode import Sampling
from reward_server.errors import DecodeMemory, InvalidClip
from reward_server.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0, help="the limit of wall time for one file")
    args = parser.parse_args()
    settings = Settings()
    print(f"{'file':32}{'bytes':>12}{'s':>8}{'peak MiB':>10}  outcome")
    peaks = [measured(path, settings, args.seconds) for path in args.files]
    summary = {"files": len(peaks), "peak_mib": max(peaks), "limit_mib": settings.decode_memory_mib}
    print(json.dumps({"benchmark": "decode_memory", **summary}))


def measured(path: Path, settings: Settings, seconds: float) -> float:
    """The peak in MiB of a new child that decodes this file; the limit if it was reached."""
    clip = submission(path)
    limits = Limits(
        max_bytes=settings.max_bytes,
        max_frames=settings.max_frames,
        max_frame_pixels=settings.max_frame_pixels,
        max_duration_s=settings.max_duration_s,
        max_clips_per_request=settings.max_clips_per_request,
    )
    pool = DecodePool(size=1, memory_mib=settings.decode_memory_mib)
    pool.start(1)
    [pid] = pool.pids()
    began, peak = time.perf_counter(), 0.0
    try:
        windows = pool.decode(clip, Sampling(), limits, seconds).windows
        outcome = f"{len(windows)} windows"
    except DecodeMemory as error:
        outcome, peak = error.code, float(settings.decode_memory_mib)
    except InvalidClip as error:
        outcome = error.code
    taken = time.perf_counter() - began
    peak = peak or peak_mib(pid)
    pool.close()
    print(f"{path.name[:31]:32}{len(clip.payload):12}{taken:8.2f}{peak:10.0f}  {outcome}")
    return peak


if __name__ == "__main__":
    main()
