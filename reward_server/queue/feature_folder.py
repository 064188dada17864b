"""Finds the folder that holds the motion files of one Redis.

In feature_dir each profile has a folder, and in it each Redis has one of its own. Its name is a random id that Redis
holds (`feature-folder`). So a worker with another folder, or with one that is not mounted, does not take the files for
gone, and servers that share a folder leave each other's files alone. Only workers that start make folders on the way
there: a mount that has vanished must not become a local folder.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

from reward_server.errors import NotReady
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.settings import Settings


class FeatureFolder:
    """The folder of one Redis in `home`, that of its profile."""

    def __init__(self, link: RedisLink, keys: Keys, home: Path) -> None:
        self._link, self._key, self.home = link, keys.feature_folder, home
        self._id = uuid.uuid4().hex  # for a Redis that has none. One that is emptied later gets back the one it had

    @property
    def latest(self) -> Path:
        """The folder as `path` knew it last. It need not be there."""
        return self.home / self._id

    async def path(self) -> Path:
        """The folder, which is made if Redis has none yet.

        Raises OSError if it is not there. Then nothing is known of its files. Raises NotReady without Redis.
        """
        self._id = await self._link.text(self._key) or await self._claim()
        if not await asyncio.to_thread(self.latest.is_dir):
            raise FileNotFoundError(
                errno.ENOENT,
                f"it lacks the folder '{self._id}' of this Redis; if that is lost for good, make an empty one",
                str(self.latest),
            )
        return self.latest

    async def _claim(self) -> str:
        """Make a folder for a Redis that has none. Returns its name, or that of another worker who was faster."""
        made = self.latest
        await asyncio.to_thread(made.mkdir, mode=0o700, exist_ok=True)
        held = await self._link.agreed(self._key, made.name)
        if held != made.name:
            with suppress(OSError):
                await asyncio.to_thread(made.rmdir)
        return held


def folder_of(settings: Settings) -> Path | None:
    """The folder for the motion of the served profile, if it is to be kept in files."""
    return settings.feature_dir / settings.profile if settings.feature_dir else None


def make_folder(settings: Settings) -> None:
    """Make the profile's folder, with mode 0700. Raises NotReady if no file can be written in it."""
    if not (folder := folder_of(settings)):
        return
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"motion")
    except OSError as error:
        raise cannot_keep(folder, error) from error


def cannot_keep(folder: Path, error: OSError) -> NotReady:
    """The error for a folder that a worker cannot use."""
    return NotReady(
        f"motion features cannot be kept in {folder} ({error.strerror}); make it writable, free its disk, or give "
        "another folder, the same for all workers (MOTION_REWARD_FEATURE_DIR)"
    )
