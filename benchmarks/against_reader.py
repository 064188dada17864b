"""Compares the time to decode the clips of `motion-reward bench` with that of another checkout of this project.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.against_reader /tmp/before [--rounds 10]

Each checkout decodes in a process of its own, from the same bytes, with one thread. They take turns; who goes first
changes from round to round. The ratio is that of their CPU time, ours to the other's, the median over rounds; at most
1.05 counts as no slower. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.decoder_threads import CLIPS, SIZES, TARGET
from reward_server.evaluation.load import made_up_clip

HERE = Path(__file__).parents[1]
# It uses only names that older checkouts have too.
DECODE = """
import sys, time
from pathlib import Path
import cv2
from protos.types import Limits, Media, Submission
from reward_server.decoding.decode import Sampling, decode
cv2.setNumThreads(1)
limits = Limits(max_bytes=2**28, max_frames=2000, max_frame_pixels=3840 * 2160, max_duration_s=120.0,
                max_clips_per_request=64)
for line in sys.stdin:
    clips = [Submission(payload=Path(name).read_bytes(), media=Media.CONTAINER) for name in line.split()]
    began = time.process_time()
    for clip in clips:
        decode(clip, Sampling(), limits, 600.0)
    print(time.process_time() - began, flush=True)
"""


class Reader:
    """A process that decodes with the code of a checkout."""

    def __init__(self, checkout: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", DECODE]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )

    def seconds(self, clips: Sequence[Path]) -> float:
        """CPU time to decode all clips, one after the other."""
        assert self._process.stdin and self._process.stdout
        print(*clips, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    readers = [Reader(HERE), Reader(args.checkout.resolve())]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            clips = [Path(folder) / f"{name.replace(' ', '')}-{seed}" for seed in range(CLIPS)]
            for seed, clip in enumerate(clips):
                clip.write_bytes(made_up_clip(size, seed).payload)
            rounds = np.array([_turn(readers, clips, round_) for round_ in range(-1, args.rounds)])[1:]
            ratios = rounds[:, 0] / rounds[:, 1]
            found[name] = {"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}
            ours, theirs = (1000 * np.median(rounds, axis=0) / CLIPS).tolist()
            found[name] |= {"ms": ours, "ms_there": theirs}
            print(f"{name:16} " + "  ".join(f"{key} {value:.3f}" for key, value in found[name].items()))
    for reader in readers:
        reader.close()
    print(json.dumps({"benchmark": "against_reader", "target": TARGET, "sizes": found}))


def _turn(readers: Sequence[Reader], clips: Sequence[Path], round_: int) -> list[float]:
    order = range(2) if round_ % 2 == 0 else reversed(range(2))
    taken = {at: readers[at].seconds(clips) for at in order}
    return [taken[0], taken[1]]


if __name__ == "__main__":
    main()
