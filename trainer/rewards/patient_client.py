"""Calls the reward server and retries while it restarts or is full, so that an outage costs time, not the run."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import TypeVar

import stamina

from protos.client import RewardClient, ServerBusy, ServerSilent

log = logging.getLogger(__name__)

R = TypeVar("R")


class PatientClient:
    """A client that retries. It may be used from several threads, and stops retrying once it is closed."""

    def __init__(self, client: RewardClient, *, max_outage_s: float) -> None:
        """`client` makes one attempt for each call. It is closed with this one."""
        self.client = client
        self._max_outage_s = max_outage_s
        self._closing = False

    def ask(self, call: Callable[[RewardClient], R], *, takes_s: float = 0.0) -> R:
        """The result of `call`, retried for `max_outage_s` plus `takes_s`, the seconds that one call may take.

        Raises RequestRefused at once, and the last error when the time is over.
        """
        within_s = self._max_outage_s + takes_s
        for attempt in stamina.retry_context(
            self._waits, attempts=None, timeout=within_s, wait_initial=0.2, wait_max=10
        ):
            with attempt:
                return call(self.client)
        raise AssertionError("stamina raises the last error")

    def _waits(self, error: Exception) -> bool | float:
        """Whether to retry; seconds until then, if the server gave them.

        Up to half of that is added at random, so that the processes of a run do not all come back at the same time.
        """
        if self._closing or not isinstance(error, (ServerBusy, ServerSilent)):
            return False
        log.warning("retrying the reward server, for %.0f s at most: %s", self._max_outage_s, error)
        after_s = getattr(error, "retry_after_s", None)
        return after_s * random.uniform(1.0, 1.5) if after_s else True

    def stop(self) -> None:
        """Let running calls fail without another retry."""
        self._closing = True

    def close(self) -> None:
        self.stop()
        self.client.close()
