"""Measures a server of light workers under many clients at once: latency, fairness between clients, and errors.

    python -m benchmarks.load [--clients 16 64 256] [--workers 2] [--seconds 10] [--sleep-s 0.005] [--request 1] [--run]

Each client sends one request after the other over a connection of its own, half of them over HTTP. A request is one
clip, or a group of several. With `--run` clips belong to a training run, and their motion is kept for refreshes. The
last line is JSON, with, for each number of clients, the median and the 99th percentile of the latency, the clips that
the client with most got over those of the one with fewest (target 1.5), the errors, and the share of its time for which
an average worker was busy with the sleep that stands for scoring (`of_ideal`; 1 if nothing else takes time). It also
has the cost of a clip: the CPU time of the workers without their decode children, and, counted over as many seconds
once more, round trips to Redis and all commands that Redis ran (those in scripts too). What goes on without any clip is
among them; `idle_commands_per_s` says how much that is on idle processes. Before it stand the calls of the last load by
script.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.faults.traffic import tensor
from benchmarks.light_stack import Stack
from benchmarks.redis_calls import Idle, counted_calls, idle_calls, table
from protos.client import AsyncRewardClient
from protos.client.errors import RewardClientError
from protos.types import Context, Media, Origin, Submission

PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each client sends, and for how long."""

    workers: int
    seconds: float
    sleep_s: float  # how long a worker takes for a clip
    request: int  # clips of a request
    run: bool  # whether they belong to a training run

    def clips(self, number: int, at: int) -> list[Submission]:
        """A client's next request."""
        context = Context(
            run_id="run" if self.run else "",
            group_id=f"{number}-{at}" if self.request > 1 else "",
            origin=Origin.ROLLOUT if self.run else None,
            policy_version=f"sleep:{self.sleep_s}",
        )
        return [Submission(payload=tensor(9), media=Media.TENSOR, context=context)] * self.request


@dataclass
class Seen:
    """What the clients saw."""

    latencies_s: list[float] = field(default_factory=list)
    clips: Counter[int] = field(default_factory=Counter)  # by client
    errors: Counter[str] = field(default_factory=Counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--sleep-s", type=float, default=0.005, help="how long a worker takes for a clip")
    parser.add_argument("--request", type=int, default=1, help="clips of a request")
    parser.add_argument("--run", action="store_true", help="clips of a training run")
    args = parser.parse_args()
    plan = Plan(workers=args.workers, seconds=args.seconds, sleep_s=args.sleep_s, request=args.request, run=args.run)
    with (
        tempfile.TemporaryDirectory(prefix="motion-reward-load-") as folder,
        Stack(Path(folder), workers=plan.workers, settings={"threads": 2}) as stack,
    ):
        idle = idle_calls(stack)
        rows = [asyncio.run(load(stack, num, plan, idle)) for num in args.clients]
    print(json.dumps({"bench": "load", **vars(plan), "loads": rows}))


async def load(stack: Stack, num: int, plan: Plan, idle: Idle) -> dict[str, Any]:
    """The figures of `num` clients."""
    seen, counted = Seen(), Seen()
    async with AsyncExitStack() as opened:
        clients = [
            await opened.enter_async_context(
                AsyncRewardClient((stack.http, stack.grpc)[number % 2], timeout_s=PATIENCE_S)
            )
            for number in range(num)
        ]
        await asyncio.gather(*(client.score(plan.clips(0, -1)) for client in clients))  # all are connected
        cpu_s = worker_cpu_s(stack)
        taken_s = await _together(clients, plan, seen)
        cpu_s = worker_cpu_s(stack) - cpu_s
        with counted_calls(stack) as calls:  # it slows Redis and the clients, so nothing is timed here
            await _together(clients, plan, counted)
    shares = [seen.clips[number] for number in range(num)]
    scored, counted_clips = max(1, sum(shares)), max(1, counted.clips.total())
    print(table(calls, counted_clips), file=sys.stderr)
    return {
        "clients": num,
        "clips_per_s": round(scored / taken_s, 1),
        "p50_ms": round(1000 * float(np.quantile(seen.latencies_s, 0.5)), 1),
        "p99_ms": round(1000 * float(np.quantile(seen.latencies_s, 0.99)), 1),
        "of_ideal": round(scored * plan.sleep_s / taken_s / plan.workers, 3),
        "share": round(max(shares) / max(1, min(shares)), 2),
        "redis_trips": round(calls.trips / counted_clips, 1),
        "redis_commands": round(calls.commands / counted_clips, 1),
        "idle_commands_per_s": round(idle.commands, 1),
        "worker_cpu_ms": round(1000 * cpu_s / scored, 1),
        "errors": dict(seen.errors),
    }


def worker_cpu_s(stack: Stack) -> float:
    """CPU seconds of the workers so far, without their decode children."""
    times = [psutil.Process(worker.process.pid).cpu_times() for worker in stack.workers if worker.process]
    return float(sum(one.user + one.system for one in times))


async def _together(clients: Sequence[AsyncRewardClient], plan: Plan, seen: Seen) -> float:
    """Let all clients send for `plan.seconds`. Returns the seconds until the last answer."""
    began_s = time.perf_counter()
    until_s = began_s + plan.seconds
    await asyncio.gather(*(_sending(client, number, until_s, plan, seen) for number, client in enumerate(clients)))
    return time.perf_counter() - began_s


async def _sending(client: AsyncRewardClient, number: int, until_s: float, plan: Plan, seen: Seen) -> None:
    at = 0
    while (began_s := time.perf_counter()) < until_s:
        at += 1
        try:
            outcomes = await client.score(plan.clips(number, at))
        except RewardClientError as error:
            seen.errors[error.code] += 1
            continue
        failed = [outcome.error.code for outcome in outcomes if outcome.error]
        seen.errors.update(failed)
        if failed:
            continue
        seen.latencies_s.append(time.perf_counter() - began_s)
        seen.clips[number] += len(outcomes)


if __name__ == "__main__":
    main()
