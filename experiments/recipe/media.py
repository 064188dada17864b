"""A file that a package carries, as the recipe's catalogue names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reward_server.data.manifest import Split

Shots = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of the Python index, of npm or of Debian; `version` is empty where the archive holds only one."""

    client: Literal["pip", "npm", "apt"]
    name: str
    version: str = ""
    licence: str

    def __str__(self) -> str:
        return f"{self.client} package {self.name} {self.version}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Media:
    """A file, or the image sequence of a glob, inside an unpacked package.

    `sha256` is of the content: unzipped where it is gzipped, frame after frame where it is a
    sequence. `shots` are (first, last) frames, last excluded; a photograph has none.
    """

    source: str
    package: Package
    member: str
    split: Split
    sha256: str
    shots: Shots = ()

    @property
    def is_sequence(self) -> bool:
        return "*" in self.member
