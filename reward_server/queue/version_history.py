"""Lists and shows the versions of runs, and rolls a run back to an earlier one.

A version never changes once it is published: its name holds a digest of its weights. Rolling back only changes which
version is the run's latest, the one that scores new clips and from which the next refresh goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from protos.types import RefreshResponse
from reward_server.errors import RefreshRunning, UnknownRun, VersionNotServed
from reward_server.queue import scripts
from reward_server.queue.keys import Keys
from reward_server.queue.records import unpack_refreshed
from reward_server.queue.redis_link import RedisLink
from reward_server.queue.run_store import Version

FIELDS = ("digest", "number", "base", "fits", "run", "published_ms", "retired", "record")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A version as it was published, and what became of it."""

    version: Version
    run_id: str
    published_s: float  # since the epoch, on Redis's clock
    retired: bool  # later versions replaced it; it is kept only for what is bound to it
    bound: int  # unfinished jobs, and groups whose results can be fetched
    training: RefreshResponse  # also names the parent, `previous_version`


@dataclass(frozen=True, kw_only=True)
class History:
    """A run's versions, and the name of the one that scores its new clips: the first, or the run's base version."""

    run_id: str
    latest: str
    versions: tuple[Published, ...]  # the latest first


class VersionHistory:
    """Reads and changes the lists of versions. Methods raise NotReady without Redis."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link, self._keys = link, keys

    async def runs(self) -> list[str]:
        """The runs that have versions, in order of their names."""
        prefix = self._keys.versions("")
        return sorted(key.removeprefix(prefix) for key in await self._link.keys_with(prefix))

    async def history(self, run_id: str) -> History:
        """The versions that a run's refreshes published and that can be pinned. Raises UnknownRun if there is none."""
        names = [name.decode() for name in await self._link.list_items(self._keys.versions(run_id), 0, -1)]
        found = [published for name in names if (published := await self._found(name))]
        if not found:
            raise _no_versions(run_id)
        return History(run_id=run_id, latest=names[0], versions=tuple(found))

    async def version(self, name: str) -> Published:
        """One version, also one that is kept only for what is bound to it. Raises VersionNotServed."""
        if published := await self._found(name):
            return published
        raise VersionNotServed(
            f"no refresh published discriminator version '{name}', or it is not kept any more; "
            "`motion-reward versions list` names those that are"
        )

    async def roll_back(self, run_id: str, name: str) -> str:
        """Make `name` the run's latest version: one of its list, or the base version that it began with.

        Returns the latest version before. Raises UnknownRun, VersionNotServed, and RefreshRunning while a refresh
        trains on the latest version.
        """
        verdict, *details = await self._link.run(scripts.ROLL_BACK, run_id, name)
        if verdict == b"none":
            raise _no_versions(run_id)
        if verdict == b"running":
            raise RefreshRunning(
                f"run '{run_id}' is being refreshed, and would go on from its latest version; wait for that refresh, "
                "then try again"
            )
        if verdict == b"unknown":
            choices = ", ".join(sorted(choice.decode() for choice in details if choice))
            raise VersionNotServed(f"run '{run_id}' cannot go back to '{name}'; it can go back to: {choices}")
        return str(details[0].decode())

    async def _found(self, name: str) -> Published | None:
        [row] = await self._link.hash_rows([self._keys.version(name)], *FIELDS)
        digest, number, base, fits, run, published_ms, retired, record = (value or b"" for value in row)
        if not record:  # the base version, or one of a release that kept no record
            return None
        return Published(
            version=Version(
                name=name,
                digest=digest.decode(),
                number=int(number),
                base=base.decode(),
                preprocessing_digest=fits.decode(),
            ),
            run_id=run.decode(),
            published_s=int(published_ms) / 1000,
            retired=bool(retired),
            bound=await self._link.set_size(self._keys.bound(name)),
            training=unpack_refreshed(record),
        )


def _no_versions(run_id: str) -> UnknownRun:
    return UnknownRun(
        f"run '{run_id}' has no versions: no refresh of it has published one, or they have expired; "
        "`motion-reward versions list` without a run shows every run that has"
    )
