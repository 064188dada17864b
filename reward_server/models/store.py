"""Reads and writes the models folder: converted weights, each with a record that pins its sha256 and its source's.

    cotracker3.safetensors    every key of the published checkpoint, nothing else
    cotracker3.json           its source, the sha256 of the source and of the file, the licence

Weights that differ from their record are not loaded. Pulling again does not replace pinned weights by others unless
`--replace` is given.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reward_server.errors import BadRequest, NotReady
from reward_server.models.published import PUBLISHED, Published
from reward_server.replacing import replacing


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of one converted file."""

    source: str  # repository, revision and file, or the name of the local file
    source_sha256: str
    sha256: str
    licence: str


def load_network(module: nn.Module, name: str, folder: Path) -> str:
    """Load a network's weights from the folder, strictly. Returns the sha256 of the weights' file.

    Raises NotReady, naming the command to run, if the file is missing or is not the one that was pulled.
    """
    network = PUBLISHED[name]
    record = verified(network, folder)
    module.load_state_dict(load_file(folder / network.converted), strict=True)
    return record.sha256


def verified(network: Published, folder: Path) -> Record:
    """Compare a network's file with its record, and return the record. Raises NotReady if they do not match."""
    path, record = folder / network.converted, read_record(network, folder)
    if record is None or not path.is_file():
        raise NotReady(f"no weights of {network.title} in {folder}; fetch them with `motion-reward models pull shift`")
    if (found := sha256_of(path)) != record.sha256:
        raise NotReady(
            f"{path} has changed since it was pulled: its sha256 is {found}, but {record.sha256} is pinned; "
            "pull it again with `motion-reward models pull shift --replace`"
        )
    return record


def store(network: Published, folder: Path, weights: dict[str, Tensor], *, source: str, source_sha256: str) -> Record:
    """Write converted weights and then their record, each atomically. Returns the record."""
    with replacing(folder / network.converted) as partial:
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, partial)
        record = Record(source=source, source_sha256=source_sha256, sha256=sha256_of(partial), licence=network.licence)
    with replacing(_record_path(network, folder)) as partial:
        partial.write_text(json.dumps(asdict(record), indent=1) + "\n")
    return record


def check_unchanged(network: Published, folder: Path, source: str, source_sha256: str) -> None:
    """Raise BadRequest if the record pins another source, because a silent change would change every reward."""
    record = read_record(network, folder)
    if record is not None and record.source_sha256 != source_sha256:
        raise BadRequest(
            f"{source} has sha256 {source_sha256}, but the weights of {network.title} in {folder} are pinned to "
            f"{record.source_sha256} ({record.source}); to change them, pull with --replace and train the "
            "discriminators of the profile again"
        )


def read_record(network: Published, folder: Path) -> Record | None:
    """Read a network's record; None if there is none. Raises NotReady if it is damaged."""
    path = _record_path(network, folder)
    if not path.is_file():
        return None
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise NotReady(
            f"{path} is damaged ({error}); pull again with `motion-reward models pull shift --replace`"
        ) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_path(network: Published, folder: Path) -> Path:
    return folder / f"{network.name}.json"
