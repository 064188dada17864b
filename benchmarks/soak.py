"""Runs many small jobs through a server of light workers, and tells whether memory and Redis's keys stay flat.

    python -m benchmarks.soak [--jobs 20000] [--workers 2]

Memory of every process and the keys by kind are looked at twenty times. No process may grow by more than a tenth and
4 MiB over the second half of the run. Results, groups and kept clips live for seconds only. When these have passed at
the end, only the few keys that never expire may be left: everything else would pile up. The last line is JSON, with the
figures at the middle and at the end, and the commands that Redis ran for each job. The exit code is 1 if memory grew,
if a key was left, or if a job was not scored.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults.traffic import tensor
from benchmarks.light_stack import Stack
from benchmarks.turns import commands
from protos.client import RewardClient
from protos.types import Context, Media, Origin, OutcomeKind, Submission

SETTINGS = {"threads": 2, "result_ttl_s": 5, "job_ttl_s": 20, "feature_ttl_s": 5, "queue_max_jobs": 1000}
LONGEST_S = 27.0  # until the last of these lifetimes is over
AT_REST = frozenset({"queue", "lane", "lanes", "base", "depth", "counts", "workers", "models", "loaded"})
LOOKS, CLIENTS, REQUEST, RUNS = 20, 4, 16, 4
GROWTH, MIB_MORE = 1.1, 4.0
PATIENCE_S = 600.0

Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="motion-reward-soak-") as folder,
        Stack(Path(folder), workers=args.workers, settings=SETTINGS) as stack,
    ):
        began_s, before = time.perf_counter(), commands(stack)
        looks, failed = soak(stack, args.jobs)
        taken_s, ran = time.perf_counter() - began_s, commands(stack) - before
        time.sleep(LONGEST_S)
        left = {kind: num for kind, num in keys(stack).items() if kind not in AT_REST}
    middle, end = looks[len(looks) // 2], looks[-1]
    growing = grown(looks[len(looks) // 2 :])
    told = {
        "bench": "soak",
        "jobs": args.jobs,
        "failed": failed,
        "jobs_per_s": round(args.jobs / taken_s, 1),
        "commands_per_job": round(ran / args.jobs, 1),
        "middle": middle,
        "end": end,
        "growing": growing,
        "left": left,
    }
    print(json.dumps(told))
    raise SystemExit(bool(growing or left or failed))


def soak(stack: Stack, jobs: int) -> tuple[list[Figures], int]:
    """Score all jobs. Returns the figures after each twentieth of them, and the number of jobs that failed."""
    looks, failed, done = list[Figures](), 0, 0
    with RewardClient(stack.grpc, timeout_s=PATIENCE_S) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for look in range(1, LOOKS + 1):
            numbers = range(done, jobs * look // LOOKS)
            parts = [numbers[at : at + REQUEST] for at in range(0, len(numbers), REQUEST)]
            failed += sum(pool.map(lambda part: scored(client, part), parts))
            done = numbers.stop
            looks.append(figures(stack))
    return looks, failed


def scored(client: RewardClient, numbers: Sequence[int]) -> int:
    """Score a request of one group. Returns the number of clips that failed."""
    clips = [
        Submission(
            payload=tensor(2 + number % 250),
            media=Media.TENSOR,
            context=Context(run_id=f"run-{number % RUNS}", group_id=f"group-{numbers[0]}", origin=Origin.ROLLOUT),
        )
        for number in numbers
    ]
    outcomes = client.score(clips)
    return sum(outcome.kind is not OutcomeKind.OK for outcome in outcomes)


def figures(stack: Stack) -> Figures:
    """MiB of each process with its children, and the number of keys of each kind."""
    parts = (stack.redis, stack.door, *stack.workers)
    memory = {f"{part.name} MiB": round(part.mib(), 1) for part in parts}
    return {**memory, **{f"{kind} keys": float(num) for kind, num in keys(stack).items()}}


def keys(stack: Stack) -> dict[str, int]:
    """The number of keys by kind."""
    prefix = len(stack.keys.prefix) + 1
    names = [key.decode()[prefix:] for key in stack.client.scan_iter(count=1000)]
    return dict(sorted(Counter(name.partition(":")[0] for name in names).items()))


def grown(looks: Sequence[Figures]) -> dict[str, list[float]]:
    """Processes whose memory grew too much from the first third to the last: both means."""
    third = max(1, len(looks) // 3)
    found = {}
    for name in (name for name in looks[-1] if name.endswith("MiB")):
        first, last = (sum(look.get(name, 0.0) for look in part) / third for part in (looks[:third], looks[-third:]))
        if last > first * GROWTH + MIB_MORE:
            found[name] = [round(first, 1), round(last, 1)]
    return found


if __name__ == "__main__":
    main()
