"""The certificates with which both doors serve TLS. A change of their files applies to the next connection.

Files that cannot be read, for instance while they are being replaced, leave the earlier ones in use.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import grpc
import structlog

from reward_server.errors import BadRequest
from reward_server.settings import Settings

log = structlog.get_logger("tls")


class Certificates:
    """The server's certificate, and whose clients it lets in. Raises BadRequest if the files cannot be used."""

    def __init__(self, settings: Settings, cert: Path) -> None:
        self._cert, self._key = cert, settings.tls_key or cert
        self._client_ca = settings.tls_client_ca
        self._password = settings.tls_key_password
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self._marks = self._seen()
        try:
            self._http, self._grpc = self._load()
        except (OSError, ValueError, TypeError) as error:
            raise BadRequest(f"TLS cannot be served with {self._names()}: {_told(error)}; correct the files") from error
        self._told_grpc = self._grpc

    def http_context(self) -> ssl.SSLContext:
        """The context of the HTTP door. It hands each connection over to the latest one."""

        def hand_over(connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
            connection.context = self._latest()[0]

        context = self._http
        context.sni_callback = hand_over
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """The credentials of the gRPC door, which asks for the latest certificates at each connection."""
        return grpc.dynamic_ssl_server_credentials(self._grpc, self._changed, self._client_ca is not None)

    def _changed(self) -> Any:
        """The certificates if they have changed since gRPC last asked, else None."""
        latest = self._latest()[1]
        if latest is self._told_grpc:
            return None
        self._told_grpc = latest
        return latest

    def _latest(self) -> tuple[ssl.SSLContext, Any]:
        with self._lock:
            try:
                if (seen := self._seen()) != self._marks:
                    self._http, self._grpc = self._load()
                    self._marks = seen
                    log.info("the certificates have changed", files=self._names())
            except (OSError, ValueError, TypeError, BadRequest) as error:
                log.error("the certificates cannot be read, so the earlier ones hold", error=_told(error))
            return self._http, self._grpc

    def _seen(self) -> list[tuple[int, int, int]]:
        """What tells whether a file has changed. Raises BadRequest if there is none."""
        try:
            found = [path.stat() for path in self._files()]
        except OSError as error:
            raise BadRequest(f"there is no {error.filename}; give a PEM file for TLS") from error
        return [(each.st_mtime_ns, each.st_size, each.st_ino) for each in found]

    def _files(self) -> list[Path]:
        return [path for path in (self._cert, self._key, self._client_ca) if path is not None]

    def _names(self) -> str:
        return ", ".join(dict.fromkeys(map(str, self._files())))

    def _load(self) -> tuple[ssl.SSLContext, Any]:
        """Both doors' forms of the files. Raises OSError, ValueError and TypeError."""
        password = self._password.get_secret_value() if self._password else ""
        chain, key = self._cert.read_bytes(), self._key.read_bytes()
        authority = self._client_ca.read_bytes() if self._client_ca else None
        context = _context(self._cert, self._key, password, authority)
        if password:
            key = _decrypted(key, password)
        return context, grpc.ssl_server_certificate_configuration([(key, chain)], authority)


def _context(cert: Path, key: Path, password: str, authority: bytes | None) -> ssl.SSLContext:
    """A context for these certificates, which clients must match if `authority` is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 and later
    context.load_cert_chain(cert, key, password=lambda: password)  # without one OpenSSL would ask at the terminal
    context.set_alpn_protocols(["http/1.1"])
    if authority is not None:
        context.load_verify_locations(cadata=authority.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not be verified again, also if its authority is trusted no more.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _decrypted(key: bytes, password: str) -> bytes:
    """The private key without its password, because gRPC takes no other."""
    from cryptography.hazmat.primitives import serialization as pem  # noqa: PLC0415 - only for encrypted keys

    loaded = pem.load_pem_private_key(key, password.encode())
    return loaded.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def certificates_of(settings: Settings) -> Certificates | None:
    """The certificates of both doors, or None if they serve without TLS. Raises BadRequest."""
    return Certificates(settings, settings.tls_cert) if settings.tls_cert else None
