"""Connects a process to Redis: connection pools, typed commands for the queue, and failures as our errors.

Reads that wait for news have a pool of their own, so that commands never wait behind them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
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
from reward_server.queue.patience import spending
from reward_server.queue.scripts import Script
from reward_server.settings import Settings

ANSWER_S = 15.0  # longest wait for one answer
BLOCK_MS = 5000  # longest blocking read, well below ANSWER_S
FULL_RETRY_S = 10.0
NUM_CONNECTIONS = 64
NUM_WAITING = 8  # connections for reads that wait; a process has one or two such reads at a time
CHUNK_BYTES = 32 * 1024**2
PIECE_BYTES = 4 * 1024**2
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
    url = settings.redis_url.get_secret_value()
    commands, waiting = _client(url, NUM_CONNECTIONS), _client(url, NUM_WAITING)
    return RedisLink(commands, Keys(profile=settings.profile).prefix, waiting=waiting)


def _client(url: str, num_connections: int) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=num_connections,  # further callers wait for a connection instead of failing
        timeout=ANSWER_S,
        protocol=2,
        socket_timeout=ANSWER_S,
        socket_connect_timeout=5.0,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries=3),
    )
    return Redis.from_pool(pool)


class RedisLink:
    """Typed commands. All raise NotReady while Redis is unreachable, and Overloaded if it is full.

    Commands are limited by patience.py, but not `follow` and `read_group`, which wait for news on connections of
    their own.
    """

    def __init__(self, redis: Redis, prefix: str, *, waiting: Redis) -> None:
        self._redis: Any = redis  # redis-py's own types are unions over the answers of all protocols
        self._waiting: Any = waiting
        self._prefix = prefix
        self._scripts: dict[str, Any] = {}  # of redis-py, which sends a script's text only if Redis does not have it

    async def close(self) -> None:
        await self._redis.aclose()
        await self._waiting.aclose()

    async def run(self, script: Script, *args: Argument) -> Any:
        """Run a script and return its answer. KEYS[1] is the prefix of all keys."""
        if script.name not in self._scripts:
            self._scripts[script.name] = self._redis.register_script(script.text)
        async with _answered():
            return await self._scripts[script.name](keys=[self._prefix], args=args)

    async def now_s(self) -> float:
        """The time of Redis's clock, in seconds since the epoch."""
        async with _answered():
            seconds, microseconds = await self._redis.time()
        return float(seconds + microseconds / 1e6)

    async def put(self, key: str, value: bytes, *, life_s: int) -> None:
        """Store a value in pieces, of which a socket may keep copies. It is whole once this returns."""
        async with _answered(len(value)):
            await self._redis.set(key, value[:PIECE_BYTES], ex=life_s)
            # The last piece first, so that Redis makes room for all of them at once.
            for start in reversed(range(PIECE_BYTES, len(value), PIECE_BYTES)):
                await self._redis.setrange(key, start, value[start : start + PIECE_BYTES])
            if len(value) > PIECE_BYTES and await self._redis.ttl(key) < 0:  # made by `setrange`: the start was lost
                await self._redis.unlink(key)
                raise NotReady("Redis lost a clip while it was stored; send it again")

    async def drop(self, keys: Sequence[str]) -> None:
        async with _answered():
            await self._redis.unlink(*keys)

    async def get(self, key: str) -> bytes | None:
        async with _answered():
            value: bytes | None = await self._redis.get(key)
        return value

    async def text(self, key: str) -> str:
        """A short value. Empty if there is none."""
        return (await self.get(key) or b"").decode()

    async def agreed(self, key: str, value: str) -> str:
        """Store a value that never expires, unless there is one. Returns the one that is there then."""
        async with _answered(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.setnx(key, value)
            pipeline.get(key)
            _, held = await pipeline.execute()
        return str(held.decode())

    async def put_large(self, key: str, value: bytes, *, life_s: int) -> None:
        """Store a value as a list of chunks, in one transaction. A single string is limited to 512 MiB."""
        chunks = [value[start : start + CHUNK_BYTES] for start in range(0, len(value), CHUNK_BYTES)]
        async with _answered(len(value)), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(key)
            for chunk in chunks:
                pipeline.rpush(key, chunk)
            pipeline.expire(key, life_s)
            await pipeline.execute()

    async def append(self, key: str, chunk: bytes, *, life_s: int) -> None:
        """Add a chunk to such a value."""
        async with _answered(len(chunk)), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.rpush(key, chunk)
            pipeline.expire(key, life_s)
            await pipeline.execute()

    async def get_large(self, key: str) -> bytes | None:
        """The value stored by `put_large`, or None."""
        async with _answered():
            chunks: list[bytes] = await self._redis.lrange(key, 0, -1)
        return b"".join(chunks) if chunks else None

    async def list_items(self, key: str, start: int, end: int) -> list[bytes]:
        """Items from `start` to `end`, both included. Negative numbers count from the end."""
        async with _answered():
            items: list[bytes] = await self._redis.lrange(key, start, end)
        return items

    async def keys_with(self, prefix: str) -> list[str]:
        """All keys that begin with the prefix. Redis looks at every key it has, so this is for people, not for jobs."""
        async with _failures():
            return [key.decode() async for key in self._redis.scan_iter(match=f"{_literally(prefix)}*", count=1000)]

    async def since(self, key: str, score: int) -> tuple[str, ...]:
        """The members of a sorted set with at least this score, lowest first."""
        async with _failures():
            return tuple(name.decode() for name in await self._redis.zrangebyscore(key, score, "+inf"))

    async def count_until(self, key: str, score: int) -> int:
        """How many members of a sorted set have at most this score."""
        async with _answered():
            return int(await self._redis.zcount(key, "-inf", score))

    async def set_size(self, key: str) -> int:
        """The number of members of a sorted set."""
        async with _answered():
            return int(await self._redis.zcard(key))

    async def sizes(self, keys: Sequence[str]) -> list[int]:
        """The length of each string in bytes, 0 if there is none, in one round trip."""
        async with _answered(), self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.strlen(key)
            lengths: list[int] = await pipeline.execute()
        return lengths

    async def hash_rows(self, keys: Sequence[str], *fields: str) -> list[list[bytes | None]]:
        """The given fields of each hash, in one round trip."""
        if not keys:
            return []
        async with _answered(), self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hmget(key, fields)
            rows: list[list[bytes | None]] = await pipeline.execute()
        return rows

    async def hash_values(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """The value at each hash and field, in one round trip."""
        async with _answered(), self._redis.pipeline(transaction=False) as pipeline:
            for key, name in places:
                pipeline.hget(key, name)
            values: list[bytes | None] = await pipeline.execute()
        return values

    async def hash_items(self, key: str) -> dict[str, bytes]:
        """All fields of a hash."""
        async with _answered():
            held = await self._redis.hgetall(key)
        return {name.decode(): value for name, value in held.items()}

    async def hash_size(self, key: str) -> int:
        """The number of fields of a hash."""
        async with _answered():
            return int(await self._redis.hlen(key))

    async def hash_numbers(self, key: str) -> dict[str, int]:
        """All fields of a hash of integers."""
        return {name: int(number) for name, number in (await self.hash_items(key)).items()}

    async def newest(self, stream: str, count: int) -> list[Entry]:
        """The newest entries, newest first."""
        async with _answered():
            return _entries(await self._redis.xrevrange(stream, count=count))

    async def page(self, stream: str, *, after: str, count: int) -> list[Entry]:
        """Entries, oldest first, after the entry `after`, or from the start if it is empty."""
        async with _answered():
            return _entries(await self._redis.xrange(stream, min=f"({after}" if after else "-", count=count))

    async def follow(self, stream: str, *, after: str, count: int, wait_ms: float) -> list[Entry]:
        """Entries after `after`. Waits at most `wait_ms` (and BLOCK_MS) for the first."""
        async with _failures():
            answer = await self._waiting.xread({stream: after}, count=count, block=_block(wait_ms))
        return _entries(answer[0][1]) if answer else []

    async def read_group(
        self, streams: Sequence[str], group: str, consumer: str, *, count: int, wait_ms: float
    ) -> dict[str, list[Entry]]:
        """New entries for this consumer by stream, at most `count` of each. Waits at most `wait_ms` (and BLOCK_MS).

        Empty if the group does not exist in every stream.
        """
        try:
            async with _failures():
                answer = await self._waiting.xreadgroup(
                    group, consumer, dict.fromkeys(streams, ">"), count=count, block=_block(wait_ms)
                )
        except ResponseError as error:  # UNBLOCKED: Redis was emptied while this call waited
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise
            return {}
        return {stream.decode(): _entries(entries) for stream, entries in answer or ()}

    async def has_silent(self, streams: Sequence[str], group: str, *, idle_ms: int) -> bool:
        """Whether an entry of any stream has been pending for `idle_ms` without renewal."""
        try:
            async with _answered(), self._redis.pipeline(transaction=False) as pipeline:
                for stream in streams:
                    pipeline.xpending_range(stream, group, "-", "+", 1, idle=idle_ms)
                return any(await pipeline.execute())
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


def _literally(text: str) -> str:
    """A pattern that matches only the text itself."""
    return re.sub(r"([*?\[\]\\^-])", r"\\\1", text)


def _block(wait_ms: float) -> int | None:
    """The value for BLOCK, in ms. 0 would wait for ever, so it becomes None, which does not wait."""
    return min(BLOCK_MS, int(wait_ms)) or None


@asynccontextmanager
async def _answered(num_bytes: int = 0) -> AsyncIterator[None]:
    """Wrap one command that sends `num_bytes` of payload: it must end within the request's patience."""
    async with _failures(), spending(num_bytes):
        yield


@asynccontextmanager
async def _failures() -> AsyncIterator[None]:
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
