"""Keeps API keys in a file: their names, scopes and hashes, but not the keys themselves.

A key is `mrk_<id>_<secret>`. The id is public: it names the key in lists, in the names of its jobs and in logs. The
secret has 256 random bits, and the file has its scrypt hash. A revoked key stays in the file, so that its id is not
given again and the doors still require keys.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from reward_server.errors import BadRequest
from reward_server.queue.quota import NO_QUOTA, Quota

MARK = "mrk"
MAX_NAME = 80
COST = {"n": 2**14, "r": 8, "p": 1}  # of scrypt: 16 MiB, some 50 ms


class Scope(StrEnum):
    """What a key may do."""

    SCORE = "score"  # submit clips, read outcomes, look up the model
    REFRESH = "refresh"  # train a run's discriminators
    METRICS = "metrics"  # read /metrics
    ADMIN = "admin"  # everything, on the runs of all keys


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as it is kept. `salt` and `digest` are hexadecimal."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: str
    salt: str
    digest: str
    revoked: str = ""  # when; empty: it is valid
    quota: Quota = NO_QUOTA

    def matches(self, secret: str) -> bool:
        """Whether this is the key's secret. Takes some 50 ms of CPU, and constant time."""
        return hmac.compare_digest(_digest(secret, self.salt), self.digest)


class KeyFile:
    """The keys of `path`. A missing file holds none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Key]:
        """All keys, also revoked ones, oldest first. Raises BadRequest if the file is damaged, and OSError."""
        try:
            return [_key(fields) for fields in json.loads(self.path.read_text())["keys"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequest(f"{self.path} is no file of keys; restore it, or delete it and create new keys") from error

    def create(self, name: str, scopes: tuple[Scope, ...], quota: Quota = NO_QUOTA) -> str:
        """Add a key and return it. This is the only time that it is known. Raises BadRequest and OSError."""
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise BadRequest(f"the key's name has {len(name)} characters; give 1 to {MAX_NAME} printable ones")
        if not scopes:
            raise BadRequest(f"the key has no scope; give some of {', '.join(Scope)}")
        with self._changing() as keys:
            taken = {key.id for key in keys}
            key_id = next(made for made in iter(lambda: secrets.token_hex(4), "") if made not in taken)
            secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
            ordered = tuple(scope for scope in Scope if scope in scopes)
            hashed = {"salt": salt, "digest": _digest(secret, salt)}
            keys.append(Key(id=key_id, name=name, scopes=ordered, created=_now(), quota=quota, **hashed))
        return f"{MARK}_{key_id}_{secret}"

    def revoke(self, key_id: str) -> Key:
        """Make a key invalid. Twice is fine. Raises BadRequest if there is no such key, and OSError."""
        with self._changing() as keys:
            at = next((at for at, key in enumerate(keys) if key.id == key_id), None)
            if at is None:
                raise BadRequest(f"there is no key '{key_id}' in {self.path}; see `motion-reward keys list`")
            keys[at] = replace(keys[at], revoked=keys[at].revoked or _now())
        return keys[at]

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        """The keys, to be changed in the block. Then they are written in one step, readable by their owner only."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.read()
            yield keys
            draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            written = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(written, "w") as file:
                json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        finally:
            os.close(lock)


def parted(text: str) -> tuple[str, str] | None:
    """Id and secret of a key, or None if it does not have the form of one."""
    mark, _, rest = text.partition("_")
    key_id, _, secret = rest.partition("_")
    return (key_id, secret) if mark == MARK and len(key_id) == 8 and 32 <= len(secret) <= 64 else None


def _key(fields: dict[str, Any]) -> Key:
    scopes, quota = tuple(Scope(scope) for scope in fields["scopes"]), Quota(**fields.get("quota", {}))
    return Key(**{**fields, "scopes": scopes, "quota": quota})


def _digest(secret: str, salt: str) -> str:
    return hashlib.scrypt(secret.encode(), salt=bytes.fromhex(salt), dklen=32, **COST).hex()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
