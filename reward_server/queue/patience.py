"""Limits how long one request waits for Redis, so that a Redis that stands still holds up no caller.

    with patience(4.0):
        await link.run(...)
        await link.get(...)

The calls in the block, also those of functions it calls, wait for Redis for 4 s in all. Then they raise NotReady. Only
the time that is spent on Redis counts. Outside of a block, redis-py's own timeouts apply.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from reward_server.errors import NotReady

LOOK_S = 0.7  # for health and metrics, and at least for a look at the end of a wait
BYTES_PER_S = 16 * 1024**2  # payloads get this much more time


@dataclass
class _Left:
    seconds: float


_left: ContextVar[_Left | None] = ContextVar("left", default=None)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let the calls to Redis in this block take `seconds` together, or less if an outer block has less left.

    Do not yield from a generator inside the block.
    """
    outer = _left.get()
    before = _left.set(_Left(max(0.0, seconds if outer is None else min(seconds, outer.seconds))))
    try:
        yield
    finally:
        _left.reset(before)


@asynccontextmanager
async def spending(num_bytes: int = 0) -> AsyncIterator[None]:
    """Wrap one call that sends `num_bytes` of payload. Raises NotReady if Redis does not answer in the time left."""
    left = _left.get()
    if left is None:
        yield
        return
    loop = asyncio.get_running_loop()
    began_s, transfer_s = loop.time(), num_bytes / BYTES_PER_S
    try:
        async with asyncio.timeout(left.seconds + transfer_s):
            yield
    except TimeoutError as error:
        raise NotReady("Redis does not answer in time; try again shortly") from error
    finally:
        left.seconds = max(0.0, left.seconds - max(0.0, loop.time() - began_s - transfer_s))
