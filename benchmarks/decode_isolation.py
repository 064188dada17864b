"""Measures what it costs to decode clips in child processes instead of in the scoring process.

    python -m benchmarks.decode_isolation FILE... [--rounds 10]

Two pipelines of the `embedded` profile take turns at the same clips, one with decode children and one without. Each
turn scores all files once. The cost is the median over rounds of the ratio of their times; the target is 1.05. The last
line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from protos.submissions import submission
from protos.types import Submission
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings

TARGET = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    clips = [submission(path) for path in args.files]
    pipelines = [Pipeline.load(Settings(decode_isolation=isolated)) for isolated in (True, False)]
    for pipeline in pipelines:
        seconds(pipeline, clips)  # the children start, and caches fill
    found = np.array([turn(pipelines, clips, round_) for round_ in range(args.rounds)])
    ratios = found[:, 0] / found[:, 1]
    print(f"{'round':>6}{'isolated s':>12}{'direct s':>12}{'ratio':>8}")
    for round_, ((isolated, direct), ratio) in enumerate(zip(found, ratios, strict=True)):
        print(f"{round_:6}{isolated:12.2f}{direct:12.2f}{ratio:8.3f}")
    summary = {"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}
    print(json.dumps({"benchmark": "decode_isolation", "clips": len(clips), "target": TARGET, **summary}))


def turn(pipelines: list[Pipeline], clips: list[Submission], round_: int) -> tuple[float, ...]:
    """Seconds of each pipeline for all clips. Who goes first changes from round to round."""
    order = (0, 1) if round_ % 2 == 0 else (1, 0)
    taken = {at: seconds(pipelines[at], clips) for at in order}
    return tuple(taken[at] for at in range(len(pipelines)))


def seconds(pipeline: Pipeline, clips: list[Submission]) -> float:
    began = time.perf_counter()
    outcomes = pipeline.score_submissions(clips)
    taken = time.perf_counter() - began
    failed = [outcome.error for outcome in outcomes if outcome.reward is None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(clips)} clips could not be scored: {failed[0]}")
    return taken


if __name__ == "__main__":
    main()
