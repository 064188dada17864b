"""Bounds what the uploads of all requests take: memory while they arrive, disk beyond it, and memory for admission.

An upload collects in a Spool. Once it is complete, it waits for its turn (`hold`) before its clips are made, so that
only as many bytes are on their way into the queue as the memory allows. A caller who is slow, or never ends, holds a
spool, but no turn.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import IO, Self

from reward_server.errors import NotReady, Overloaded
from reward_server.settings import Settings

READ_BYTES = 1024**2
RETRY_S = 5.0


class UploadRoom:
    """The memory and the disk for the uploads of one process."""

    def __init__(self, settings: Settings) -> None:
        arriving = settings.upload_memory_bytes // 4
        self.memory = Budget(arriving)
        self.disk = Budget(settings.upload_disk_bytes)
        self.folder = settings.upload_folder
        self._turns = Turns(settings.upload_memory_bytes - arriving)

    def spool(self) -> Spool:
        return Spool(self)

    async def hold(self, num_bytes: int) -> Held:
        """Wait for the turn of an upload of that size. Uploads go in the order in which they ask."""
        return await self._turns.take(num_bytes)


class Budget:
    """A number of bytes that may be taken, and are given back."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, num_bytes: int) -> bool:
        """Take the bytes, or none of them if they are more than what is left."""
        if self.taken + num_bytes > self.limit:
            return False
        self.taken += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        self.taken -= num_bytes


class Spool:
    """The bytes of one upload: in memory while there is room for the uploads of all requests, else on disk.

    The file has no name, so nothing is left of it when the process ends. Use it in a `with` block.
    """

    def __init__(self, room: UploadRoom) -> None:
        self.num_bytes = 0
        self._room = room
        self._pieces: deque[bytes] = deque()
        self._in_memory = self._on_disk = 0
        self._file: IO[bytes] | None = None

    async def add(self, chunk: bytes) -> None:
        """Append a chunk. Raises Overloaded if the disk for uploads is used up, and NotReady if it cannot be used."""
        self.num_bytes += len(chunk)
        if self._file is None and self._room.memory.take(len(chunk)):
            self._in_memory += len(chunk)
            self._pieces.append(chunk)
        else:
            await self._write([*self._pieces, chunk])
            self._free_memory()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The bytes in order, once. What was in memory is freed on the way."""
        while self._pieces:
            yield self._pieces.popleft()
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            while piece := await asyncio.to_thread(self._file.read, READ_BYTES):
                yield piece

    async def clips(self, sizes: list[int]) -> list[bytes]:
        """The bytes as payloads of these sizes, each of which ends where a chunk ended."""
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            return [await asyncio.to_thread(self._file.read, size) for size in sizes]
        return [b"".join(self._taken(size)) for size in sizes]

    def _taken(self, num_bytes: int) -> list[bytes]:
        pieces: list[bytes] = []
        while num_bytes > 0:
            pieces.append(self._pieces.popleft())
            num_bytes -= len(pieces[-1])
        return pieces

    async def _write(self, pieces: list[bytes]) -> None:
        num_bytes, disk = sum(map(len, pieces)), self._room.disk
        if not disk.take(num_bytes):
            raise Overloaded(
                f"the uploads on disk hold {disk.taken} of {disk.limit} bytes (upload_disk_bytes); "
                f"retry in {RETRY_S:.0f} s",
                retry_after_s=RETRY_S,
            )
        self._on_disk += num_bytes
        try:
            await asyncio.to_thread(self._append, pieces)
        except OSError as error:
            raise NotReady(
                f"the server cannot write an upload to {self._room.folder}: {error.strerror}; free its disk, or set "
                "MOTION_REWARD_UPLOAD_DIR"
            ) from error

    def _append(self, pieces: list[bytes]) -> None:
        if self._file is None:
            self._room.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._room.folder)  # noqa: SIM115 - `__exit__` closes it
        self._file.writelines(pieces)

    def _free_memory(self) -> None:
        self._pieces.clear()
        self._room.memory.give_back(self._in_memory)
        self._in_memory = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._free_memory()
        if self._file is not None:
            self._file.close()
        self._room.disk.give_back(self._on_disk)
        self._on_disk = 0


class Held:
    """A turn, which ends with the `with` block, or earlier with `release`."""

    def __init__(self, turns: Turns, num_bytes: int) -> None:
        self._turns, self._num_bytes = turns, num_bytes

    def release(self) -> None:
        """Let the next one go. Further calls do nothing."""
        held, self._num_bytes = self._num_bytes, 0
        self._turns.give_back(held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


class Turns:
    """Lets uploads go in order while their bytes together stay within a limit. One over the limit goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, num_bytes: int) -> Held:
        num_bytes = min(num_bytes, self._limit)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((num_bytes, turn))
        self._let_go()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._let_go()  # it may have stood before smaller ones
            else:  # its turn came at the same time
                self.give_back(num_bytes)
            raise
        return Held(self, num_bytes)

    def give_back(self, num_bytes: int) -> None:
        self._held -= num_bytes
        self._let_go()

    def _let_go(self) -> None:
        while self._waiting:
            num_bytes, turn = self._waiting[0]
            if not turn.cancelled() and self._held + num_bytes > self._limit:
                return
            self._waiting.popleft()
            if not turn.cancelled():
                self._held += num_bytes
                turn.set_result(None)
