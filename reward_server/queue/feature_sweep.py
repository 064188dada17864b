"""Deletes files of kept motion that nothing in Redis refers to: of expired runs, and of writes that were cut short.

A file that Redis refers to is touched now and then, and any other is deleted once it has not been touched for
feature_ttl_s, and for LEAST_S at least. So a worker has time to store the reference to a file that it has just written.
Only the folder of this Redis is swept (feature_folder.py). Times are those of the folder's clock, because machines need
not agree.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from reward_server.queue.feature_folder import FeatureFolder, cannot_keep, folder_of
from reward_server.queue.features import REFERENCE, Part
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.sweep import Sweep
from reward_server.settings import Settings

LEAST_S = 3600.0
STEP = 256  # files that are looked up in Redis together
LONGEST_LINE = 8192
OURS = re.compile(r"[0-9a-f]{32}")  # a file of features.py

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class OldFile:
    """A file that has not been touched for a while."""

    path: Path
    age_s: float
    part: Part | None  # None if its first line is not whole


def feature_sweep(link: RedisLink, keys: Keys, settings: Settings) -> Sweep | None:
    """The sweep of a worker's folder, if it has one."""
    if not (folder := folder_of(settings)):
        return None
    files = FeatureFiles(link, keys, FeatureFolder(link, keys, folder), life_s=max(LEAST_S, settings.feature_ttl_s))
    return Sweep("files of motion features", files.tidy, files.life_s / 4)


class FeatureFiles:
    """The files of kept motion in a folder, which live `life_s` after they were last touched."""

    def __init__(self, link: RedisLink, keys: Keys, folder: FeatureFolder, *, life_s: float) -> None:
        self._link, self._keys, self._folder, self.life_s = link, keys, folder, life_s
        self._failures: list[OSError] = []  # of this round

    async def tidy(self) -> None:
        """Touch files that Redis refers to, and delete old ones to which it does not. Raises NotReady."""
        self._failures.clear()
        try:
            folder = await self._folder.path()
            old, num_deleted = await asyncio.to_thread(lambda: list(self._old(folder))), 0
        except OSError as error:
            raise cannot_keep(self._folder.home, error) from error
        for start in range(0, len(old), STEP):
            step = old[start : start + STEP]
            num_deleted += await asyncio.to_thread(self._settle, step, await self._named(step))
        if num_deleted:
            log.info("deleted files of motion that no run refers to", files=num_deleted, folder=str(folder))
        if self._failures:
            told = "cannot sweep some files of motion; run all workers as one user, and give it these files"
            log.warning(told, files=len(self._failures), one=str(self._failures[0]))

    def _old(self, folder: Path) -> Iterator[OldFile]:
        clock = folder / ".clock"
        clock.touch(mode=0o600)
        now_s = clock.stat().st_mtime
        for entry in os.scandir(folder):
            if OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with self._going_on():
                    age_s = now_s - entry.stat().st_mtime
                    if age_s > self.life_s / 2:
                        path = Path(entry.path)
                        yield OldFile(path=path, age_s=age_s, part=_part(path))

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """One bad file must not hold up the others."""
        try:
            yield
        except FileNotFoundError:
            pass  # another worker has just deleted it
        except OSError as error:
            self._failures.append(error)

    async def _named(self, files: Sequence[OldFile]) -> set[str]:
        """The names of files that Redis refers to, in the places where these would be referred to."""
        places = [place for file in files if file.part for place in self._places(file.part)]
        values = await self._link.hash_values(places) if places else []
        references = (REFERENCE.fullmatch(value) for value in values if value)
        return {reference[1].decode() for reference in references if reference}

    def _places(self, part: Part) -> tuple[tuple[str, str], tuple[str, str]]:
        of_clip = self._keys.part(part.member, part.origin, part.run_id)
        return of_clip, (self._keys.anchor(part.origin, part.run_id), part.member[1:])

    def _settle(self, files: Sequence[OldFile], named: set[str]) -> int:
        """Touch or delete each file. Returns how many were deleted."""
        num_deleted = 0
        for file in files:
            with self._going_on():
                if file.path.name in named:
                    os.utime(file.path)
                elif file.age_s > self.life_s:
                    file.path.unlink()
                    num_deleted += 1
        return num_deleted


def _part(path: Path) -> Part | None:
    with path.open("rb") as file:
        return Part.of_line(file.readline(LONGEST_LINE))
