"""Keeps the motion of a run's clips, on which its refreshes train, and of its anchor set.

It is that of a random sample of the clips (lua/shared/reservoir.lua), in Redis or in files (features.py). A worker
stores it before it settles the job. A caller who has all outcomes of a buffer can therefore ask for a refresh at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import structlog

from protos.types import Origin
from reward_server.errors import Overloaded
from reward_server.queue import scripts
from reward_server.queue.features import features_of
from reward_server.queue.keys import Keys
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.reservoir import Drawn, KeptClip, chosen
from reward_server.settings import Settings

READ_PARTS = 16

log = structlog.get_logger(__name__)


class RunMotion:
    """The motion of all runs. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys, settings: Settings) -> None:
        self._link, self._keys, self._settings = link, keys, settings
        self._features = features_of(link, keys, settings)

    async def check(self) -> None:
        """Raises OSError if motion is kept in files and their folder is not there."""
        await self._features.check()

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
        if Redis is full, and OSError if a file cannot be written.
        """
        limits, drawn = self._settings, Drawn.of(run_id, job_id, group_id, clip_key)
        share = f"{limits.feature_older_share:.6f}"
        bounds = (limits.feature_max_clips, limits.feature_room, share, limits.feature_ttl_s)
        asked = (run_id, origin.value, drawn.name, drawn.group, *bounds)
        wanted = int(await self._link.run(scripts.PLACE_CLIP, *asked, *map(len, parts)))
        if wanted > 0:  # most clips of a large buffer are not, so they are not sent
            await self._put(asked, run_id, origin, drawn.name, parts[:wanted])
        return wanted >= 0

    async def _put(
        self, asked: tuple[str | int, ...], run_id: str, origin: Origin, name: str, parts: Sequence[bytes]
    ) -> None:
        values = await self._features.put(run_id, origin.value, name, parts)
        try:
            removed = await self._link.run(scripts.KEEP_CLIP, *asked, self._settings.version_ttl_s, *chain(*values))
        except Overloaded:
            await self._features.drop([value for _, value in values])
            raise
        await self._features.drop(removed)

    async def miss_clip(self, run_id: str, origin: Origin, job_id: str, *, clip_key: str = "") -> None:
        """Note that a clip was scored, but is not kept. This works in a full Redis too."""
        name = Drawn.of(run_id, job_id, "", clip_key).name
        await self._link.run(scripts.MISS_CLIP, run_id, origin.value, name, self._settings.feature_ttl_s)

    async def missing(self, run_id: str, origin: Origin) -> tuple[str, ...]:
        """The jobs noted since the run's latest version was published, oldest first: the last 1024.

        `miss_clip` notes them, and `clips` and `anchor` those whose files are gone.
        """
        [latest] = await self._link.list_items(self._keys.versions(run_id), 0, 0) or [b""]
        [[published_ms]] = await self._link.hash_rows([self._keys.version(latest.decode())], "published_ms")
        return await self._link.since(self._keys.missing(origin.value, run_id), int(published_ms or 0))

    async def num_kept(self, run_id: str, origin: Origin) -> int:
        """How many of the run's clips a refresh could train on."""
        return await self._link.hash_size(self._keys.clips(origin.value, run_id))

    async def num_scored(self, run_id: str, origin: Origin, until_ms: int) -> int:
        """How many of the run's clips were scored since its latest refresh, until a time on Redis's clock."""
        return await self._link.count_until(self._keys.kept("scored", origin.value, run_id), until_ms)

    async def clips(self, run_id: str, origin: Origin, most: int = 0) -> list[KeptClip]:
        """The clips that a refresh of the run trains on, at most `most` (0: no limit), newer ones first.

        Clips of all groups come before second clips of a group. Those whose files are gone are no longer kept, and
        others take their places.
        """
        while True:
            newer, older = [await self._members(age, run_id, origin) for age in ("newer", "older")]
            drawn = self._drawn(newer, older, most)
            names = {first[1:] for firsts in drawn for first in firsts}
            parts = await self._parts(run_id, origin, [member for member in (*newer, *older) if member[1:] in names])
            if parts is not None:
                return [
                    KeptClip(name=first[1:], parts=tuple(parts[first[1:]]), older=at == 1)
                    for at, firsts in enumerate(drawn)
                    for first in firsts
                    if parts.get(first[1:])  # it may just have made room for another one
                ]

    def _drawn(self, newer: Sequence[str], older: Sequence[str], most: int) -> tuple[list[str], list[str]]:
        """The first parts of the newer and the older clips that a refresh trains on."""
        firsts = [[member for member in members if member[0] == "0"] for members in (newer, older)]
        share, at_least = self._settings.feature_older_share, self._settings.refresh_min_clips
        return chosen(*firsts, most=most, share=share, at_least=at_least)

    async def freeze_anchor(self, run_id: str, names: Sequence[str]) -> None:
        """Move these clips out of the run's reservoir, to its anchor set. A run that has one keeps it."""
        removed = await self._link.run(scripts.FREEZE_ANCHOR, run_id, self._settings.version_ttl_s, *names)
        await self._features.drop(removed)

    async def anchor(self, run_id: str, origin: Origin) -> list[bytes]:
        """The first parts of the clips of the run's anchor set, in the order of their names.

        Those whose files are gone leave the set. If fewer than gate_min_clips are left, the run has none any more.
        """
        held = sorted((await self._link.hash_items(self._keys.anchor(origin.value, run_id))).items())
        found = await self._features.get([value for _, value in held])
        gone = [f"0{name}" for (name, _), data in zip(held, found, strict=True) if data is None]
        _, set_lost = await self._lose(run_id, origin, gone)
        return [] if set_lost else [data for data in found if data is not None]

    async def _lose(self, run_id: str, origin: Origin, members: Sequence[str]) -> tuple[set[str], bool]:
        """Keep clips no longer of which these parts are gone, and note them as missing.

        Returns their jobs, and whether the run has lost its anchor set. A part that was removed from Redis meanwhile
        is not lost.
        """
        if not members:
            return set(), False
        life_s, anchor_min = self._settings.feature_ttl_s, max(1, self._settings.gate_min_clips)
        lost, removed, set_lost = await self._link.run(
            scripts.LOSE_CLIPS, run_id, origin.value, life_s, anchor_min, *members
        )
        await self._features.drop(removed)
        jobs = sorted(job.decode() for job in lost)
        if jobs:
            log.warning("clips are not kept any more: their files are gone or damaged", run_id=run_id, jobs=jobs)
        if set_lost:
            told = "a run has no anchor set any more: refreshes are not gated until one holds out enough for a new set"
            log.warning(told, run_id=run_id, gate_min_clips=anchor_min)
        return set(jobs), bool(set_lost)

    async def _members(self, age: str, run_id: str, origin: Origin) -> tuple[str, ...]:
        """The parts of newer or older clips in the order of the reservoir."""
        return await self._link.since(self._keys.kept(age, origin.value, run_id), 0)

    async def _parts(self, run_id: str, origin: Origin, members: Sequence[str]) -> dict[str, list[bytes]] | None:
        """The leading parts of each clip that are still kept, by its name. None if a clip is lost.

        `members` are in order of the parts.
        """
        found: dict[str, list[bytes]] = {}
        gone: list[str] = []
        for start in range(0, len(members), READ_PARTS):  # in steps, so that Redis can answer others in between
            for member, data in await self._bytes(run_id, origin, members[start : start + READ_PARTS]):
                parts = found.setdefault(member[1:], [])
                if data is None:
                    gone.append(member)
                elif len(parts) == int(member[0]):
                    parts.append(data)
        lost, _ = await self._lose(run_id, origin, gone)
        return None if lost else found

    async def _bytes(self, run_id: str, origin: Origin, members: Sequence[str]) -> list[tuple[str, bytes | None]]:
        """The bytes of those of these parts that are still kept: None if they are gone."""
        values = await self._link.hash_values([self._keys.part(member, origin.value, run_id) for member in members])
        held = [(member, value) for member, value in zip(members, values, strict=True) if value is not None]
        found = await self._features.get([value for _, value in held])
        return [(member, data) for (member, _), data in zip(held, found, strict=True)]
