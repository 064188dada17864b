"""Says where the bytes of kept motion are: in Redis, or in files of a folder that all workers share.

What Redis holds for a part of a clip is its value: the bytes, or a short reference to a file with its digest. The
scripts need not know which (lua/shared/reservoir.lua). A worker with the folder reads both. feature_folder.py finds the
folder, and feature_sweep.py deletes files that no reference names any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from reward_server.errors import RefreshFailed
from reward_server.queue.feature_folder import FeatureFolder, folder_of
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.settings import Settings

REFERENCE = re.compile(rb"file:([0-9a-f]{32}):([0-9a-f]{64})")  # the name and the digest; no packed motion begins so
MEMBER = re.compile(r"[0-7][0-9a-f]{16}.")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of which clip a file holds. This is the first line of the file."""

    run_id: str
    origin: str
    member: str  # of the reservoir

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Part | None:
        """None if the line is not whole, or not one of these."""
        with suppress(ValueError, TypeError, RecursionError):
            part = cls(**json.loads(line))
            "".join(astuple(part)).encode()  # raises, unless all are texts that Redis takes
            return part if MEMBER.match(part.member) else None
        return None


class Value(NamedTuple):
    """What lua/keep_clip.lua is told of a part."""

    size: int | str  # the bytes that a reference stands for; "" if the value is the bytes
    value: bytes


class Features(Protocol):
    """Where the bytes of kept motion are. Methods raise NotReady without Redis."""

    async def check(self) -> None:
        """Raises OSError if they cannot be there."""

    async def put(self, run_id: str, origin: str, name: str, parts: Sequence[bytes]) -> list[Value]:
        """Store the parts of a clip, by its name in the reservoir. Raises OSError."""

    async def get(self, values: Sequence[bytes]) -> list[bytes | None]:
        """The bytes of each value: None if they are gone or damaged. Raises RefreshFailed if they cannot be read."""

    async def drop(self, values: Sequence[bytes]) -> None:
        """Delete what the values refer to."""


def features_of(link: RedisLink, keys: Keys, settings: Settings) -> Features:
    """Where these settings keep motion."""
    folder = folder_of(settings)
    return InFolder(FeatureFolder(link, keys, folder)) if folder else InRedis()


class InRedis:
    """The values are the bytes."""

    async def check(self) -> None:
        """Redis says itself if it is full."""

    async def put(self, run_id: str, origin: str, name: str, parts: Sequence[bytes]) -> list[Value]:
        return [Value("", part) for part in parts]

    async def get(self, values: Sequence[bytes]) -> list[bytes | None]:
        if any(map(REFERENCE.fullmatch, values)):
            raise RefreshFailed(
                "other workers keep motion of this run in files, and this worker has no folder for them; set "
                "MOTION_REWARD_FEATURE_DIR to the same folder for all workers, then refresh again"
            )
        return list(values)

    async def drop(self, values: Sequence[bytes]) -> None:
        """Files of other workers: their sweep deletes them."""


class InFolder:
    """Each part is a file with a name of its own. The values refer to them."""

    def __init__(self, folder: FeatureFolder) -> None:
        self._folder = folder

    async def check(self) -> None:
        await self._folder.path()

    async def put(self, run_id: str, origin: str, name: str, parts: Sequence[bytes]) -> list[Value]:
        lines = [Part(run_id=run_id, origin=origin, member=f"{at}{name}").line() for at in range(len(parts))]
        return await asyncio.to_thread(_write, await self._folder.path(), lines, parts)

    async def get(self, values: Sequence[bytes]) -> list[bytes | None]:
        if not any(map(REFERENCE.fullmatch, values)):
            return list(values)  # workers without the folder kept them
        try:
            folder = await self._folder.path()
            found = await asyncio.to_thread(lambda: [_read(folder, value) for value in values])
            if None in found:
                await self._folder.path()  # a folder that has just vanished has lost no clip
        except OSError as error:
            raise RefreshFailed(
                f"motion features in {self._folder.home} cannot be read ({error.strerror}); give all workers the same "
                "folder (MOTION_REWARD_FEATURE_DIR), make it readable, then refresh again"
            ) from error
        return found

    async def drop(self, values: Sequence[bytes]) -> None:
        await asyncio.to_thread(_unlink, self._folder.latest, values)


def _write(folder: Path, lines: Sequence[bytes], parts: Sequence[bytes]) -> list[Value]:
    """Write the files to the disk. Redis refers to them only afterwards, so nobody reads half a file."""
    values: list[Value] = []
    try:
        for line, data in zip(lines, parts, strict=True):
            name, digest = uuid.uuid4().hex, hashlib.sha256(line)
            digest.update(data)
            values.append(Value(len(data), f"file:{name}:{digest.hexdigest()}".encode()))
            with open(folder / name, "xb", opener=_private) as file:
                file.writelines((line, data))
                file.flush()
                os.fsync(file.fileno())
        _sync(folder)
    except OSError:
        _unlink(folder, [value for _, value in values])
        raise
    return values


def _sync(folder: Path) -> None:
    """Write the names of new files to the disk."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read(folder: Path, value: bytes) -> bytes | None:
    """The bytes of a value. None if its file is gone, or has another digest."""
    reference = REFERENCE.fullmatch(value)
    if not reference:
        return value
    try:
        content = (folder / reference[1].decode()).read_bytes()
    except FileNotFoundError:
        return None
    whole = hashlib.sha256(content).hexdigest() == reference[2].decode()
    return content.partition(b"\n")[2] if whole else None


def _unlink(folder: Path, values: Sequence[bytes]) -> None:
    """Delete the files. What cannot be deleted now is left to the sweep."""
    for value in values:
        if reference := REFERENCE.fullmatch(value):
            with suppress(OSError):
                (folder / reference[1].decode()).unlink(missing_ok=True)
