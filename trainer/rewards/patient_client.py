"""The reward server, asked until it answers: one that restarts or is full costs time, not the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import stamina

from protos.client import RewardClient, ServerBusy, ServerSilent

log = logging.getLogger(__name__)

R = TypeVar("R")


class PatientClient:
    """May be asked from several threads; once closed it asks no more."""

    def __init__(self, server: str, *, max_outage_s: float) -> None:
        self.client = RewardClient(server, attempts=1)
        self._max_outage_s = max_outage_s
        self._closing = False

    def ask(self, call: Callable[[RewardClient], R], *, takes_s: float = 0.0) -> R:
        """What `call` returns, tried again for `max_outage_s` beyond what it may take by itself. Raises what the server
        refuses for good."""
        within_s = self._max_outage_s + takes_s
        for attempt in stamina.retry_context(
            self._waits, attempts=None, timeout=within_s, wait_initial=0.2, wait_max=10
        ):
            with attempt:
                return call(self.client)
        raise AssertionError("stamina raises the last error")

    def _waits(self, error: Exception) -> bool | float:
        """Whether to try again, and after how long where the server said so."""
        if self._closing or not isinstance(error, (ServerBusy, ServerSilent)):
            return False
        log.warning("the reward server is asked again, for %.0f s at most: %s", self._max_outage_s, error)
        return getattr(error, "retry_after_s", None) or True

    def stop(self) -> None:
        """What is being asked now is not tried again."""
        self._closing = True

    def close(self) -> None:
        self.stop()
        self.client.close()
