"""`motion-reward models pull` and `list`: from the hub or from files at hand into the models folder, once."""

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
    """Bring every network of the `shift` profiles into the folder; `files` by network name stand for the hub.

    Weights that are there already and were not given as a file are left alone, without a look at the
    hub. Raises BadRequest for a file that is something else or not the pinned one, NotReady without a network.
    """
    for network in PUBLISHED.values():
        tell(f"{network.title}: {network.licence}. {network.means}")
        given = files.get(network.name)
        if given is None and not replace and _stored(network, folder):
            tell(f"  there already, sha256 {verified(network, folder).sha256}")
        else:
            tell(f"  reading {given or f'{network.repo}/{network.file} from the hub'}")
            tell(f"  {_take(network, folder, given, files, replace=replace)}")


def _take(
    network: Published, folder: Path, given: Path | None, files: Mapping[str, Path | None], *, replace: bool
) -> str:
    """Fetch if need be, convert, store; returns what was done."""
    path, source = (given, given.name) if given else _fetch(network, folder, files)
    weights = network_weights(network, path)
    source_sha256 = sha256_of(path)
    if not replace:
        check_unchanged(network, folder, source, source_sha256)
    record = store(network, folder, weights, source=source, source_sha256=source_sha256)
    return f"{source} -> {folder / network.converted}, {len(weights)} tensors, sha256 {record.sha256}"


def _fetch(network: Published, folder: Path, files: Mapping[str, Path | None]) -> tuple[Path, str]:
    """The published file in the hub's local cache, and its full name with the revision it has there."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - only who pulls needs it

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells every retry; we tell how it ended
    try:
        path = Path(hf_hub_download(network.repo, network.file, revision=network.revision))
    except (OSError, ValueError, httpx.HTTPError) as error:
        missing = [other for other in PUBLISHED.values() if files.get(other.name) or not _stored(other, folder)]
        options = " ".join(f"{other.option} {files.get(other.name) or other.file}" for other in missing)
        reason = str(error).strip().splitlines()
        raise NotReady(
            f"cannot fetch {network.file} of {network.repo} ({reason[0] if reason else type(error).__name__}); "
            f"get it from {network.page} on a machine that can, put it here and run "
            f"`motion-reward models pull shift {options}`"
        ) from error
    return path, f"{network.repo}@{path.parent.name}/{network.file}"


def _stored(network: Published, folder: Path) -> bool:
    return read_record(network, folder) is not None and (folder / network.converted).is_file()


def listing(folder: Path, discriminators: Mapping[str, Path]) -> Table:
    """What is in the folder, and whether it is what was pulled; `discriminators` by profile."""
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
