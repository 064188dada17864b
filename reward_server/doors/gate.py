"""Limits the requests in flight at a door, in all and of one address, and the pace at which their bodies arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from reward_server.errors import BadRequest, Overloaded
from reward_server.settings import Settings

RETRY_S = 1.0

T = TypeVar("T")


class BodyTooSlow(BadRequest):
    """The rest of the body is not read."""


class Gate:
    """Counts the requests in flight."""

    def __init__(self, limit: int, limit_each: int) -> None:
        self._limit, self._limit_each = limit, limit_each
        self._open: Counter[str] = Counter()

    @contextmanager
    def passing(self, host: str) -> Iterator[None]:
        """Count a request from an address until the block ends. Raises Overloaded over a limit."""
        address, total = network_of(host), self._open.total()
        if total >= self._limit:
            raise Overloaded(
                f"{total} requests are in flight, the limit is {self._limit} (max_requests); retry in {RETRY_S:.0f} s",
                retry_after_s=RETRY_S,
            )
        if self._open[address] >= self._limit_each:
            raise Overloaded(
                f"{self._open[address]} requests from {address} are in flight, the limit is {self._limit_each} "
                f"(max_connections_per_address); retry in {RETRY_S:.0f} s",
                retry_after_s=RETRY_S,
            )
        self._open[address] += 1
        try:
            yield
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class Pace:
    """Times one body: it has settings.head_timeout_s, and then a second for each upload_min_bytes_per_s.

    Only the time in which the server waits for bytes counts.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waited_s, self._num_bytes = 0.0, 0

    async def each(self, parts: AsyncIterator[T], size_of: Callable[[T], int]) -> AsyncIterator[T]:
        """The parts of the body, as they come. Raises BodyTooSlow."""
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            try:
                async with asyncio.timeout(self._left_s()):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise self._too_slow() from error
            self._waited_s += loop.time() - started_s
            self._num_bytes += size_of(part)
            yield part

    def _left_s(self) -> float:
        settings = self._settings
        return settings.head_timeout_s + self._num_bytes / settings.upload_min_bytes_per_s - self._waited_s

    def _too_slow(self) -> BodyTooSlow:
        settings = self._settings
        return BodyTooSlow(
            f"{self._num_bytes} bytes of the body came in time, and then no more: it has "
            f"{settings.head_timeout_s:g} s (head_timeout_s), and a second for each {settings.upload_min_bytes_per_s} "
            "bytes (upload_min_bytes_per_s); send fewer clips at once, or over a faster network"
        )


def network_of(host: str) -> str:
    """What stands for an address in counts: itself, or the /64 of IPv6, which one machine has to itself."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and not address.is_loopback:
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(IPv6Address(int(address) >> 64 << 64))
    return str(address)
