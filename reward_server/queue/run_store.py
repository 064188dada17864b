"""Stores in Redis what a training run needs for refreshes: the motion of recent clips, and discriminator versions.

A worker stores the packed motion of a scored clip before it settles the job. A caller who has all
outcomes of a buffer can therefore ask for a refresh at once. Keys and their lifetimes are in keys.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.types import Origin
from reward_server.errors import RefreshFailed, VersionNotServed
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.settings import Settings

STAGE_S = 600
READ_CLIPS = 16


@dataclass(frozen=True, kw_only=True)
class Version:
    """A published discriminator version of a run."""

    name: str
    digest: str  # sha256 of the file its discriminators are in
    number: int  # 1 for the first refresh of the run


class RunStore:
    """The runs' clips and versions. Both sides of the queue have one. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings

    async def keep_clip(self, run_id: str, origin: Origin, job_id: str, packed: bytes) -> None:
        """Add a clip to those that a refresh of the run trains on. A second call for the same job changes nothing."""
        limits = self._settings
        await self._link.run(
            scripts.KEEP_CLIP,
            run_id,
            origin.value,
            job_id,
            packed,
            limits.feature_max_clips,
            limits.feature_max_bytes,
            limits.feature_ttl_s,
            limits.version_ttl_s,
        )

    async def clips(self, run_id: str, origin: Origin, newest: int = 0) -> list[bytes]:
        """Packed motion of the run's `newest` newest clips, oldest first. 0 means all that are kept."""
        order = await self._link.list_items(self._keys.clip_order(origin.value, run_id), -newest, -1)
        jobs = [job.decode() for job in order]
        clips = []
        for start in range(0, len(jobs), READ_CLIPS):  # in parts, so that Redis can answer others in between
            names = jobs[start : start + READ_CLIPS]
            [row] = await self._link.hash_rows([self._keys.clips(origin.value, run_id)], *names)
            clips += [packed for packed in row if packed]
        return clips

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

    async def discriminators(self, version: str) -> bytes:
        """The file of a version's discriminators. Raises VersionNotServed if it is not kept."""
        data = await self._link.get_large(self._keys.discriminators(version))
        if data is None:
            raise VersionNotServed(
                f"discriminator version '{version}' is not kept: it never existed, it has expired, or it is not among "
                f"the {self._settings.versions_kept} latest of its run (versions_kept); pin a later one, or pin none"
            )
        return data

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
