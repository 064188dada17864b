"""Opens the folder in which a private Redis keeps the queue, for one server at a time.

Two locks guard it. This process holds the first while it runs, so a second server is refused at once. Redis itself
inherits the second: after a server was killed, its Redis may still write for a moment, and the next server waits for
that.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from reward_server.errors import NotReady

LEAVE_S = 30.0  # longest wait for the Redis of a server that was killed
POLL_S = 0.05


class QueueFolder:
    """`open` takes the folder, and `close` gives it back. A killed process gives it back too."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._locks: list[int] = []

    @property
    def redis_lock(self) -> int:
        """The file descriptor that Redis must inherit. Valid between `open` and `close`."""
        return self._locks[1]

    def open(self) -> None:
        """Create the folder with mode 0700 if it is new, and lock it.

        Raises NotReady if another server has it, or if it belongs to another user or cannot be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)  # it may be older, and umask may have taken bits away
            for wait_s, name in ((0.0, "server.lock"), (LEAVE_S, "redis.lock")):
                self._lock(self.path / name, wait_s)
        except OSError as error:
            self.close()
            raise NotReady(
                f"the queue cannot be kept in {self.path} ({error.strerror}); give another folder "
                "(MOTION_REWARD_QUEUE_DIR) or your own Redis (--redis-url)"
            ) from error
        except NotReady:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder back; twice is fine."""
        for lock in self._locks:
            os.close(lock)
        self._locks = []

    def _lock(self, path: Path, wait_s: float) -> None:
        """Lock the file within `wait_s`, and write this process's id into it."""
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._locks.append(lock)
        until = time.monotonic() + wait_s
        while not _locked(lock):
            if time.monotonic() >= until:
                holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
                raise NotReady(
                    f"another server (process {holder}) keeps its queue in {self.path}; stop it, or give this one a "
                    "folder of its own (MOTION_REWARD_QUEUE_DIR)"
                )
            time.sleep(POLL_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)


def _locked(lock: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
