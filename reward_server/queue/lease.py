"""Defines leases of jobs and refreshes: a claim gives work to one worker until its lease ends without renewal.

A worker that does not renew its lease loses the work to another worker. A worker that stops hands its work back, and
then the attempt does not count. The Redis part is lua/shared/lease.lua.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from reward_server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A job or a refresh that a worker has claimed."""

    id: str
    attempts: int  # claims so far, this one included
    expires_at_s: float  # on time.monotonic(); after this its result counts as too late

    @property
    def is_due(self) -> bool:
        """Whether `expires_at_s` has passed."""
        return time.monotonic() >= self.expires_at_s


def expiry_s(left_ms: int) -> float:
    """`Claimed.expires_at_s` for work that has `left_ms` left by Redis's clock."""
    return time.monotonic() + left_ms / 1000


def new_token() -> str:
    """A new name for one claim, so that a script that is sent twice counts as one attempt."""
    return uuid.uuid4().hex


def lease_ms(settings: Settings) -> int:
    """The length of a lease in whole milliseconds, at least 1."""
    return max(1, int(settings.lease_s * 1000))


def tick_s(settings: Settings) -> float:
    """The interval at which a process checks for overdue jobs and for an emptied Redis, at most 1 s."""
    return min(1.0, settings.lease_s)
