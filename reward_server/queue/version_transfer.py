"""Sends the files of a run's version, and takes them back after Redis lost them.

A version that is taken back is checked as it arrives: its size, its digests, and that a live worker can load it. It is
published in one transaction (lua/restore_version.lua).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from protos.types import Model, VersionHeader
from reward_server.errors import BadRequest, NotReady, RequestTooLarge, VersionConflict
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.records import pack_refreshed
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.run_store import RUN_LABEL, STAGE_S, RunStore
from reward_server.queue.version_history import VersionHistory
from reward_server.settings import Settings
from reward_server.weights_file import WeightsHeader, header_of

File = Literal["scoring", "training"]
PART_BYTES = 1024**2


class VersionTransfer:
    """Fetches and restores versions of runs. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings, store: RunStore) -> None:
        self._link, self._keys, self._settings, self._store = link, keys, settings, store
        self._history = VersionHistory(link, keys)

    async def header(self, run_id: str, version: str) -> VersionHeader:
        """Describe a version of this run. Raises VersionNotServed."""
        found = await self._history.version(version)
        if found.run_id != run_id:
            raise self._store.not_kept(version)
        [[digest]] = await self._link.hash_rows([self._keys.version(version)], "training_digest")
        kept = await self._link.list_items(self._keys.training(version), 0, 0)
        return VersionHeader(
            run_id=run_id,
            version=version,
            base=found.version.base,
            preprocessing_digest=found.version.preprocessing_digest,
            number=found.version.number,
            scoring_digest=found.version.digest,
            training_digest=digest.decode() if digest and kept else "",
            record=found.training,
        )

    async def file(self, version: str, file: File) -> AsyncIterator[bytes]:
        """The chunks of one of a version's files. Raises VersionNotServed if it is not kept."""
        key = self._key(version, file)
        at = 0
        while chunks := await self._link.list_items(key, at, at):
            for start in range(0, len(chunks[0]), PART_BYTES):
                yield chunks[0][start : start + PART_BYTES]
            at += 1
        if not at:
            raise self._store.not_kept(version)

    def _key(self, version: str, file: File) -> str:
        return self._keys.discriminators(version) if file == "scoring" else self._keys.training(version)

    async def restoring(self, header: VersionHeader, models: Sequence[Model]) -> Restoring | None:
        """Begin to take a version back. None if the server has it.

        Raises BadRequest if its name is not of the run, or no worker can load it, NotReady without a worker, and
        VersionConflict if another version has its name.
        """
        self._check_header(header, models)
        if await self._has(header):
            return None
        return Restoring(link=self._link, keys=self._keys, settings=self._settings, header=header, models=models)

    async def _has(self, header: VersionHeader) -> bool:
        [[run, digest]] = await self._link.hash_rows([self._keys.version(header.version)], "run", "digest")
        if run is None:
            return False
        if run.decode() != header.run_id or (digest or b"").decode() != header.scoring_digest:
            raise conflict(header)
        return bool(await self._link.list_items(self._keys.discriminators(header.version), 0, 0))

    def _check_header(self, header: VersionHeader, models: Sequence[Model]) -> None:
        label = f"{header.base}+{header.run_id[:RUN_LABEL]}.{header.number}-"
        if not (header.base and header.number > 0 and header.version.startswith(label)):
            raise BadRequest(
                f"version '{header.version}' is not one of run '{header.run_id}', whose number {header.number} begins "
                f"with '{label}'; restore a version under the run that it was fetched from"
            )
        if not models:
            raise NotReady("no live worker can tell whether it could load the version; start one first")
        if not any(model.preprocessing_digest == header.preprocessing_digest for model in models):
            raise BadRequest(
                f"version '{header.version}' was trained on other motion features than any live worker computes; start "
                "a worker of the release that it comes from"
            )


