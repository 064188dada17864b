"""Measures what the terms of the logits, `dynamics` and `standing` add to the cost of scoring with `embedded`.

    python -m benchmarks.term_cost FILE... [--rounds 5]

They are compared with scoring without any of them: decoding, motion, discriminators. One window of each clip is
measured, in turns, with one thread, after a round that does not count. The figures are medians over rounds, and the
ratio is of the sums over clips. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from protos.submissions import submission
from protos.types import Logits
from reward_server.decoding.decode import decode
from reward_server.estimators.dynamics import mean_dynamics
from reward_server.motion import Motion
from reward_server.pipeline import Pipeline
from reward_server.profiles.reference import ONE_WINDOW
from reward_server.settings import Settings

BEFORE = ("decoding", "motion", "discriminators")
ADDED = ("terms", "dynamics", "standing")
Value = TypeVar("Value")


class Watch:
    """Milliseconds by part, a list over rounds."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = defaultdict(list)

    def __call__(self, part: str, call: Callable[[], Value]) -> Value:
        began = time.perf_counter()
        value = call()
        self.parts[part].append(1000 * (time.perf_counter() - began))
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pipeline = Pipeline.load(Settings(decode_isolation=False))
    watches = {path: Watch() for path in args.files}
    for path in args.files:
        score(pipeline, path, Watch())
    for _ in range(args.rounds):
        for path, watch in watches.items():
            score(pipeline, path, watch)
    rows = {path: medians(watch) for path, watch in watches.items()}
    Console().print(table(rows))
    before, added = (sum(row[part] for row in rows.values() for part in parts) for parts in (BEFORE, ADDED))
    print(json.dumps({"benchmark": "term_cost", "clips": len(rows), "ratio": round((before + added) / before, 4)}))


def medians(watch: Watch) -> dict[str, float]:
    """Milliseconds by part."""
    return {part: float(np.median(watch.parts[part])) for part in BEFORE + ADDED}


def score(pipeline: Pipeline, path: Path, watch: Watch) -> None:
    """Score the first window of a clip, part by part."""
    profile, model, found = pipeline.profile, pipeline.model, pipeline.discriminators
    one_window = replace(profile.sampling, max_windows=1)
    decoded = watch("decoding", lambda: decode(submission(path), one_window, model.limits, 60.0))
    clip = decoded.windows[0].clip
    motion = watch("motion", lambda: profile.motion(clip, query_seed=0, num_tracks=profile.num_tracks))
    raw = watch("discriminators", lambda: logits(pipeline, motion))
    watch("terms", lambda: profile.logit_terms(motion, found.pace_weights))
    watch("dynamics", lambda: mean_dynamics([motion]))
    if (reference := found.reference) is not None:
        watch("standing", lambda: reference.standing(raw, raw.long_term, ONE_WINDOW, model))


def logits(pipeline: Pipeline, motion: Motion) -> Logits:
    visibility, confidence = motion.state.unbind(-1)
    tokens = pipeline.profile.track_tokens(motion.tracks, visibility, confidence, motion.correlation)
    maps = pipeline.profile.residual_maps(motion)
    instantaneous, long_term = pipeline.discriminators.logits(maps[None], tokens[None])[0].tolist()
    return Logits(instantaneous=instantaneous, long_term=long_term)


def table(rows: Mapping[Path, Mapping[str, float]]) -> Table:
    shown = Table("clip", *BEFORE, *ADDED, title="milliseconds", box=None)
    for path, row in rows.items():
        shown.add_row(path.name[-40:], *(f"{row[part]:.1f}" for part in BEFORE + ADDED))
    return shown


if __name__ == "__main__":
    main()
