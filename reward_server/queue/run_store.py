"""Stores in Redis what a training run needs for refreshes: the motion of its clips, and discriminator versions.

The motion is that of a random sample of the clips (lua/shared/reservoir.lua). A worker stores it before it settles the
job. A caller who has all outcomes of a buffer can therefore ask for a refresh at once. Keys and their lifetimes are in
keys.py.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from protos.types import Origin
from reward_server.errors import RefreshFailed, VersionNotServed
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.reservoir import Drawn, KeptClip, chosen
from reward_server.settings import Settings

STAGE_S = 600
RUN_LABEL = 64  # characters of a run's id in the names of its versions
READ_PARTS = 16


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
    """The runs' clips and versions. Both sides of the queue have one. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings

    async def keep_clip(
        self,
        run_id: str,
        origin: Origin,
        job_id: str,
        parts: Sequence[bytes],
        *,
        group_id: str = "",
        clip_key: str = "",
    ) -> bool:
        """Let a clip take part in the draw of those that a refresh of the run trains on, and keep it if it is drawn.

        `parts` are those of `pack_clip`. `clip_key` names the clip, also if another job scores it. A second call for
        the same clip changes nothing. False if the first part alone is larger than feature_max_bytes. Raises Overloaded
        if Redis is full.
        """
        limits, drawn = self._settings, Drawn.of(run_id, job_id, group_id, clip_key)
        share = f"{limits.feature_older_share:.6f}"
        bounds = (limits.feature_max_clips, limits.feature_max_bytes, share, limits.feature_ttl_s)
        asked = (run_id, origin.value, drawn.name, drawn.group, *bounds)
        wanted = int(await self._link.run(scripts.PLACE_CLIP, *asked, *map(len, parts)))
        if wanted > 0:  # most clips of a large buffer are not, so they are not sent
            await self._link.run(scripts.KEEP_CLIP, *asked, limits.version_ttl_s, *parts[:wanted])
        return wanted >= 0

    async def miss_clip(self, run_id: str, origin: Origin, job_id: str, *, clip_key: str = "") -> None:
        """Note that a clip was scored, but is not kept. This works in a full Redis too."""
        name = Drawn.of(run_id, job_id, "", clip_key).name
        await self._link.run(scripts.MISS_CLIP, run_id, origin.value, name, self._settings.feature_ttl_s)

    async def missing(self, run_id: str, origin: Origin) -> tuple[str, ...]:
        """The jobs noted by `miss_clip` since the run's latest version was published, oldest first: the last 1024."""
        [latest] = await self._link.list_items(self._keys.versions(run_id), 0, 0) or [b""]
        [[published_ms]] = await self._link.hash_rows([self._keys.version(latest.decode())], "published_ms")
        return await self._link.since(self._keys.missing(origin.value, run_id), int(published_ms or 0))

    async def now_ms(self) -> int:
        """The time on Redis's clock."""
        return int(await self._link.now_s() * 1000)

    async def num_scored(self, run_id: str, origin: Origin, until_ms: int) -> int:
        """How many of the run's clips were scored since its latest refresh, until a time on Redis's clock."""
        return await self._link.count_until(self._keys.kept("scored", origin.value, run_id), until_ms)

    async def clips(self, run_id: str, origin: Origin, most: int = 0) -> list[KeptClip]:
        """The clips that a refresh of the run trains on, at most `most` (0: no limit), newer ones first.

        Clips of all groups come before second clips of a group.
        """
        newer, older = [await self._members(age, run_id, origin) for age in ("newer", "older")]
        firsts = [[member for member in members if member[0] == "0"] for members in (newer, older)]
        share, at_least = self._settings.feature_older_share, self._settings.refresh_min_clips
        drawn = chosen(*firsts, most=most, share=share, at_least=at_least)
        parts = await self._parts(run_id, origin, {first[1:] for firsts in drawn for first in firsts}, [*newer, *older])
        return [
            KeptClip(name=first[1:], parts=parts[first[1:]], older=at == 1)
            for at, firsts in enumerate(drawn)
            for first in firsts
            if parts[first[1:]]  # it may just have made room for another one
        ]

    async def touch(self, run_id: str) -> None:
        """Note a sign of life of the run: its motion and its versions are kept as long as after a clip."""
        await self._link.run(scripts.TOUCH_RUN, run_id, self._settings.feature_ttl_s, self._settings.version_ttl_s)

    async def freeze_anchor(self, run_id: str, names: Sequence[str]) -> None:
        """Move these clips out of the run's reservoir, to its anchor set. A run that has one keeps it."""
        await self._link.run(scripts.FREEZE_ANCHOR, run_id, self._settings.version_ttl_s, *names)

    async def anchor(self, run_id: str, origin: Origin) -> list[bytes]:
        """The first parts of the clips of the run's anchor set, in the order of their names."""
        held = await self._link.hash_items(self._keys.anchor(origin.value, run_id))
        return [held[name] for name in sorted(held)]

    async def _members(self, age: str, run_id: str, origin: Origin) -> tuple[str, ...]:
        """The parts of newer or older clips in the order of the reservoir."""
        return await self._link.since(self._keys.kept(age, origin.value, run_id), 0)

    async def _parts(
        self, run_id: str, origin: Origin, names: Set[str], members: Sequence[str]
    ) -> dict[str, tuple[bytes, ...]]:
        """The leading parts of each named clip that are still kept."""
        wanted = [member for member in members if member[1:] in names]  # by part, so each clip's are in order
        found: dict[str, list[bytes]] = {name: [] for name in names}
        for start in range(0, len(wanted), READ_PARTS):  # in steps, so that Redis can answer others in between
            step = wanted[start : start + READ_PARTS]
            for member, data in zip(
                step, await self._link.hash_values(self._places(run_id, origin, step)), strict=True
            ):
                if data is not None and len(found[member[1:]]) == int(member[0]):
                    found[member[1:]].append(data)
        return {name: tuple(parts) for name, parts in found.items()}

    def _places(self, run_id: str, origin: Origin, members: Sequence[str]) -> list[tuple[str, str]]:
        """The hash and the field of each part, as in reservoir.lua."""
        clips, more = (self._keys.kept(kind, origin.value, run_id) for kind in ("clips", "more"))
        return [(clips, m[17:]) if m[0] == "0" else (more, m[0] + m[17:]) for m in members]

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
