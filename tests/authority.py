"""A certificate authority of a test, and the files of a server and of clients that it signs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization as pem


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A CA of the test, with the files of a server and of a client."""

    ca: trustme.CA
    folder: Path

    @property
    def trusted(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def server(self) -> Path:
        return self.folder / "server.pem"

    @property
    def client(self) -> Path:
        return self.folder / "client.pem"

    def issue(self, path: Path, name: str) -> None:
        """Write a certificate and its key into one file, which may be in use."""
        draft = path.with_suffix(".draft")
        self.ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(draft))
        draft.replace(path)


def authority(folder: Path) -> Authority:
    folder.mkdir()
    made = Authority(ca=trustme.CA(), folder=folder)
    made.ca.cert_pem.write_to_path(str(made.trusted))
    made.issue(made.server, "127.0.0.1")
    made.issue(made.client, "trainer@lab.example")
    return made


def write_encrypted(ca: trustme.CA, cert: Path, key: Path, password: str) -> None:
    """Write a certificate for 127.0.0.1, and its key with a password."""
    issued = ca.issue_cert("127.0.0.1")
    cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    private = pem.load_pem_private_key(issued.private_key_pem.bytes(), None)
    hidden = pem.BestAvailableEncryption(password.encode())
    key.write_bytes(private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, hidden))
