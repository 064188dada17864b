"""Gives a worker the discriminators of a version: the ones it has loaded, or those of a run, loaded from Redis."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from protos.types import Model
from reward_server.errors import NotReady, VersionNotServed
from reward_server.queue.run_store import RunStore

InThread = Callable[[Callable[[bytes], Any], bytes], Awaitable[Any]]


class DiscriminatorsLoader(Protocol):
    """The part of pipeline.Pipeline that is used here."""

    @property
    def model(self) -> Model: ...
    def discriminators_of(self, data: bytes) -> Any: ...


class Versions:
    """Keeps the `num_kept` versions that were used last. Callers may go on using older ones that they hold."""

    def __init__(self, store: RunStore, loader: DiscriminatorsLoader, num_kept: int, in_thread: InThread) -> None:
        self._store, self._loader, self._num_kept, self._in_thread = store, loader, num_kept, in_thread
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._loading = asyncio.Lock()

    async def discriminators(self, version: str) -> Any:
        """The discriminators of a version. None for the version that the worker has loaded, or for "".

        Raises VersionNotServed if the version is not kept or does not fit, and NotReady while Redis is unreachable.
        """
        if version in ("", self._loader.model.discriminator_version):
            return None
        async with self._loading:  # many jobs of a new version come at once, but only the first one loads it
            if version not in self._kept:
                data = await self._store.discriminators(version)
                try:
                    self._kept[version] = await self._in_thread(self._loader.discriminators_of, data)
                except NotReady as error:  # the file does not fit this worker, so waiting would not help
                    raise VersionNotServed(f"discriminator version '{version}' cannot be served: {error}") from error
            self._kept.move_to_end(version)
            while len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
            return self._kept[version]
