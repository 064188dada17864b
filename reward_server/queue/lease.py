"""Leases, for jobs and refreshes alike: a claim makes work a worker's, until the lease ends without renewal.

A worker that is silent for a lease loses its work to another worker. A worker that stops hands its work back, and then
the attempt does not count. In Redis, lua/shared/lease.lua does both.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from reward_server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A job or a refresh in a worker's hands."""

    id: str
    attempts: int  # claims so far, this one included
    expires_at_s: float  # on time.monotonic(): from then on it can only end as late

    @property
    def is_due(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.expires_at_s


def expiry_s(left_ms: int) -> float:
    """`Claimed.expires_at_s` of work that has `left_ms` left on Redis's clock."""
    return time.monotonic() + left_ms / 1000


def new_token() -> str:
    """Names one claim, so that a script that is sent twice counts one attempt."""
    return uuid.uuid4().hex


def lease_ms(settings: Settings) -> int:
    """How long a worker may be silent, in whole milliseconds."""
    return max(1, int(settings.lease_s * 1000))


def tick_s(settings: Settings) -> float:
    """How often a process looks for overdue jobs and for an emptied Redis."""
    return min(1.0, settings.lease_s)
