"""What the sides of the job queue share: its settings, the names of its keys and one link to Redis.

The doors' side is admission.py and outcomes.py, the workers' claims.py; jobs.py puts them together.
"""

from __future__ import annotations

from redis.asyncio import Redis

from reward_server.queue import transitions
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.settings import Settings


class Side:
    """A base that keeps these three."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._settings = settings
        self._keys = Keys(profile=settings.profile)
        self._link = RedisLink(redis, self._keys.prefix, transitions.ALL)
