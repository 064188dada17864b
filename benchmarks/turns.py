"""Measures how long a small request waits behind a large run, and what a job costs in Redis commands.

    python -m benchmarks.turns [--jobs 768] [--sleep-s 0.02]

One light worker scores each clip for `--sleep-s`. A run submits all its jobs; then a single clip without a run is
scored. The last line is JSON: its wait, what it takes alone, the jobs a second of the whole run, and the commands that
Redis ran for each of its jobs (`INFO commandstats`, which counts those in scripts too).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.faults.traffic import tensor
from benchmarks.light_stack import Stack
from benchmarks.redis_calls import idle_calls
from protos.client import RewardClient
from protos.types import Context, Media, Submission

REQUEST = 48  # clips of a request of the run
NUM_ALONE = 5
PATIENCE_S = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=768)
    parser.add_argument("--sleep-s", type=float, default=0.02)
    args = parser.parse_args()
    settings = {"threads": 2, "queue_max_jobs": args.jobs + 100}
    with (
        tempfile.TemporaryDirectory(prefix="motion-reward-turns-") as folder,
        Stack(Path(folder), workers=1, settings=settings) as stack,
        RewardClient(stack.grpc, timeout_s=PATIENCE_S) as client,
    ):
        one, large = clip(args.sleep_s), clip(args.sleep_s, run_id="large")
        alone = [seconds(client, one) for _ in range(NUM_ALONE)]
        idle = idle_calls(stack).commands
        began_s = time.perf_counter()
        before = commands(stack)
        job_ids = [job for _ in range(args.jobs // REQUEST) for job in client.submit([large] * REQUEST)]
        wait_s = seconds(client, one)
        for _ in client.await_outcomes(job_ids, timeout_s=PATIENCE_S):
            pass
        taken_s = time.perf_counter() - began_s
        ran = commands(stack) - before - idle * taken_s
    told = {
        "bench": "turns",
        "jobs": len(job_ids),
        "alone_s": round(float(np.median(alone)), 3),
        "wait_s": round(wait_s, 3),
        "jobs_per_s": round((len(job_ids) + 1) / taken_s, 1),
        "commands_per_job": round(ran / (len(job_ids) + 1), 1),
    }
    print(json.dumps(told))


def clip(sleep_s: float, run_id: str = "") -> Submission:
    context = Context(run_id=run_id, policy_version=f"sleep:{sleep_s}")
    return Submission(payload=tensor(9), media=Media.TENSOR, context=context)


def seconds(client: RewardClient, submission: Submission) -> float:
    """How long one clip takes from submission to reward."""
    began_s = time.perf_counter()
    [outcome] = client.score([submission])
    assert outcome.reward, outcome
    return time.perf_counter() - began_s


def commands(stack: Stack) -> int:
    """Commands that Redis has run."""
    return sum(row["calls"] for row in stack.client.info("commandstats").values())


if __name__ == "__main__":
    main()
