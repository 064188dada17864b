"""Decides who may use the doors: finds the key of a request in the file of keys, and checks its scope.

While there is no file of keys, anyone may do anything. Once it exists, every request needs a key, also after all keys
are revoked or the file is gone. Changes of the file apply at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from protos.addresses import host_of, is_loopback
from reward_server.doors.key_file import Key, KeyFile, Scope, parted
from reward_server.errors import BadRequest, Forbidden, RewardServerError, Unauthenticated
from reward_server.queue.quota import NO_QUOTA, Quota
from reward_server.settings import Settings

KNOWN = 4096  # keys that were verified lately, and need no scrypt
CHECKS = 2  # scrypt hashes at a time: a flood of wrong keys must not take all CPUs

log = structlog.get_logger("access")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who sends a request. Without keys it is ANYONE, whose id is empty."""

    key_id: str
    scopes: frozenset[Scope]
    quota: Quota = NO_QUOTA

    @property
    def sees_all(self) -> bool:
        """Whether the runs of all keys are open to this caller, under their full names."""
        return Scope.ADMIN in self.scopes

    def check(self, scope: Scope) -> None:
        """Raises Forbidden unless the caller has the scope."""
        if not {scope, Scope.ADMIN} & self.scopes:
            raise Forbidden(f"key '{self.key_id}' lacks the scope '{scope}'; use another key, or create one with it")


ANYONE = Caller(key_id="", scopes=frozenset(Scope))


class Access:
    """The keys of a server."""

    def __init__(self, settings: Settings) -> None:
        self._file = KeyFile(settings.keys_path)
        self._keys: dict[str, Key] | None = None  # None: there is no file of keys
        self._read: object = None  # what tells whether the file has changed
        self._pepper = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, str] = OrderedDict()  # a hash of each verified key -> its id
        self._checks = asyncio.Semaphore(CHECKS)

    @property
    def is_open(self) -> bool:
        """Whether there are no keys, so that anyone may call. Raises BadRequest or OSError if they cannot be read."""
        self._load()
        return self._keys is None

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends `authorization`, the value of that header. Raises Unauthenticated."""
        try:
            self._load()
        except (OSError, RewardServerError) as error:
            if self._keys is None:
                log.error("the keys cannot be read, so nobody may call", error=str(error))
                raise Unauthenticated("the server cannot read its keys; see its log") from error
            log.error("the keys cannot be read, so the earlier ones hold", error=str(error))
        if self._keys is None:
            return ANYONE
        scheme, _, text = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise Unauthenticated("the server requires an API key; send it as `Authorization: Bearer KEY`")
        key = await self._verified(text.strip())
        if key is None:
            raise Unauthenticated("the API key is not valid: unknown, misspelt or revoked; ask for another")
        return Caller(key_id=key.id, scopes=frozenset(key.scopes), quota=key.quota)

    async def _verified(self, text: str) -> Key | None:
        """The valid key with this text."""
        mark = hashlib.blake2b(text.encode(), key=self._pepper, digest_size=32).digest()
        parts = parted(text)
        key = self._valid(parts[0]) if parts else None
        if key is None or parts is None:
            return None
        if self._known.get(mark) != key.id:
            async with self._checks:
                if not await asyncio.to_thread(key.matches, parts[1]):
                    return None
            self._known[mark] = key.id
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        return self._valid(key.id)

    def _valid(self, key_id: str) -> Key | None:
        key = (self._keys or {}).get(key_id)
        return None if key is None or key.revoked else key

    def _load(self) -> None:
        """Read the file if it has changed. What was read once stays if the file is gone."""
        try:
            found = self._file.path.stat()
        except FileNotFoundError:
            return
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen != self._read:
            keys = {key.id: key for key in self._file.read()}
            self._keys, self._read = keys, seen
            self._known.clear()


def check_exposure(settings: Settings) -> None:
    """Raises BadRequest for a door off loopback without keys, unless settings.allow_anyone says so."""
    if settings.allow_anyone or not Access(settings).is_open:
        return
    for name, address in (("HTTP", settings.http), ("gRPC", settings.grpc)):
        if not is_loopback(host_of(address)):
            raise BadRequest(
                f"{name} on {address} could be used by anyone who reaches it, because there is no key in "
                f"{settings.keys_path}; run `motion-reward keys create NAME`, or set MOTION_REWARD_ALLOW_ANYONE=true"
            )
