"""Keeps the files of the run's own discriminators, so that they outlive the server's Redis.

After each refresh the new version's files are fetched into the run's folder; checkpoints hold them too. A version that
the server no longer has is uploaded again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path

from protos.client import RequestRefused, RewardClientError
from protos.client.version_files import read_header
from protos.error_codes import ErrorCode
from trainer.checkpoint import link_folder
from trainer.rewards.patient_client import PatientClient

TRANSFER_S = 1800.0  # for one version's files

log = logging.getLogger(__name__)


class OwnVersions:
    """The versions of the run in `folder`, one folder each."""

    def __init__(self, server: PatientClient, run_id: str, folder: Path) -> None:
        self._server, self._run_id, self._folder = server, run_id, folder

    def path(self, version: str) -> Path:
        return self._folder / hashlib.sha256(version.encode()).hexdigest()[:16]

    def fetch(self, version: str) -> None:
        """Fetch a version that a refresh has just published. If that fails, the run goes on without its files."""
        if self.path(version).is_dir():
            return
        try:
            self._server.ask(
                lambda client: client.fetch_version(self._run_id, version, self.path(version), timeout_s=TRANSFER_S),
                takes_s=TRANSFER_S,
            )
        except (RewardClientError, OSError) as error:
            log.warning("the files of %s are not in the checkpoints, because they were not fetched: %s", version, error)

    def restore(self, version: str) -> bool:
        """Upload a version again if the server lost it. False if its files are not here."""
        if not self.path(version).is_dir():
            return False
        try:
            self._server.ask(lambda client: client.version(self._run_id, version))
        except RequestRefused as error:
            if error.code != ErrorCode.VERSION_NOT_SERVED:
                raise
            self._server.ask(
                lambda client: client.restore_version(self.path(version), timeout_s=TRANSFER_S), takes_s=TRANSFER_S
            )
            log.warning("the server had lost discriminator version %s; it was uploaded again", version)
        return True

    def kept(self, versions: Collection[str]) -> list[Path]:
        """The folders of these versions that are here. The others are removed."""
        wanted = {self.path(version) for version in versions}
        for stale in set(self._folder.glob("*")) - wanted:
            shutil.rmtree(stale, ignore_errors=True)
        return sorted(path for path in wanted if path.is_dir())

    def adopt(self, folder: Path) -> None:
        """Take the versions from a checkpoint that are not here."""
        for source in sorted(folder.glob("*/")):
            if not (path := self.path(read_header(source).version)).is_dir():
                link_folder(source, path)
