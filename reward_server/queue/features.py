"""Says where the bytes of kept motion are: in Redis, or in files of a folder that all workers share.

What Redis holds for a part of a clip is its value: the bytes, or a short reference to a file with its digest. The
scripts need not know which (lua/shared/reservoir.lua). A worker with the folder reads both. feature_sweep.py deletes
files that no reference names any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import structlog

from reward_server.errors import NotReady, RefreshFailed
from reward_server.replacing import replacing
from reward_server.settings import Settings

REFERENCE = re.compile(rb"file:([0-9a-f]{32}):([0-9a-f]{64})")  # the name and the digest; no packed motion begins so

log = structlog.get_logger(__name__)


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
        """None if the line is not whole."""
        with suppress(ValueError, TypeError):
            return cls(**json.loads(line))
        return None


class Features(Protocol):
    """Where the bytes of kept motion are."""

    async def put(self, run_id: str, origin: str, name: str, parts: Sequence[bytes]) -> list[bytes]:
        """Store the parts of a clip, by its name in the reservoir, and return their values. Raises OSError."""

    async def get(self, values: Sequence[bytes]) -> list[bytes | None]:
        """The bytes of each value: None if they are gone or damaged. Raises RefreshFailed if they cannot be read."""

    async def drop(self, values: Sequence[bytes]) -> None:
        """Delete what the values refer to."""


def features_of(settings: Settings) -> Features:
    """Where these settings keep motion."""
    folder = folder_of(settings)
    return InFolder(folder) if folder else InRedis()


def folder_of(settings: Settings) -> Path | None:
    """The folder for the motion of the served profile, if it is to be kept in files."""
    return settings.feature_dir / settings.profile if settings.feature_dir else None


def check_folder(settings: Settings) -> None:
    """Raises NotReady if motion is to be kept in a folder in which no file can be written."""
    if not (folder := folder_of(settings)):
        return
    try:
        path = folder / f"{uuid.uuid4().hex}.check"
        with replacing(path) as partial:
            partial.write_bytes(b"motion")
        path.unlink()
    except OSError as error:
        raise NotReady(
            f"motion features cannot be kept in {folder} ({error.strerror}); make it writable, give another folder "
            "(MOTION_REWARD_FEATURE_DIR), or unset it to keep them in Redis"
        ) from error


class InRedis:
    """The values are the bytes."""

    async def put(self, run_id: str, origin: str, name: str, parts: Sequence[bytes]) -> list[bytes]:
        return list(parts)

    async def get(self, values: Sequence[bytes]) -> list[bytes | None]:
        num = sum(REFERENCE.fullmatch(value) is not None for value in values)
        if num:
            raise RefreshFailed(
                "other workers keep motion of this run in files, and this worker has no folder for them; set "
                "MOTION_REWARD_FEATURE_DIR to the same folder for all workers, then refresh again"
            )
        return list(values)

    async def drop(self, values: Sequence[bytes]) -> None:
        """Files of other workers: their sweep deletes them."""


class InFolder:
    """Each part is a file with a name of its own. The values refer to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, run_id: str, origin: str, name: str, parts: Sequence[bytes]) -> list[bytes]:
        lines = [Part(run_id=run_id, origin=origin, member=f"{at}{name}").line() for at in range(len(parts))]
        return await asyncio.to_thread(self._write, lines, parts)

    async def get(self, values: Sequence[bytes]) -> list[bytes | None]:
        return await asyncio.to_thread(lambda: [self._read(value) for value in values])

    async def drop(self, values: Sequence[bytes]) -> None:
        await asyncio.to_thread(self._unlink, values)

    def _write(self, lines: Sequence[bytes], parts: Sequence[bytes]) -> list[bytes]:
        values: list[bytes] = []
        try:
            for line, data in zip(lines, parts, strict=True):
                name, digest = uuid.uuid4().hex, hashlib.sha256(line)
                digest.update(data)
                with replacing(self._folder / name) as partial, partial.open("wb") as file:
                    file.writelines((line, data))
                values.append(f"file:{name}:{digest.hexdigest()}".encode())
        except OSError:
            self._unlink(values)
            raise
        return values

    def _read(self, value: bytes) -> bytes | None:
        reference = REFERENCE.fullmatch(value)
        if not reference:
            return value  # a worker without the folder kept it
        path, digest = self._folder / reference[1].decode(), reference[2].decode()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            log.warning("a file of kept motion is gone", file=str(path))
            return None
        except OSError as error:
            raise RefreshFailed(
                f"motion features in {path} cannot be read ({error.strerror}); make the folder of "
                "MOTION_REWARD_FEATURE_DIR readable, then refresh again"
            ) from error
        if hashlib.sha256(content).hexdigest() != digest:
            log.warning("a file of kept motion is damaged: it has another digest than its reference", file=str(path))
            return None
        return content.partition(b"\n")[2]

    def _unlink(self, values: Sequence[bytes]) -> None:
        """Delete the files. What cannot be deleted now is left to the sweep."""
        for value in values:
            if reference := REFERENCE.fullmatch(value):
                with suppress(OSError):
                    (self._folder / reference[1].decode()).unlink(missing_ok=True)
