"""Sends clips over both doors, as trainers do: groups of runs, loose clips, bad files, and some requests twice.

A client sends a batch until it is accepted, and then waits for its outcomes until it has them all. Whatever it sees
goes to the log, of which accounts.py makes the counts.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar
from urllib.parse import urlsplit

import numpy as np

from benchmarks.faults.accounts import Accepted, Answered, Failed, Log, Submitted
from protos.client import RewardClient
from protos.client.errors import RequestRefused, RewardClientError, ServerBusy, ServerFailed, ServerSilent
from protos.codec import clip_to_tensor
from protos.types import Clip, Context, Media, Origin, Outcome, OutcomeKind, RefreshRequest, Submission
from tests import bombs, media

T = TypeVar("T")
Send = tuple[Submitted, Submission]

GROUP = 4  # clips of a group
RUNS = 3
CALL_S = 20.0
PAUSE_S = 0.2
LARGE_PX = 160  # such a clip is stored before its job is admitted (queue/admission.py), a small one goes with it
SLOW_S = (0.0, 0.06)  # how much longer a clip's batch takes to score
BAD = frozenset(
    {
        "unreadable_clip",
        "clip_too_large",
        "clip_too_short",
        "no_video",
        "decode_memory",
        "decode_too_slow",
        "bad_tensor",
    }
)


@cache
def good_file() -> bytes:
    """A small mp4."""
    return media.video(media.texture(16, 64, 96), fps=12)


@cache
def bad_files() -> tuple[bytes, ...]:
    """Bombs, and files that are cut or no clips at all."""
    claims = [bombs.mp4([bombs.track(25_000_000)] * 3), bombs.mp4([bombs.track(1000, edits=100_000)])]
    return (*claims, bombs.gif(400, 4320, 7680), good_file()[:300], b"no clip", bombs.nested(2000))


def tensor(level: int, side_px: int = 8) -> bytes:
    """A still clip. Levels 0 and 1 are refused, as a file whose values were not scaled."""
    return clip_to_tensor(Clip(frames=np.full((8, 3, side_px, side_px), level, np.uint8), fps=12))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send: batches of clips, which differ by the seed. Bad clips are among the good ones."""

    seed: int
    jobs: int
    bad_share: float = 0.03
    large_share: float = 0.05
    crashing: int = 6  # clips whose decoder dies
    deadly: int = 2  # clips whose worker dies

    def batches(self) -> Iterator[list[Send]]:
        """Batches of one group or a few, `jobs` clips in all."""
        rng, sent = random.Random(self.seed), 0
        special = ["crash"] * self.crashing + ["exit"] * self.deadly
        at = {rng.randrange(self.jobs): fault for fault in special}
        while sent < self.jobs:
            batch: list[Send] = []
            run = f"run-{rng.randrange(RUNS)}" if rng.random() < 0.8 else ""
            for _ in range(rng.choice((1, 1, 2, 4, 12))):
                group = f"group-{sent}" if rng.random() < 0.8 else ""
                for _ in range(min(GROUP, self.jobs - sent)):
                    batch.append(self._clip(rng, sent, run, group, at.get(sent, "")))
                    sent += 1
            if batch:
                yield batch

    def _clip(self, rng: random.Random, number: int, run: str, group: str, fault: str) -> Send:
        name, level = f"clip-{self.seed}-{number}", rng.randrange(2, 256)
        kind, codes, payload, form = OutcomeKind.OK, frozenset[str](), tensor(level), Media.TENSOR
        if fault == "crash":
            kind, codes = OutcomeKind.INVALID, frozenset({"decoder_crashed"})
        elif fault == "exit":
            kind, codes = OutcomeKind.FAILED, frozenset({"attempts_exhausted"})
        elif rng.random() < self.bad_share:
            kind, codes, payload, form = OutcomeKind.INVALID, BAD, rng.choice(bad_files()), Media.CONTAINER
        elif rng.random() < self.large_share:
            payload = tensor(level, LARGE_PX)
        context = Context(
            run_id=run,
            group_id=group,
            idempotency_key=name,
            policy_version=fault or f"sleep:{rng.uniform(*SLOW_S):.3f}",
            origin=rng.choice(tuple(Origin)) if run else None,
        )
        clip = Submitted(clip=name, group=group and f"{run}/{group}", kind=kind, codes=codes, level=float(level))
        return clip, Submission(payload=payload, media=form, context=context)


