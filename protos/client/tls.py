"""Finds whom a client trusts over TLS, and the certificate that it presents: arguments, or the environment.

The files are read when a client is made. Private keys are kept nowhere else, and show in no repr and no error.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

VARIABLES = {"ca": "MOTION_REWARD_CA", "cert": "MOTION_REWARD_CERT", "cert_key": "MOTION_REWARD_CERT_KEY"}
SECURE = ("https://", "grpcs://")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files. Without `ca`, the certificates of the system or of the Python packages are trusted."""

    ca: Path | None = None  # certificates of those who sign servers' certificates
    cert: Path | None = None  # this client's own, with its chain
    cert_key: Path | None = None  # the private key of `cert`, not encrypted; None: it is in the same file

    def http_context(self) -> ssl.SSLContext:
        """For httpx. Raises ValueError for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca) if self.ca else httpx.create_ssl_context()
            if self.cert:
                # Without a password OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.cert, self.cert_key, password=lambda: "")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self._named()}: {error}; give PEM files, and a key without a password") from error
        return context

    def grpc_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises ValueError for files that cannot be used."""
        self.http_context()  # gRPC would tell of bad files at the first call only
        files = (self.ca, (self.cert_key or self.cert) if self.cert else None, self.cert)
        return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))

    def _named(self) -> str:
        given = ((name, getattr(self, name)) for name in VARIABLES)
        return ", ".join(f"{name} {path}" for name, path in given if path)


def tls_of(
    url: str,
    *,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    cert_key: str | Path | None = None,
) -> Tls | None:
    """TLS for an https:// or grpcs:// address, or None for an address without it.

    What is not given comes from MOTION_REWARD_CA, MOTION_REWARD_CERT and MOTION_REWARD_CERT_KEY. A given certificate
    brings its own key, so the environment's does not go with it. Raises ValueError if certificates are given for an
    address without TLS, or a key without its certificate.
    """
    given = {"ca": ca, "cert": cert, "cert_key": cert_key}
    if not url.startswith(SECURE):
        if named := [name for name, path in given.items() if path]:
            raise ValueError(f"{named[0]} is given, but '{url}' has no TLS; give an address with https:// or grpcs://")
        return None
    from_environment = {"ca"} if cert or cert_key else set(VARIABLES)
    found = {
        name: path or (os.environ.get(VARIABLES[name], "").strip() if name in from_environment else "")
        for name, path in given.items()
    }
    if found["cert_key"] and not found["cert"]:
        raise ValueError(f"there is a cert_key ({found['cert_key']}) without its cert; give both")
    return Tls(**{name: Path(path) for name, path in found.items() if path})
