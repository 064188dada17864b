"""Checks a container's health: `python -m reward_server.serving.alive` exits with 0 if a worker of this host is alive.

A worker sends a heartbeat once its weights are loaded, and then three times per lease (worker.py). Worker ids begin
with the host's name. For the doors, check /readyz instead.
"""

from __future__ import annotations

import socket
import sys

from redis import Redis
from redis.exceptions import RedisError

from reward_server.queue.keys import Keys
from reward_server.settings import Settings

PATIENCE_S = 5.0


def live_workers(settings: Settings, host: str) -> list[str]:
    """Ids of the workers of `host` whose last heartbeat is younger than a lease. Raises RedisError.

    Needs settings.redis_url.
    """
    assert settings.redis_url is not None
    with Redis.from_url(
        settings.redis_url.get_secret_value(), socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S
    ) as redis:
        seconds, microseconds = redis.time()  # the heartbeats' clock
        now_ms = seconds * 1000 + microseconds // 1000
        names = [name.decode() for name in redis.zrangebyscore(Keys(profile=settings.profile).workers, now_ms, "+inf")]
    return [name for name in names if name.startswith(f"{host}-")]


def main() -> None:
    """Exit with 0 if a worker is alive, otherwise with 1 and the reason on standard error."""
    settings, host = Settings.model_validate({}), socket.gethostname()  # from the environment alone
    if settings.redis_url is None:
        sys.exit("no Redis URL is set; set MOTION_REWARD_REDIS_URL")
    try:
        alive = live_workers(settings, host)
    except RedisError as error:
        sys.exit(f"Redis does not answer: {error}")
    if not alive:
        sys.exit(f"no worker of {host} has sent a heartbeat lately: it loads its weights or hangs; see its log")
    print(*alive)


if __name__ == "__main__":
    main()
