"""Describes a file in a package, as the recipe's catalogue lists it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reward_server.data.manifest import Split

Shots = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of the Python index, npm or Debian, or a repository of GitHub.

    `version` is empty if the archive has only one. Of a repository it is the commit.
    """

    client: Literal["pip", "npm", "apt", "git"]
    name: str
    version: str = ""
    licence: str

    @property
    def folder(self) -> str:
        """The folder that it is unpacked to."""
        return f"{self.name}@{self.version}" if self.client == "git" else self.name

    def __str__(self) -> str:
        kind = "repository" if self.client == "git" else "package"
        return f"{self.client} {kind} {self.name} {self.version}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Media:
    """A file inside an unpacked package, or an image sequence given by a glob.

    `sha256` is the digest of the content: unzipped if it is gzipped, all frames in order if it is a sequence. `shots`
    are (first, last) frames, with last excluded. A photograph has none. `generator` names the model that made a
    generated clip, `scene` what several files of one scene have in common.
    """

    source: str
    package: Package
    member: str
    split: Split
    sha256: str
    shots: Shots = ()
    generator: str = ""
    scene: str = ""

    @property
    def unit(self) -> str:
        """What is trained on or held out as a whole."""
        return self.generator or self.scene or self.source

    @property
    def is_sequence(self) -> bool:
        return "*" in self.member

    @property
    def folder(self) -> str:
        """The folder that it is written to."""
        if self.generator:
            return "generated"
        return "camera" if self.shots else "photos"
