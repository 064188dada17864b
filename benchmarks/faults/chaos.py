"""Does the harm: a seeded list of kills, stops and floods, one after the other, while clips come in."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from benchmarks.faults.accounts import Harm, Log
from benchmarks.faults.traffic import Traffic
from benchmarks.light_stack import Part, Stack
from benchmarks.light_worker import VERSION
from reward_server.queue.scripts import GROUP

NEXT = "light-2"  # the version of the rolling update
BETWEEN_S = (0.2, 0.6)
BEHIND = 160  # clips; a machine that is slower than the harm would do all work after it
PACE_S = 20.0  # the harm waits at most so long for them
FULL_S = 2.0
FULL = "overloaded"  # what clients are told then


@dataclass(frozen=True, kw_only=True)
class Doses:
    """How often each harm is done."""

    worker_kills: int = 50
    redis_kills: int = 6
    worker_stops: int = 6  # SIGSTOP for longer than a lease
    redis_stops: int = 2
    door_kills: int = 4
    cut_uploads: int = 20
    refreshes: int = 9
    full_redis: int = 2
    update: int = 1  # rolling updates of the checkpoint


SHORT = Doses(
    worker_kills=6,
    redis_kills=2,
    worker_stops=1,
    redis_stops=1,
    door_kills=1,
    cut_uploads=3,
    refreshes=4,
    full_redis=1,
)


@dataclass
class Chaos:
    """The harm to one stack, in an order that the seed decides."""

    stack: Stack
    traffic: Traffic
    log: Log
    doses: Doses
    seed: int
    lease_s: float
    kills: int = 0  # of workers
    redis_restarts: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Do all harm, and let the batches go meanwhile. Everything runs again when it returns."""
        rng = random.Random(self.seed)
        todo = [name for name, num in vars(self.doses).items() for _ in range(num)]
        rng.shuffle(todo)
        keeper = threading.Thread(target=self._keep_workers)
        keeper.start()
        gone = 0
        try:
            for at, name in enumerate(todo):
                due = self.traffic.num_batches * (at + 1) // len(todo)
                self.traffic.go(due - gone)
                gone = due
                self._keep_pace(at / len(todo))
                print(f"{self.log.now_s():6.1f} s: {name}", file=sys.stderr)
                self._harms()[name](rng, at)
                time.sleep(rng.uniform(*BETWEEN_S))
            self.traffic.go(1)  # the last client wakes the next (Traffic._client)
        finally:
            self._stopping.set()
            keeper.join()
        self._heal()

    def _keep_pace(self, share: float) -> None:
        """Wait until about this share of the clips has its outcome."""
        until_s, wanted = time.monotonic() + PACE_S, share * self.traffic.num_clips - BEHIND
        while self.traffic.num_answered < wanted and time.monotonic() < until_s:
            time.sleep(0.1)

    def _harms(self) -> dict[str, Callable[[random.Random, int], None]]:
        return {
            "worker_kills": lambda rng, _: self._kill_worker(rng.choice(self.stack.workers)),
            "redis_kills": lambda *_: self._kill_redis(),
            "worker_stops": lambda rng, _: self._stop(rng.choice(self.stack.workers), 1.5 * self.lease_s),
            "redis_stops": lambda *_: self._stop(self.stack.redis, 3.0),
            "door_kills": lambda *_: self._kill_door(),
            "cut_uploads": lambda _, at: self._cut_upload(at),
            "refreshes": lambda _, at: self.traffic.refresh(at),
            "full_redis": lambda *_: self._fill_redis(),
            "update": lambda *_: self._update(),
        }

    def _kill_worker(self, worker: Part) -> None:
        held = self._held_by(worker)
        self.log.add(Harm(what=worker.name, at_s=self.log.now_s(), jobs=held))
        worker.kill()
        self.kills += 1

    def _held_by(self, worker: Part) -> tuple[str, ...]:
        """The jobs that the worker holds, which must be answered all the same."""
        queue, pid = self.stack.keys.queue, worker.process.pid if worker.process else 0
        with suppress(RedisError):
            pending = self.stack.client.xpending_range(queue, GROUP, "-", "+", 256)
            entries = [row["message_id"] for row in pending if f"-{pid}-" in row["consumer"].decode()]
            found = [self.stack.client.xrange(queue, entry, entry) for entry in entries]
            return tuple(fields[b"job"].decode() for rows in found for _, fields in rows)
        return ()

    def _kill_redis(self) -> None:
        self.log.add(Harm(what="redis", at_s=self.log.now_s()))
        self.stack.redis.kill()
        self.stack.redis.start()
        self.stack.await_redis()
        self.redis_restarts += 1

    def _kill_door(self) -> None:
        self.log.add(Harm(what="door", at_s=self.log.now_s()))
        self.stack.door.kill()
        self.stack.door.start()
        self.stack.await_door()

    def _stop(self, part: Part, seconds: float) -> None:
        part.signal(signal.SIGSTOP)
        time.sleep(seconds)
        part.signal(signal.SIGCONT)

    def _cut_upload(self, number: int) -> None:
        with suppress(OSError):  # the door may be away
            self.traffic.cut_upload(number)

    def _fill_redis(self) -> None:
        """Leave Redis no memory for a while, and until a client has felt it: they may all wait for a killed door."""
        refused, until_s = self.traffic.num_refused(FULL), time.monotonic() + PACE_S
        with suppress(RedisError):
            self.stack.client.config_set("maxmemory", 1_000_000)
            time.sleep(FULL_S)
            while self.traffic.num_refused(FULL) == refused and time.monotonic() < until_s:
                time.sleep(0.1)
        for _ in range(3):
            with suppress(RedisError):
                self.stack.client.config_set("maxmemory", 0)
                return

    def _update(self) -> None:
        """Replace all workers but one by workers with the next checkpoint. The last keeps the bound groups."""
        for worker in self.stack.workers[1:]:
            worker.environment[VERSION] = NEXT
            worker.end()

    def _keep_workers(self) -> None:
        """Start workers that have ended, as `motion-reward serve` does."""
        while not self._stopping.wait(0.1):
            self.start_ended()

    def start_ended(self) -> None:
        """Start the workers that have ended."""
        for worker in self.stack.workers:
            if not worker.alive:
                worker.start()

    def _heal(self) -> None:
        for part in (self.stack.redis, self.stack.door, *self.stack.workers):
            part.signal(signal.SIGCONT)
        self.start_ended()
