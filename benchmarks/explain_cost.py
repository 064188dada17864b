"""Measures what an explanation adds to the time of a clip.

    python -m benchmarks.explain_cost [FILE...] [--rounds 10]

One pipeline of the `embedded` profile scores each clip with and without an explanation, in turn, one clip at a time,
and packs the outcome as a worker does. Without files it makes two clips, one of one window and one of four. A clip's
cost is the median over rounds of the ratio of the two times, in wall time and in CPU time of the process; the latter
suffers less from other programs. The target is 1.10. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from protos import codec
from protos.codec.explanations import explanation_to_message
from protos.submissions import submission
from protos.types import Context, Submission
from reward_server.pipeline import Pipeline
from reward_server.settings import Settings

TARGET = 1.10
FPS = 12.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one clip: per round the ratios in wall and CPU time, and the explanation's size in bytes."""

    name: str
    windows: int
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    num_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    clips = {path.name: submission(path) for path in args.files} or made_clips()
    # In this process, so that its CPU time holds the whole of a clip.
    pipeline = Pipeline.load(Settings(decode_isolation=False))
    costs = [cost(pipeline, name, clip, args.rounds) for name, clip in clips.items()]
    print(f"{'clip':<32}{'windows':>8}{'bytes':>10}{'wall':>8}{'CPU':>8}")
    for one in costs:
        print(
            f"{one.name[-31:]:<32}{one.windows:8}{one.num_bytes:10}{np.median(one.wall):8.3f}{np.median(one.cpu):8.3f}"
        )
    summary = {
        kind: float(np.median([ratio for one in costs for ratio in getattr(one, kind)])) for kind in ("wall", "cpu")
    }
    told = {"clips": len(costs), "rounds": args.rounds, "target": TARGET, **summary}
    print(json.dumps({"benchmark": "explain_cost", **told, "most_bytes": max(one.num_bytes for one in costs)}))


def made_clips() -> dict[str, Submission]:
    """Smooth noise that moves over 426x240 pixels, for one window and for four."""
    clips = {"made, 16 frames": moving(16), "made, 64 frames": moving(64)}
    return {name: submission(frames, fps=FPS) for name, frames in clips.items()}


def moving(num_frames: int, height: int = 240, width: int = 426, step: int = 3) -> NDArray[np.uint8]:
    """Frames uint8 [T,3,H,W] of a picture that moves to the left."""
    whole = width + step * num_frames
    coarse = np.random.default_rng(0).integers(0, 256, (height // 10, whole // 10, 3), dtype=np.uint8)
    picture = cv2.resize(coarse, (whole, height), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([picture[:, step * t : step * t + width] for t in range(num_frames)])
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


def cost(pipeline: Pipeline, name: str, clip: Submission, rounds: int) -> Cost:
    """Score the clip in both ways, `rounds` times. Which way goes first changes from round to round."""
    ways = [replace(clip, context=Context(explain=explain)) for explain in (False, True)]
    sizes = [taken(pipeline, way)[2] for way in ways]  # also fills caches
    wall, cpu = list[float](), list[float]()
    for round_ in range(rounds):
        order = (0, 1) if round_ % 2 == 0 else (1, 0)
        found = {at: taken(pipeline, ways[at]) for at in order}
        wall.append(found[1][0] / found[0][0])
        cpu.append(found[1][1] / found[0][1])
    [outcome] = pipeline.score_submissions(ways[:1])
    assert outcome.reward is not None
    return Cost(name=name, windows=len(outcome.reward.windows), wall=tuple(wall), cpu=tuple(cpu), num_bytes=sizes[1])


def taken(pipeline: Pipeline, clip: Submission) -> tuple[float, float, int]:
    """Wall and CPU seconds to score a clip and pack its outcome, and the bytes of its explanation."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    [outcome] = pipeline.score_submissions([clip])
    codec.outcome_to_message(outcome).SerializeToString()  # type: ignore[no-untyped-call]
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    if outcome.reward is None:
        raise SystemExit(f"the clip could not be scored: {outcome.error}")
    seen = outcome.reward.explanation
    return wall_s, cpu_s, explanation_to_message(seen).ByteSize() if seen else 0  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
