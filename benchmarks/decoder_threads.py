"""Measures whether several threads of the video decoder are no slower than one, on the clips of `motion-reward bench`.

    python -m benchmarks.decoder_threads [--threads 2] [--rounds 10]

Both take turns at the same clips, in one process; who goes first changes from round to round. The ratio is that of
their wall time, the median over rounds; at most 1.05 counts as no slower. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np

from protos.types import Limits, Submission
from reward_server.decoding.decode import Sampling, decode
from reward_server.evaluation.bench import LARGE, PAPER, SMALL
from reward_server.evaluation.load import made_up_clip
from reward_server.settings import Settings

TARGET = 1.05
SIZES = {"24 x 320x576": PAPER, "16 x 256x256": SMALL, "96 x 720x1280": LARGE}
CLIPS = 4  # of each size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    found = {}
    for name, size in SIZES.items():
        clips = [made_up_clip(size, seed) for seed in range(CLIPS)]
        turns = [partial(seconds, clips, threads) for threads in (1, args.threads)]
        rounds = np.array([turn(turns, round_) for round_ in range(-1, args.rounds)])[1:]  # the first fills caches
        ratios = rounds[:, 1] / rounds[:, 0]
        found[name] = {"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}
        print(f"{name:16} " + "  ".join(f"{key} {value:.3f}" for key, value in found[name].items()))
    print(json.dumps({"benchmark": "decoder_threads", "threads": args.threads, "target": TARGET, "sizes": found}))


def turn(turns: Sequence[partial[float]], round_: int) -> list[float]:
    order = range(len(turns)) if round_ % 2 == 0 else reversed(range(len(turns)))
    taken = {at: turns[at]() for at in order}
    return [taken[at] for at in sorted(taken)]


def seconds(clips: Sequence[Submission], threads: int) -> float:
    """Wall time to decode all clips, one after the other."""
    settings = Settings()
    limits = Limits(**{name: getattr(settings, name) for name in Limits.__dataclass_fields__})
    began = time.perf_counter()
    for clip in clips:
        decode(clip, Sampling(), limits, 600.0, threads=threads)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
