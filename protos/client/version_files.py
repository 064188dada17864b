"""Writes the stream of a version's files to a folder, and reads it back (RewardClient.fetch_version, restore_version).

    version.json  scoring.safetensors  training.safetensors

A folder is complete or not there. The digests are checked before it appears.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from protos import codec
from protos import reward_pb2 as pb
from protos.client.errors import ServerFailed
from protos.error_codes import ErrorCode
from protos.json_codec import from_json, to_json
from protos.types import VersionHeader

PART_BYTES = 1024**2
FILES = ("scoring", "training")


def write_version(parts: Iterable[pb.VersionPart], folder: Path) -> VersionHeader:
    """Write a version that arrives in parts. Raises ServerFailed if its files are not those of its header."""
    stream = iter(parts)
    header = header_in(stream)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    found = _write_files(stream, partial)
    wanted = {"scoring": header.scoring_digest, "training": header.training_digest}
    if bad := [name for name in FILES if wanted[name] and found.get(name) != wanted[name]]:
        raise ServerFailed(ErrorCode.BAD_ANSWER, f"version '{header.version}' arrived damaged: {', '.join(bad)}; retry")
    (partial / "version.json").write_text(json.dumps(to_json(header)))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return header


def read_header(folder: Path) -> VersionHeader:
    """The header of the version in a folder."""
    header: VersionHeader = from_json(VersionHeader, json.loads((folder / "version.json").read_text()))
    return header


def read_version(folder: Path) -> Iterator[pb.VersionPart]:
    """The version in a folder as a stream of parts."""
    yield pb.VersionPart(header=codec.version_to_message(read_header(folder)))
    for name in FILES:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            with path.open("rb") as file:
                while chunk := file.read(PART_BYTES):
                    yield pb.VersionPart(scoring=chunk) if name == "scoring" else pb.VersionPart(training=chunk)


def header_in(stream: Iterator[pb.VersionPart]) -> VersionHeader:
    """Take the header from the start of a stream. Raises ServerFailed if there is none."""
    first = next(stream, None)
    if first is None or first.WhichOneof("part") != "header":
        raise ServerFailed(ErrorCode.BAD_ANSWER, "the stream of a version does not begin with its header")
    return codec.version_from_message(first.header)


def _write_files(stream: Iterator[pb.VersionPart], folder: Path) -> dict[str, str]:
    """Write the chunks and return the digest of each file."""
    digests = {}
    with ExitStack() as stack:
        files = {}
        for part in stream:
            name = part.WhichOneof("part")
            if name not in FILES:
                continue
            if name not in files:
                files[name] = stack.enter_context((folder / f"{name}.safetensors").open("wb"))
                digests[name] = hashlib.sha256()
            files[name].write(getattr(part, name))
            digests[name].update(getattr(part, name))
    return {name: digest.hexdigest() for name, digest in digests.items()}
