"""Counts what Redis is asked for a job: round trips, and the commands that scripts run within them.

    with counted_calls(stack) as calls:
        ...
    calls.trips, calls.commands

It reads Redis's MONITOR, which names a script before the commands that the script runs. What goes on without any job
(heartbeats, looks for overdue jobs) is counted too; `idle_calls` tells how much that is. Idle workers look for jobs
more often than busy ones, so it must not be subtracted from a busy server's calls.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.light_stack import Stack
from reward_server.queue import scripts
from reward_server.queue.scripts import Script

NAMES = {
    hashlib.sha1(script.text.encode()).hexdigest(): script.name
    for script in vars(scripts).values()
    if isinstance(script, Script)
}
IDLE_S = 4.0


@dataclass
class Calls:
    """The calls so far. A script is a round trip under its own name, and one command besides those that it runs."""

    by_name: Counter[str] = field(default_factory=Counter)  # round trips
    inside: Counter[tuple[str, str]] = field(default_factory=Counter)  # script and command

    @property
    def trips(self) -> int:
        return self.by_name.total()

    @property
    def commands(self) -> int:
        """All commands, those in scripts too, as `INFO commandstats` counts them."""
        return self.by_name.total() + self.inside.total()


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Calls a second without any job."""

    trips: float
    commands: float


@contextmanager
def counted_calls(stack: Stack) -> Iterator[Calls]:
    """Count the calls of all processes until the block ends."""
    calls, end = Calls(), uuid.uuid4().hex
    with stack.client.monitor() as monitor, ThreadPoolExecutor(1) as pool:
        counting = pool.submit(_count, monitor, calls, end)
        try:
            yield calls
        finally:
            stack.client.echo(end)
            counting.result()  # raises what ended the counting too early


def idle_calls(stack: Stack) -> Idle:
    """What the processes ask while there is no job."""
    with counted_calls(stack) as calls:
        time.sleep(IDLE_S)
    return Idle(trips=calls.trips / IDLE_S, commands=calls.commands / IDLE_S)


def table(calls: Calls, jobs: int) -> str:
    """The calls for a job, one line for each script and each plain command, those with most commands first."""
    inside: Counter[str] = Counter()
    for (name, _), num in calls.inside.items():
        inside[name] += num
    rows = [(name, trips, trips + inside[name]) for name, trips in calls.by_name.items()]
    rows.sort(key=lambda row: -row[2])
    lines = [f"{name:16} {trips / jobs:8.2f} {commands / jobs:9.2f}" for name, trips, commands in rows]
    return "\n".join([f"{'for a job':16} {'trips':>8} {'commands':>9}", *lines])


def _count(monitor: object, calls: Calls, end: str) -> None:
    script = ""
    for seen in monitor.listen():  # type: ignore[attr-defined]  # redis-py does not type it
        name, *rest = seen["command"].split(" ", 2)
        name = name.lower()
        if name == "echo" and rest == [end]:
            return
        if seen["client_type"] == "lua":
            calls.inside[script, name] += 1
            continue
        if name == "evalsha":
            script = name = NAMES.get(rest[0], name)
        calls.by_name[name] += 1
