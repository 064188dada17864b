"""What Redis keeps of a training run for its refreshes: recent clips' motion, and discriminator versions.

A worker puts the packed motion of a scored clip here before it settles the job, so that whoever has the
outcomes of a buffer can have it refreshed. Keys and their lifetimes: keys.py.
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
    """Part of both sides of the queue. Methods raise NotReady while Redis is unreachable."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings

    async def keep_clip(self, run_id: str, origin: Origin, job_id: str, packed: bytes) -> None:
        """Add a clip to what a refresh of the run trains on; once, however often it is called."""
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
        """Packed motion of the run's clips, oldest first; of the `newest` so many, 0: of all that are kept."""
        order = await self._link.list_items(self._keys.clip_order(origin.value, run_id), -newest, -1)
        jobs = [job.decode() for job in order]
        clips = []
        for start in range(0, len(jobs), READ_CLIPS):  # in parts, to let others have their answers in between
            names = jobs[start : start + READ_CLIPS]
            [row] = await self._link.hash_rows([self._keys.clips(origin.value, run_id)], *names)
            clips += [packed for packed in row if packed]
        return clips

    async def latest(self, run_id: str) -> Version | None:
        """None before the run's first refresh."""
        names = await self._link.list_items(self._keys.versions(run_id), 0, 0) if run_id else []
        if not names:
            return None
        name = names[0].decode()
        [[digest, number]] = await self._link.hash_rows([self._keys.version(name)], "digest", "number")
        if digest is None or number is None:
            return None  # it has just expired
        return Version(name=name, digest=digest.decode(), number=int(number))

    async def discriminators(self, version: str) -> bytes:
        """The file of a version's discriminators. Raises VersionNotServed when it is not kept."""
        data = await self._link.get_large(self._keys.discriminators(version))
        if data is None:
            raise VersionNotServed(
                f"discriminator version '{version}' is not served: it never was, or its run has gone on by "
                f"{self._settings.versions_kept} versions (versions_kept); pin a later one, or leave the pin out"
            )
        return data

    async def training(self, version: str) -> bytes:
        """The weights a version is trained further from. Raises RefreshFailed when they are not kept."""
        data = await self._link.get_large(self._keys.training(version))
        if data is None:
            raise RefreshFailed(f"version '{version}' has lost its training weights; see whether Redis evicts keys")
        return data

    async def stage(self, version: str, discriminators: bytes, training: bytes) -> None:
        """Put a candidate's files where `RefreshWork.publish` makes them the run's latest version."""
        await self._link.put_large(self._keys.discriminators(version), discriminators, life_s=STAGE_S)
        await self._link.put_large(self._keys.training(version), training, life_s=STAGE_S)