@dataclass(kw_only=True)
class Restoring:
    """A version that is being taken back. Add the chunks of both files in order, then `finish`."""

    link: RedisLink
    keys: Keys
    settings: Settings
    header: VersionHeader
    models: Sequence[Model]
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    num_bytes: int = 0

    def __post_init__(self) -> None:
        self._digests = {"scoring": hashlib.sha256(), "training": hashlib.sha256()}
        self._starts: dict[File, bytes] = {"scoring": b"", "training": b""}
        self._headers: dict[File, WeightsHeader] = {}
        self._sizes: dict[File, int] = {"scoring": 0, "training": 0}
        self._num_chunks: dict[File, int] = {"scoring": 0, "training": 0}

    async def add(self, file: File, chunk: bytes) -> None:
        """Take the next chunk of a file. Raises RequestTooLarge, BadRequest, and Overloaded if Redis is full."""
        self.num_bytes += len(chunk)
        if self.num_bytes > (limit := self.settings.restore_max_bytes):
            raise RequestTooLarge(f"the version has over {limit} bytes, the limit (restore_max_bytes); raise it")
        self._digests[file].update(chunk)
        self._sizes[file] += len(chunk)
        if file not in self._headers:
            self._starts[file] += chunk
            if found := header_of(self._starts[file]):
                self._check_file(file, found)
                self._headers[file], self._starts[file] = found, b""
        await self.link.append(self.keys.restoring(self.token, file), chunk, life_s=STAGE_S)
        self._num_chunks[file] += 1

    def _check_file(self, file: File, found: WeightsHeader) -> None:
        ours, told = self.header, f"the {file} file of version '{self.header.version}'"
        wanted = {"version": ours.version, "preprocessing_digest": ours.preprocessing_digest}
        if wrong := [name for name, value in wanted.items() if found.metadata.get(name) != value]:
            raise BadRequest(
                f"{told} says another {' and '.join(wrong)} than its header; send the file as it was fetched"
            )
        fits = {model.architecture_digest for model in self.models if self._loads(model)}
        if "" not in fits and found.architecture_digest not in fits:
            raise BadRequest(f"{told} holds discriminators of another architecture than any live worker has loaded")

    def _loads(self, model: Model) -> bool:
        return model.preprocessing_digest == self.header.preprocessing_digest

    async def finish(self) -> bool:
        """Publish the version. False if the server has got it meanwhile. Raises BadRequest and VersionConflict."""
        wanted: dict[File, str] = {"scoring": self.header.scoring_digest, "training": self.header.training_digest}
        for file, digest in wanted.items():
            self._check_whole(file, digest)
        header, limits = self.header, self.settings
        verdict = await self.link.run(
            scripts.RESTORE_VERSION,
            self.token,
            header.run_id,
            header.version,
            header.scoring_digest,
            header.training_digest,
            header.base,
            header.preprocessing_digest,
            header.number,
            pack_refreshed(header.record),
            limits.versions_kept,
            limits.version_ttl_s,
            self._num_chunks["scoring"],
            self._num_chunks["training"],
        )
        if verdict == b"other":
            raise conflict(header)
        if verdict == b"gone":
            raise NotReady(f"Redis lost version '{header.version}' while it was restored; send it again")
        return bool(verdict == b"restored")

    def _check_whole(self, file: File, digest: str) -> None:
        size, found = self._sizes[file], self._headers.get(file)
        if not size and not digest and file == "training":
            return
        if found is None or found.num_bytes != size or self._digests[file].hexdigest() != digest:
            raise BadRequest(
                f"the {file} file of version '{self.header.version}' arrived with {size} bytes and is not the one that "
                f"its digest {digest[:12]} names; send it again"
            )

    async def drop(self) -> None:
        """Remove what was taken, if it was not published."""
        await self.link.drop([self.keys.restoring(self.token, file) for file in ("scoring", "training")])


def conflict(header: VersionHeader) -> VersionConflict:
    """The error for a name that another version has."""
    return VersionConflict(f"another version is called '{header.version}'; it is left as it is")
