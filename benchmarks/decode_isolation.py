"""Measures what it costs to decode clips in child processes instead of in the scoring process.

    python -m benchmarks.decode_isolation [FILE...] [--rounds 10] [--served] [--clients 4]

Two pipelines of the `embedded` profile take turns at the same clips, one with decode children and one without. Each
turn scores all files once. `--served` compares two servers of one worker instead, over gRPC with some clients at a
time. Without files it makes 16 small clips. The cost is the median over rounds of the ratio of their times; the target
is 1.05. The last line of the output is JSON, with the load of the machine before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from protos.submissions import submission
from protos.types import Outcome, Submission
from reward_server.evaluation.bench import senders
from reward_server.evaluation.load import Size, drive, made_up_clip
from reward_server.pipeline import Pipeline
from reward_server.serving.local import local_server
from reward_server.settings import Settings

Score = Callable[[Sequence[Submission]], Sequence[Outcome]]

TARGET = 1.05
SMALL, NUM_SMALL = Size(frames=24, height_px=240, width_px=320, fps=12.0), 16
PATIENCE_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--served", action="store_true", help="compare servers instead of pipelines")
    parser.add_argument("--clients", type=int, default=4, help="with --served, clips that are sent at a time")
    args = parser.parse_args()
    clips = [submission(path) for path in args.files] or [made_up_clip(SMALL, seed) for seed in range(NUM_SMALL)]
    before = os.getloadavg()[0]
    with ExitStack() as stack:
        sides = [side(isolated, args.clients if args.served else 0, stack) for isolated in (True, False)]
        for score in sides:
            seconds(score, clips)  # the children start, and caches fill
        found = np.array([turn(sides, clips, round_) for round_ in range(args.rounds)])
    ratios = found[:, 0] / found[:, 1]
    print(f"{'round':>6}{'isolated s':>12}{'direct s':>12}{'ratio':>8}")
    for round_, ((isolated, direct), ratio) in enumerate(zip(found, ratios, strict=True)):
        print(f"{round_:6}{isolated:12.2f}{direct:12.2f}{ratio:8.3f}")
    summary = {"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}
    told = {"benchmark": "decode_isolation", "served": args.served, "clips": len(clips), "target": TARGET}
    print(json.dumps({**told, **summary, "machine_load": [before, os.getloadavg()[0]]}))


def side(isolated: bool, clients: int, stack: ExitStack) -> Score:
    """Scores clips in this process, or with `clients` at a server that `stack` ends."""
    settings = Settings(decode_isolation=isolated)
    if not clients:
        return Pipeline.load(settings).score_submissions
    url = stack.enter_context(local_server(settings)).grpc_url
    sending = senders(url, clients, stack, PATIENCE_S)
    return lambda clips: drive(sending, clips).outcomes


def turn(sides: Sequence[Score], clips: Sequence[Submission], round_: int) -> tuple[float, ...]:
    """Seconds of each side for all clips. Who goes first changes from round to round."""
    order = (0, 1) if round_ % 2 == 0 else (1, 0)
    taken = {at: seconds(sides[at], clips) for at in order}
    return tuple(taken[at] for at in range(len(sides)))


def seconds(score: Score, clips: Sequence[Submission]) -> float:
    began = time.perf_counter()
    outcomes = score(clips)
    taken = time.perf_counter() - began
    failed = [outcome.error for outcome in outcomes if outcome.reward is None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(clips)} clips could not be scored: {failed[0]}")
    return taken


if __name__ == "__main__":
    main()
