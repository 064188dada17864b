"""Measures how much the draw of query points alone moves the long-term logit of the `embedded` profile.

    python -m benchmarks.query_noise FILE... [--draws 6]

The first window of each clip is judged with several draws of each kind: free ones (`random_queries`, as `shift` and
older versions of `embedded` use) and spread ones (`spread_queries`). Both kinds use the same seeds and the same number
of points. The figure is the standard deviation over draws, and its mean over clips. The last line of the output is
JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from protos.submissions import submission
from protos.types import Clip
from reward_server.decoding.decode import decode
from reward_server.motion import random_queries, spread_queries
from reward_server.pipeline import Pipeline
from reward_server.profiles.embedded import EmbeddedProfile
from reward_server.settings import Settings

Draw = Callable[[int, int, int, int], NDArray[np.int64]]
PROFILE = EmbeddedProfile()
DRAWS: dict[str, Draw] = {"free": random_queries, "spread": spread_queries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=6)
    args = parser.parse_args()
    pipeline = Pipeline.load(Settings(decode_isolation=False))
    table = Table("clip", *DRAWS)
    rows = []
    for path in args.files:
        clip = decode(submission(path), PROFILE.sampling, pipeline.model.limits, 60.0).windows[0].clip
        rows.append([deviation(pipeline, clip, draw, args.draws) for draw in DRAWS.values()])
        table.add_row(path.name[-40:], *(f"{value:.3f}" for value in rows[-1]))
    Console().print(table)
    means = dict(zip(DRAWS, np.mean(rows, axis=0).round(4).tolist(), strict=True))
    print(json.dumps({"benchmark": "query_noise", "clips": len(rows), "draws": args.draws, **means}))


def deviation(pipeline: Pipeline, clip: Clip, draw: Draw, num: int) -> float:
    """The standard deviation of the long-term logit, its terms included, over `num` draws."""
    return float(np.std([long_term(pipeline, clip, draw, seed) for seed in range(num)], ddof=1))


def long_term(pipeline: Pipeline, clip: Clip, draw: Draw, seed: int) -> float:
    """The long-term logit of a clip with one draw of query points."""
    motion = PROFILE.estimators.estimate(clip, draw(seed, PROFILE.num_tracks, *clip.frames.shape[2:]))
    tokens = PROFILE.track_tokens(motion.tracks, motion.visibility, motion.confidence, motion.correlation)
    with torch.inference_mode():
        logit = float(pipeline.discriminators.long_term(tokens[None]))
    return logit + PROFILE.logit_terms(motion, pipeline.discriminators.pace_weights)[1]


if __name__ == "__main__":
    main()
