"""Runs inside the stack for stack_test.py: makes clips, scores them over HTTP and gRPC, and watches the queue.

It is piped to `python - COMMAND ...` in a container of the server's image. It prints JSON lines; `clips` writes a tar.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from redis import Redis

from protos.client import RewardClient
from protos.types import OutcomeKind, Submission
from reward_server.evaluation.load import Size, made_up_clip
from reward_server.queue.keys import Keys
from reward_server.queue.scripts import GROUP
from reward_server.settings import Settings

DOORS = {"http": "http://server:8000", "grpc": "grpc://server:50051"}
SIZE = Size(frames=24, height_px=144, width_px=256, fps=12.0)
TOLERANCE = 1e-4  # of rewards: other clips in the batch change the rounding
PATIENCE_S = 600.0
LOOK_S = 0.2


def clips(num: str) -> None:
    """Write `num` mp4 files as a tar to standard output."""
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for seed in range(int(num)):
            payload = made_up_clip(SIZE, seed).payload
            entry = tarfile.TarInfo(f"{seed}.mp4")
            entry.size = len(payload)
            archive.addfile(entry, io.BytesIO(payload))


def doors() -> None:
    """Score one clip over HTTP and over gRPC and check that the rewards agree. Prints them and the last job's id."""
    clip = made_up_clip(SIZE, 0)
    combined, job_id = {}, ""
    for door, url in DOORS.items():
        with RewardClient(url) as client:
            (outcome,) = client.score([clip])
        if outcome.reward is None:
            sys.exit(f"{door}: no reward, {outcome.error}")
        combined[door], job_id = outcome.reward.combined, outcome.job_id
    if abs(combined["http"] - combined["grpc"]) > TOLERANCE:
        sys.exit(f"the doors disagree: {combined}")
    tell(combined=combined, job_id=job_id)


def job(job_id: str) -> None:
    """Print the reward of a job that has ended before."""
    with RewardClient(DOORS["http"]) as client:
        (outcome,) = client.await_outcomes([job_id], 60.0)
    tell(combined=outcome.reward.combined if outcome.reward else None)


def counts() -> None:
    """Print the counters of the queue."""
    with _redis() as redis:
        tell(**{name.decode(): int(number) for name, number in redis.hgetall(_keys().counts).items()})


def flood(num: str) -> None:
    """Score `num` clips at once, half over HTTP and half over gRPC.

    Prints the number of jobs that each worker holds whenever it changes. The last line has the number of outcomes by
    kind and the workers that held jobs.
    """
    submissions = [made_up_clip(SIZE, seed) for seed in range(8)]
    kinds: Counter[OutcomeKind] = Counter()
    halves = [
        threading.Thread(target=_score, args=(url, (submissions * int(num))[: int(num) // 2], kinds))
        for url in DOORS.values()
    ]
    for half in halves:
        half.start()
    seen: set[str] = set()
    held: dict[str, int] = {}
    while any(half.is_alive() for half in halves):
        time.sleep(LOOK_S)
        if (now := _held()) != held:
            held = now
            seen |= held.keys()
            tell(held=held)
    tell(outcomes=kinds, workers=sorted(seen))


def _score(url: str, submissions: list[Submission], kinds: Counter[OutcomeKind]) -> None:
    with RewardClient(url) as client:
        ended = list(client.await_outcomes(client.submit(submissions), PATIENCE_S))
    kinds.update(outcome.kind for outcome in ended)


def _held() -> dict[str, int]:
    """Number of claimed jobs by worker, for workers that have any."""
    with _redis() as redis:
        consumers = redis.xinfo_consumers(_keys().queue, GROUP)
    return {consumer["name"].decode(): consumer["pending"] for consumer in consumers if consumer["pending"]}


def _redis() -> Redis:
    url = Settings.model_validate({}).redis_url
    assert url is not None
    return Redis.from_url(url.get_secret_value(), protocol=2)


def _keys() -> Keys:
    return Keys(profile=Settings.model_validate({}).profile)


def tell(**fields: Any) -> None:
    """Print one JSON line."""
    print(json.dumps(fields), flush=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "clips": clips,
    "doors": doors,
    "job": job,
    "counts": counts,
    "flood": flood,
}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    COMMANDS[name](*arguments)
