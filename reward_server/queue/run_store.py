"""Stores in Redis what a training run needs for refreshes: its discriminator versions, and the motion of its clips.

The motion is in run_motion.py. Keys and their lifetimes are in keys.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reward_server.errors import RefreshFailed, VersionNotServed
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.run_motion import RunMotion
from reward_server.settings import Settings

STAGE_S = 600
RUN_LABEL = 64  # characters of a run's id in the names of its versions


@dataclass(frozen=True, kw_only=True)
class Version:
    """A published discriminator version of a run."""

    name: str
    digest: str  # sha256 of the file its discriminators are in
    number: int  # 1 for the first refresh of the run
    training_digest: str = ""  # the same of the file that is trained further
    base: str = ""  # what the worker had loaded that trained it
    preprocessing_digest: str = ""  # of the workers that can load it; empty: any worker may try


class RunStore:
    """The runs' versions, and their motion. Both sides of the queue have one. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings
        self.motion = RunMotion(link, keys, settings)

    async def now_ms(self) -> int:
        """The time on Redis's clock."""
        return int(await self._link.now_s() * 1000)

    async def touch(self, run_id: str) -> None:
        """Note a sign of life of the run: its motion and its versions are kept as long as after a clip."""
        await self._link.run(scripts.TOUCH_RUN, run_id, self._settings.feature_ttl_s, self._settings.version_ttl_s)

    async def latest(self, run_id: str) -> Version | None:
        """The run's latest version. None before its first refresh."""
        names = await self._link.list_items(self._keys.versions(run_id), 0, 0) if run_id else []
        if not names:
            return None
        name = names[0].decode()
        [[digest, number]] = await self._link.hash_rows([self._keys.version(name)], "digest", "number")
        if digest is None or number is None:
            return None  # it has just expired
        return Version(name=name, digest=digest.decode(), number=int(number))

    async def next_number(self, run_id: str) -> int:
        """The number of the run's next version: one more than that of any that is kept."""
        names = [name.decode() for name in await self._link.list_items(self._keys.versions(run_id), 0, -1)]
        rows = await self._link.hash_rows([self._keys.version(name) for name in names], "number")
        return 1 + max((int(number) for [number] in rows if number), default=0)

    async def discriminators(self, version: str) -> bytes:
        """The file of a version's discriminators. Raises VersionNotServed if it is not kept."""
        data = await self._link.get_large(self._keys.discriminators(version))
        if data is None:
            raise self.not_kept(version)
        return data

    def not_kept(self, version: str) -> VersionNotServed:
        """The error for a version that there is not."""
        return VersionNotServed(
            f"discriminator version '{version}' is not kept: it never existed, it has expired, or it is not among "
            f"the {self._settings.versions_kept} latest of its run (versions_kept) and nothing was bound to it; "
            "pin a later one, or pin none"
        )

    async def runs_of(self, versions: Sequence[str]) -> dict[str, str]:
        """The run of each version that was made by a refresh and is kept."""
        rows = await self._link.hash_rows([self._keys.version(version) for version in versions], "run")
        return {version: run.decode() for version, [run] in zip(versions, rows, strict=True) if run is not None}

    async def training(self, version: str) -> bytes:
        """The weights from which a version is trained further. Raises RefreshFailed if they are not kept."""
        data = await self._link.get_large(self._keys.training(version))
        if data is None:
            raise RefreshFailed(
                f"the training weights of version '{version}' are gone from Redis; check that it is set to noeviction"
            )
        return data

    async def stage(self, version: str, discriminators: bytes, training: bytes) -> None:
        """Store a candidate's files. `RefreshWork.publish` then makes them the run's latest version.

        Files that are not published within STAGE_S seconds expire.
        """
        await self._link.put_large(self._keys.discriminators(version), discriminators, life_s=STAGE_S)
        await self._link.put_large(self._keys.training(version), training, life_s=STAGE_S)
