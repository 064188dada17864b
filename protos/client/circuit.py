"""Stops calls to a server that cannot be reached: after some failures in a row, they fail at once for a while.

Then one call tries again. If it is answered, all calls go on; if not, the pause doubles. So many threads or
tasks that share a client neither wait for each connection in turn nor meet a server that starts with all their calls.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from protos.client.errors import RewardClientError, ServerBusy
from protos.error_codes import ErrorCode

FAILURES = 5
PAUSE_S = (0.5, 10.0)

R = TypeVar("R")


class Circuit:
    """The state of one client's connection. It is safe to share between threads."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._failures = 0  # calls in a row that did not reach the server
        self._pause_s = PAUSE_S[0]
        self._until_s = 0.0  # on time.monotonic(); no call passes before it

    def call(self, call: Callable[..., R], *args: object) -> R:
        """The result of the call. Raises ServerBusy without calling while the circuit is open."""
        with self.passing():
            return call(*args)

    async def acall(self, call: Callable[..., Awaitable[R]], *args: object) -> R:
        """`call` for a coroutine."""
        with self.passing():
            return await call(*args)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Wrap one call. Raises ServerBusy, with the seconds until the next try, while the circuit is open."""
        is_try, answered, failed = self._enter(), False, False
        try:
            yield
            answered = True
        except RewardClientError as error:
            failed = error.code == ErrorCode.UNREACHABLE
            answered = not failed and error.code != ErrorCode.NO_ANSWER
            raise
        finally:
            with self._lock:
                if answered:
                    self._failures, self._pause_s = 0, PAUSE_S[0]
                elif failed:
                    self._fail()
                elif is_try:
                    self._until_s = 0.0  # given up: the next one tries

    def _enter(self) -> bool:
        """Whether this call is the one that tries after a pause."""
        with self._lock:
            if self._failures < FAILURES:
                return False
            left_s = self._until_s - time.monotonic()
            if left_s > 0:
                raise ServerBusy(
                    ErrorCode.UNREACHABLE,
                    f"{self._server}: not reachable in {self._failures} calls in a row; the next one tries in "
                    f"{max(left_s, 0):.1f} s",
                    retry_after_s=max(left_s, 0.1),
                )
            self._until_s = time.monotonic() + self._pause_s  # a call may be long: another one tries then
            return True

    def _fail(self) -> None:
        """Count a failure. The caller holds the lock."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._until_s = time.monotonic() + self._pause_s * random.uniform(0.5, 1.0)
            self._pause_s = min(2 * self._pause_s, PAUSE_S[1])
