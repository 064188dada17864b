"""Implements `motion-reward models pull` and `list`: downloads or reads the frozen networks' weights, and lists them.

`pull` takes each network from Hugging Face or from a local file, converts it and stores it in the models folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx
from rich.box import SIMPLE_HEAD
from rich.table import Table

from reward_server.errors import NotReady
from reward_server.models.convert import network_weights
from reward_server.models.published import PUBLISHED, Published
from reward_server.models.store import check_unchanged, read_record, sha256_of, store, verified

Tell = Callable[[str], object]


def pull(folder: Path, files: Mapping[str, Path | None], *, replace: bool = False, tell: Tell = print) -> None:
    """Store every network of the shift profiles in `folder`.

    `files` maps a network's name to a local file, which is used instead of Hugging Face. A network that is stored
    already and has no local file is left alone, without any download, unless `replace` is set. `tell` gets lines of
    text for the user. Raises BadRequest for a file that is another checkpoint or not the pinned one, and NotReady if
    a download fails.
    """
    for network in PUBLISHED.values():
        tell(f"{network.title}: {network.licence}. {network.means}")
        given = files.get(network.name)
        if given is None and not replace and _stored(network, folder):
            tell(f"  already stored, sha256 {verified(network, folder).sha256}")
        else:
            tell(f"  reading {given or f'{network.repo}/{network.file} from Hugging Face'}")
            tell(f"  {_take(network, folder, given, files, replace=replace)}")


def _take(
    network: Published, folder: Path, given: Path | None, files: Mapping[str, Path | None], *, replace: bool
) -> str:
    """Download the network unless a file is given, convert it and store it. Returns a line that says what was done."""
    path, source = (given, given.name) if given else _fetch(network, folder, files)
    weights = network_weights(network, path)
    source_sha256 = sha256_of(path)
    if not replace:
        check_unchanged(network, folder, source, source_sha256)
    record = store(network, folder, weights, source=source, source_sha256=source_sha256)
    return f"{source} -> {folder / network.converted}, {len(weights)} tensors, sha256 {record.sha256}"


def _fetch(network: Published, folder: Path, files: Mapping[str, Path | None]) -> tuple[Path, str]:
    """Download the published file into Hugging Face's local cache. Returns its path, and its name with the revision."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - only `pull` needs it

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry; the error below is enough
    try:
        path = Path(hf_hub_download(network.repo, network.file, revision=network.revision))
    except (OSError, ValueError, httpx.HTTPError) as error:
        missing = [other for other in PUBLISHED.values() if files.get(other.name) or not _stored(other, folder)]
        options = " ".join(f"{other.option} {files.get(other.name) or other.file}" for other in missing)
        reason = str(error).strip().splitlines()
        raise NotReady(
            f"cannot download {network.file} of {network.repo} ({reason[0] if reason else type(error).__name__}); "
            f"download it from {network.page} on another machine, copy it here and run "
            f"`motion-reward models pull shift {options}`"
        ) from error
    return path, f"{network.repo}@{path.parent.name}/{network.file}"


def _stored(network: Published, folder: Path) -> bool:
    return read_record(network, folder) is not None and (folder / network.converted).is_file()


def listing(folder: Path, discriminators: Mapping[str, Path]) -> Table:
    """A table of the networks in `folder`, each checked against its pinned sha256, and of the discriminators.

    `discriminators` maps a profile's name to its checkpoint.
    """
    table = Table(title=f"models in {folder}", title_justify="left", box=SIMPLE_HEAD)
    for column in ("what", "state", "sha256", "source", "licence"):
        table.add_column(column, overflow="fold")
    for network in PUBLISHED.values():
        try:
            record = verified(network, folder)
            table.add_row(network.title, "ready", record.sha256[:12], record.source, record.licence)
        except NotReady as error:
            state = "missing" if not (folder / network.converted).is_file() else "refused"
            table.add_row(network.title, f"{state}: {error}", "", "", network.licence)
    for profile, path in discriminators.items():
        known = path.is_file()
        state = "ready" if known else f"missing: train with `motion-reward pretrain --profile {profile}`"
        table.add_row(f"discriminators of {profile}", state, sha256_of(path)[:12] if known else "", path.name, "")
    return table
