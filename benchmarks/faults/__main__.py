"""Attacks a whole server on loopback and counts what it lost, doubled, mixed or failed. The goals are 0.

    python -m benchmarks.faults [--short] [--seed 0] [--jobs 2000] [--verbose]

A server, four light workers (light_worker.py) and a Redis with an append-only file run as real processes. Meanwhile
workers, the server and Redis are killed and stopped, uploads are cut, requests are sent twice over both doors, the
queue and Redis are full, bombs and files that break the decoder are among the clips, runs are refreshed, and the
checkpoint is updated. The last line is JSON. The exit code is 1 if a goal is missed, or if a harm was not felt.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from stamina.instrumentation import set_on_retry_hooks

from benchmarks.faults.accounts import Admitted, Counts, Event, Kept, Log, counted
from benchmarks.faults.chaos import FULL, SHORT, Chaos, Doses
from benchmarks.faults.traffic import RUNS, Plan, Traffic
from benchmarks.light_stack import Stack

SETTINGS = {
    "lease_s": 2,
    "threads": 2,
    "batch_jobs": 8,
    "queue_max_jobs": 64,
    "drain_s": 5,
    "max_decode_s": 5,
    "max_attempts": 5,  # random kills hit a good clip three times now and then, which the default gives up
}
WORKERS, CLIENTS = 4, 16
LAST_S = 120.0  # after the harm, without any answer: then the clips without one are lost
MOST_S = 900.0  # after the harm, in all
MUST_SEE = (FULL,)  # refusals without which neither the queue nor Redis was full


class Peaks:
    """The most memory of a worker with its children, and of the server, in MiB. Looks until the block ends."""

    def __init__(self, stack: Stack) -> None:
        self._stack, self._stop = stack, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.worker_mib = self.door_mib = 0.0

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.worker_mib = max(self.worker_mib, *(worker.mib() for worker in self._stack.workers))
            self.door_mib = max(self.door_mib, self._stack.door.mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a part of it, in under four minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, help="clips to send (2000; with --short 400)")
    parser.add_argument("--verbose", action="store_true", help="print the end of the processes' log")
    args = parser.parse_args()
    set_on_retry_hooks([])  # retries are what is wanted here, and would fill the output
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the processes are ended
    plan = Plan(seed=args.seed, jobs=args.jobs or 2000)
    if args.short:
        plan = Plan(seed=args.seed, jobs=args.jobs or 400, crashing=2, deadly=1)
    with tempfile.TemporaryDirectory(prefix="motion-reward-faults-") as folder:
        with Stack(Path(folder), workers=WORKERS, settings=SETTINGS) as stack, Peaks(stack) as peaks:
            log, harm, traffic, dead = attack(stack, plan, SHORT if args.short else Doses())
        if args.verbose:
            print(stack.log.read_text(errors="replace")[-20000:], file=sys.stderr)
    counts = counted(log)
    for reason in counts.reasons[:50]:
        print(reason, file=sys.stderr)
    print(f"refusals that were tried again: {traffic.refused}", file=sys.stderr)
    unfelt = [code for code in MUST_SEE if code not in traffic.refused]
    print(json.dumps(line(counts, harm, dead, peaks)))
    if counts.broken_goals or unfelt or dead != plan.deadly or counts.answered < plan.jobs:
        raise SystemExit(f"missed: {counts.broken_goals}; not felt: {unfelt}; {dead} of {plan.deadly} dead letters")


def attack(stack: Stack, plan: Plan, doses: Doses) -> tuple[list[Event], Chaos, Traffic, int]:
    """Send and do harm at once, then wait for all outcomes. Returns the log, and the number of dead letters."""
    log = Log()
    traffic = Traffic((stack.http, stack.grpc), plan, log, clients=CLIENTS)
    chaos = Chaos(
        stack=stack, traffic=traffic, log=log, doses=doses, seed=plan.seed, lease_s=float(SETTINGS["lease_s"])
    )
    sending = threading.Thread(target=traffic.run)
    sending.start()
    try:
        chaos.run()
    finally:
        traffic.go(traffic.num_batches)
        done_s = time.monotonic()
        while sending.is_alive():
            traffic.until_s = min(done_s + MOST_S, max(done_s, traffic.answered_s) + LAST_S)
            chaos.start_ended()
            sending.join(0.2)
    return [*log.events(), *kept(stack)], chaos, traffic, int(stack.client.xlen(stack.keys.dead))


def kept(stack: Stack) -> list[Event]:
    """What Redis says at the end."""
    runs = [f"run-{number}" for number in range(RUNS)]
    entries = [(run, fields) for run in runs for _, fields in stack.client.xrange(stack.keys.run(run))]
    admitted = int(stack.client.hget(stack.keys.counts, "admitted") or 0)
    return [*(Kept(run=run, job=fields[b"job"].decode()) for run, fields in entries), Admitted(jobs=admitted)]


def line(counts: Counts, harm: Chaos, dead: int, peaks: Peaks) -> dict[str, float]:
    """The figures, by the names under which they are published."""
    p50, p99 = np.quantile(counts.recovery_s, (0.5, 0.99)) if counts.recovery_s else (0.0, 0.0)
    return {
        "submitted": counts.submitted,
        "accepted": counts.accepted,
        "answered": counts.answered,
        "lost": counts.lost,
        "duplicated": counts.duplicated,
        "mixed_groups": counts.mixed_groups,
        "failed_by_us": counts.failed_by_us,
        "dead_letters": dead,
        "kills": harm.kills,
        "redis_restarts": harm.redis_restarts,
        "recovery_p50_s": round(float(p50), 2),
        "recovery_p99_s": round(float(p99), 2),
        "peak_worker_mib": round(peaks.worker_mib),
        "peak_door_mib": round(peaks.door_mib),
        "max_attempts": int(SETTINGS["max_attempts"]),
    }


if __name__ == "__main__":
    main()
