"""Connects a process to Redis: the connection pool, typed commands for the queue, and failures as our errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from reward_server.errors import NotReady, Overloaded
from reward_server.queue.keys import Keys
from reward_server.queue.scripts import Script
from reward_server.settings import Settings

ANSWER_S = 15.0  # longest wait for one answer
BLOCK_MS = 5000  # longest blocking read, well below ANSWER_S
FULL_RETRY_S = 10.0
NUM_CONNECTIONS = 64
CHUNK_BYTES = 32 * 1024**2
PASSING = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY ")  # temporary: disk full, no replica, a long script

PAUSE_S = (0.05, 2.0)
AWAY = (NotReady, Overloaded)  # what every call raises while Redis cannot be reached or is full

Argument = bytes | str | int
T = TypeVar("T")

log = structlog.get_logger(__name__)


class Entry(NamedTuple):
    """One entry of a stream."""

    id: str
    fields: Mapping[str, bytes]


def connect(settings: Settings) -> RedisLink:
    """A link to settings.redis_url. It connects at the first command. Raises NotReady if no URL is set."""
    if settings.redis_url is None:
        raise NotReady("no Redis: give --redis-url (MOTION_REWARD_REDIS_URL), or start with `motion-reward serve`")
    pool = BlockingConnectionPool.from_url(
        settings.redis_url.get_secret_value(),
        max_connections=NUM_CONNECTIONS,  # further callers wait for a connection instead of failing
        timeout=ANSWER_S,
        protocol=2,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=5.0,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries=3),
    )
    return RedisLink(Redis.from_pool(pool), Keys(profile=settings.profile).prefix)


class RedisLink:
    """Typed commands on one client. All raise NotReady while Redis is unreachable, and Overloaded if it is full."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis: Any = redis  # redis-py's own types are unions over the answers of all protocols
        self._prefix = prefix
        self._scripts: dict[str, Any] = {}  # of redis-py, which sends a script's text only if Redis does not have it

    async def close(self) -> None:
        await self._redis.aclose()

    async def run(self, script: Script, *args: Argument) -> Any:
        """Run a script and return its answer. KEYS[1] is the prefix of all keys."""
        if script.name not in self._scripts:
            self._scripts[script.name] = self._redis.register_script(script.text)
        with _failures():
            return await self._scripts[script.name](keys=[self._prefix], args=args)

    async def now_s(self) -> float:
        """The time of Redis's clock, in seconds since the epoch."""
        with _failures():
            seconds, microseconds = await self._redis.time()
        return float(seconds + microseconds / 1e6)

    async def put(self, key: str, value: bytes, *, life_s: int) -> None:
        with _failures():
            await self._redis.set(key, value, ex=life_s)

    async def drop(self, keys: Sequence[str]) -> None:
        with _failures():
            await self._redis.unlink(*keys)

    async def get(self, key: str) -> bytes | None:
        with _failures():
            value: bytes | None = await self._redis.get(key)
        return value

    async def put_large(self, key: str, value: bytes, *, life_s: int) -> None:
        """Store a value as a list of chunks, in one transaction. A single string is limited to 512 MiB."""
        chunks = [value[start : start + CHUNK_BYTES] for start in range(0, len(value), CHUNK_BYTES)]
        with _failures():
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(key)
                for chunk in chunks:
                    pipeline.rpush(key, chunk)
                pipeline.expire(key, life_s)
                await pipeline.execute()

    async def get_large(self, key: str) -> bytes | None:
        """The value stored by `put_large`, or None."""
        with _failures():
            chunks: list[bytes] = await self._redis.lrange(key, 0, -1)
        return b"".join(chunks) if chunks else None

    async def list_items(self, key: str, start: int, end: int) -> list[bytes]:
        """Items from `start` to `end`, both included. Negative numbers count from the end."""
        with _failures():
            items: list[bytes] = await self._redis.lrange(key, start, end)
        return items

    async def hash_rows(self, keys: Sequence[str], *fields: str) -> list[list[bytes | None]]:
        """The given fields of each hash, in one round trip."""
        if not keys:
            return []
        with _failures():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.hmget(key, fields)
                rows: list[list[bytes | None]] = await pipeline.execute()
        return rows

    async def hash_numbers(self, key: str) -> dict[str, int]:
        """All fields of a hash of integers."""
        with _failures():
            held = await self._redis.hgetall(key)
        return {name.decode(): int(number) for name, number in held.items()}

    async def newest(self, stream: str, count: int) -> list[Entry]:
        """The newest entries, newest first."""
        with _failures():
            return _entries(await self._redis.xrevrange(stream, count=count))

    async def page(self, stream: str, *, after: str, count: int) -> list[Entry]:
        """Entries, oldest first, after the entry `after`, or from the start if it is empty."""
        with _failures():
            return _entries(await self._redis.xrange(stream, min=f"({after}" if after else "-", count=count))

    async def follow(self, stream: str, *, after: str, count: int, wait_ms: float) -> list[Entry]:
        """Entries after `after`. Waits at most `wait_ms` (and BLOCK_MS) for the first."""
        with _failures():
            answer = await self._redis.xread({stream: after}, count=count, block=_block(wait_ms))
        return _entries(answer[0][1]) if answer else []

    async def read_group(self, stream: str, group: str, consumer: str, *, count: int, wait_ms: float) -> list[Entry]:
        """New entries for this consumer. Waits at most `wait_ms` (and BLOCK_MS) for the first.

        Empty if the group does not exist.
        """
        try:
            with _failures():
                answer = await self._redis.xreadgroup(
                    group, consumer, {stream: ">"}, count=count, block=_block(wait_ms)
                )
        except ResponseError as error:  # UNBLOCKED: Redis was emptied while this call waited
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            return []
        return _entries(answer[0][1]) if answer else []

    async def has_silent(self, stream: str, group: str, *, idle_ms: int) -> bool:
        """Whether an entry has been pending for `idle_ms` without renewal."""
        try:
            with _failures():
                return bool(await self._redis.xpending_range(stream, group, "-", "+", 1, idle=idle_ms))
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            return False


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of a call to Redis. Repeats the call as long as Redis is unreachable or full."""
    pause_s = PAUSE_S[0]
    while True:
        try:
            return await call()
        except AWAY as error:
            log.warning("waiting for Redis", error=str(error), pause_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S[1])


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task that uses Redis, and wait for its end.

    More than one cancel may be needed: before Python 3.12 asyncio.wait_for, which redis-py uses, can swallow one.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)


def _entries(answer: Sequence[Any]) -> list[Entry]:
    return [
        Entry(id=entry.decode(), fields={name.decode(): value for name, value in fields.items()})
        for entry, fields in answer
    ]


def _block(wait_ms: float) -> int | None:
    """The value for BLOCK, in ms. 0 would wait for ever, so it becomes None, which does not wait."""
    return min(BLOCK_MS, int(wait_ms)) or None


@contextmanager
def _failures() -> Iterator[None]:
    """Turn the errors of an unreachable Redis into NotReady and of a full one into Overloaded. Others are bugs."""
    try:
        yield
    except (RedisConnectionError, RedisTimeoutError, ReadOnlyError) as error:
        raise NotReady(f"Redis does not answer ({type(error).__name__}: {error}); try again shortly") from error
    except ResponseError as error:
        if isinstance(error, OutOfMemoryError) or "OOM" in str(error):  # from a script it is a plain ResponseError
            raise Overloaded("Redis is at its memory limit; retry later", retry_after_s=FULL_RETRY_S) from error
        if any(word in str(error) for word in PASSING):
            raise NotReady(f"Redis accepts no commands now ({error}); try again shortly") from error
        raise