class Traffic:
    """The clients. `go` lets that many more batches be sent, so that the harm is spread over all of them."""

    def __init__(self, urls: Sequence[str], plan: Plan, log: Log, *, clients: int) -> None:
        self._urls, self._log, self._num = urls, log, clients
        self._batches = list(plan.batches())
        self._turn = threading.Semaphore(0)
        self._left, self._lock = list(enumerate(self._batches))[::-1], threading.Lock()
        self._rng = random.Random(plan.seed + 1)
        self.until_s = float("inf")  # on time.monotonic(): give up then
        self.num_answered, self.answered_s = 0, time.monotonic()  # outcomes so far, and when the last one came
        self.refused: dict[str, int] = {}  # codes of refusals that a client may try again

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    @property
    def num_clips(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def num_refused(self, code: str) -> int:
        """How often a client has been told this code so far."""
        return self.refused.get(code, 0)

    def go(self, batches: int) -> None:
        for _ in range(batches):
            self._turn.release()

    def run(self) -> None:
        """Send everything and wait for all outcomes. Returns at `until_s` at the latest, and a little later."""
        with ThreadPoolExecutor(self._num) as pool:
            for done in [pool.submit(self._client) for _ in range(self._num)]:
                done.result()

    def refresh(self, number: int) -> None:
        """Refresh one run. A run that has no clips yet is refused, which is no failure."""
        request = RefreshRequest(run_id=f"run-{number % RUNS}", steps=1, learning_rate=1e-3)
        with RewardClient(self._urls[number % 2], timeout_s=CALL_S) as client:
            try:
                client.refresh(request, timeout_s=CALL_S)
            except (RequestRefused, ServerBusy, ServerSilent) as error:
                self._count(error)
            except RewardClientError as error:
                self._log.add(Failed(what=f"refresh: {error}"))

    def cut_upload(self, number: int) -> None:
        """Send a part of a request, and leave."""
        address = urlsplit(self._urls[0])
        with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=5) as link:
            head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            part = '--b\r\nContent-Disposition: form-data; name="tensor"; filename="c"\r\n\r\n'
            link.sendall(f"{head}Content-Length: 100000\r\n\r\n{part}".encode() + tensor(number % 256)[:900])

    def _client(self) -> None:
        with (
            RewardClient(self._urls[0], timeout_s=CALL_S, attempts=2) as http,
            RewardClient(self._urls[1], timeout_s=CALL_S, attempts=2) as grpc,
        ):
            while True:
                self._turn.acquire()
                with self._lock:
                    number, batch = self._left.pop() if self._left else (0, None)
                if batch is None:
                    self._turn.release()  # for the next client
                    return
                doors = [http, grpc][:: 1 if number % 2 else -1]
                self._send(batch, doors, again=number % 5 == 0)

    def _send(self, batch: Sequence[Send], doors: Sequence[RewardClient], *, again: bool) -> None:
        """One batch from its first attempt to its last outcome. `again`: send it over both doors at the same time."""
        clips = [clip for _, clip in batch]
        self._log.add(*(known for known, _ in batch))
        with ThreadPoolExecutor(2) as both:
            told = list(both.map(lambda door: self._accepted(door, clips), doors if again else doors[:1]))
        for job_ids in told:
            self._log.add(*(Accepted(clip=at.clip, job=job) for (at, _), job in zip(batch, job_ids, strict=False)))
        self._await(sorted({job for job_ids in told for job in job_ids}), doors)

    def _accepted(self, door: RewardClient, clips: Sequence[Submission]) -> list[str]:
        told = self._persist(lambda: door.submit(clips))
        return told if isinstance(told, list) else []

    def _await(self, job_ids: Sequence[str], doors: Sequence[RewardClient]) -> None:
        left = set(job_ids)

        def look() -> None:
            for outcome in doors[-1].await_outcomes(sorted(left), timeout_s=5.0):
                left.discard(outcome.job_id)
                self._log.add(self._answered(outcome))
                with self._lock:
                    self.num_answered, self.answered_s = self.num_answered + 1, time.monotonic()

        while left and time.monotonic() < self.until_s:
            if self._persist(look, once=True) is Refused:
                self._log.add(*(Answered(job=job, kind=OutcomeKind.FAILED, code="gone") for job in left))
                return

    def _answered(self, outcome: Outcome) -> Answered:
        error, reward = outcome.error, outcome.reward
        gone = error is not None and error.code == "scoring_failed" and "is gone" in error.message
        return Answered(
            job=outcome.job_id,
            kind=outcome.kind,
            code="gone" if gone else error.code if error else "",
            version=reward.provenance.discriminator_version if reward else "",
            level=reward.combined if reward else 0.0,
            at_s=self._log.now_s(),
        )

    def _persist(self, call: Callable[[], T], *, once: bool = False) -> T | type[Refused] | None:
        """The answer of a call, which is repeated while the server is busy or away. Other failures are logged."""
        while time.monotonic() < self.until_s:
            try:
                return call()
            except (ServerBusy, ServerSilent) as error:
                self._count(error)
            except ServerFailed as error:
                self._log.add(Failed(what=str(error)))
            except RequestRefused as error:
                self._log.add(Failed(what=str(error)))
                return Refused
            if once:
                return None
            time.sleep(PAUSE_S * self._rng.uniform(0.5, 1.5))
        return None

    def _count(self, error: RewardClientError) -> None:
        with self._lock:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1


class Refused:
    """The server knows the request, and says that it is wrong."""
