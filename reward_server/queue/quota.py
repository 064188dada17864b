"""How much the queue and an API key may hold, and the errors for a request that is beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.errors import BadRequest, Overloaded
from reward_server.queue.requests import Request
from reward_server.settings import Settings

RETRY_S = (1.0, 60.0)
RETRY_UNKNOWN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class QueueDepth:
    """Unfinished jobs, their estimated pixels and their payload bytes."""

    jobs: int = 0
    cost: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Quota:
    """The unfinished jobs that one API key may have, their payload bytes and their estimated pixels. 0: no limit."""

    jobs: int = 0
    bytes: int = 0
    cost: float = 0

    def __str__(self) -> str:
        limits = {"jobs": self.jobs, "bytes": self.bytes, "pixels": self.cost}
        return ", ".join(f"{limit:.12g} {name}" for name, limit in limits.items() if limit) or "no limits"

    def limits(self) -> dict[str, float]:
        """The limits for lua/admit.lua."""
        return {"jobs": self.jobs or 1e15, "bytes": self.bytes or 1e15, "cost": self.cost or 1e18}


NO_QUOTA = Quota()


def check_fits(requests: Sequence[Request], settings: Settings) -> None:
    """Raises BadRequest for a request that does not even fit an empty queue, because a retry would not help."""
    sizes = [len(request.submission.payload) for request in requests if request.refusal is None]
    if len(sizes) > settings.queue_max_jobs or sum(sizes) > settings.queue_max_bytes:
        raise BadRequest(
            f"a request of {len(sizes)} clips and {sum(sizes)} bytes never fits a queue of "
            f"{settings.queue_max_jobs} jobs and {settings.queue_max_bytes} bytes; send fewer clips at once"
        )


def check_quota(requests: Sequence[Request], owner: str, quota: Quota) -> None:
    """Raises BadRequest for a request that does not even fit the quota of a key without jobs."""
    sizes = [len(request.submission.payload) for request in requests if request.refusal is None]
    if len(sizes) > (quota.jobs or len(sizes)) or sum(sizes) > (quota.bytes or sum(sizes)):
        raise BadRequest(
            f"a request of {len(sizes)} clips and {sum(sizes)} bytes never fits the quota of key '{owner}' ({quota}); "
            "send fewer clips at once"
        )


def over_quota(owner: str, quota: Quota, held: QueueDepth) -> Overloaded:
    return Overloaded(
        f"key '{owner}' has {held.jobs} unfinished jobs with {held.bytes} bytes and {held.cost:.3g} pixels, and its "
        f"quota is {quota}; wait for their outcomes and retry in {RETRY_UNKNOWN_S:.0f} s, or ask for a larger quota",
        retry_after_s=RETRY_UNKNOWN_S,
    )


def retry_after_s(depth: QueueDepth, jobs_per_s: float) -> float:
    """Seconds until about a quarter of the queue has drained at the recent rate, limited to RETRY_S."""
    if jobs_per_s <= 0:
        return RETRY_UNKNOWN_S
    return min(max(depth.jobs / 4 / jobs_per_s, RETRY_S[0]), RETRY_S[1])
