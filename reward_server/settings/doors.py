"""Defines the settings of the doors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from protos.addresses import host_of, is_loopback
from protos.types import SCORE_TIMEOUT_S
from reward_server.settings.group import MIB, Group, names


class DoorSettings(Group):
    """How HTTP and gRPC are served, to whom, and within what limits."""

    http: str = Field("127.0.0.1:8000", description="HOST:PORT on which HTTP is served; loopback by default.")
    grpc: str = Field("127.0.0.1:50051", description="HOST:PORT on which gRPC is served; loopback by default.")
    keys_file: Path | None = Field(
        None,
        description="File with the hashes of API keys (see `motion-reward keys`). Once it exists, both doors require a "
        "key. Default: `keys.json` in the data folder.",
    )
    allow_anyone: bool = Field(
        False,
        description="Serve without keys also off loopback. If false, a server that listens off loopback does not start "
        "before there is a key.",
    )
    tls_cert: Path | None = Field(
        None,
        description="File with the certificate (PEM, with its chain) under which both doors serve TLS. Default: none.",
    )
    tls_key: Path | None = Field(
        None, description="File with the private key of `tls_cert`. Default: in the same file."
    )
    tls_key_password: SecretStr | None = Field(None, description="Password of `tls_key`, if it is encrypted.")
    tls_client_ca: Path | None = Field(
        None,
        description="File with the certificates (PEM) of those who sign clients' certificates. If it is set, a client "
        "without such a certificate cannot connect.",
    )
    metrics_public: bool = Field(False, description="Serve /metrics without a key, also if the doors require keys.")
    api_key: SecretStr | None = Field(
        None, description="Key that `motion-reward score --server` and the other commands with --server send."
    )
    ca: Path | None = Field(
        None,
        description="File with the certificates (PEM) that the commands with --server trust, for https:// and grpcs:// "
        "addresses. Default: those of the system or of the Python packages.",
    )
    cert: Path | None = Field(
        None, description="File with the certificate (PEM) that the commands with --server present, if the server asks."
    )
    cert_key: Path | None = Field(
        None, description="File with the private key of `cert`, not encrypted. Default: in the same file."
    )
    allowed_hosts: str = Field(
        "",
        description="Names under which HTTP is served (the Host header), without ports, separated by commas; `*` "
        "allows any. Default: localhost and loopback addresses if HTTP is on loopback, else any.",
    )
    page: bool | None = Field(
        None,
        description="Serve the page at `/`. Default: on if HTTP is on loopback, else off.",
    )
    cors_origins: str = Field(
        "",
        description="Web pages that may call the server from a browser: origins such as `https://lab.example`, "
        "separated by commas. Default: none.",
    )
    head_max_bytes: int = Field(
        64 * 1024,
        ge=8192,
        description="Maximum number of bytes in the headers of an HTTP request, and in the metadata of a gRPC call.",
    )
    head_timeout_s: float = Field(
        10.0, gt=0, description="Time a connection has to send a whole request header, and then to begin its body."
    )
    upload_min_bytes_per_s: int = Field(
        16 * 1024,
        ge=1,
        description="Slowest rate at which a body may arrive, after `head_timeout_s`, in bytes per second.",
    )
    max_connections: int = Field(1024, ge=1, description="Maximum number of open connections of each door.")
    max_connections_per_address: int = Field(
        512,
        ge=1,
        description="Maximum number of HTTP connections, and of gRPC calls in flight, from one address. Behind a "
        "proxy, which is one address, set it to `max_connections`.",
    )
    max_requests: int = Field(768, ge=1, description="Maximum number of requests in flight at each door.")
    upload_memory_bytes: int = Field(
        256 * MIB,
        ge=MIB,
        description="Memory for the uploads of all requests: a quarter for those that arrive, the rest for those on "
        "their way into the queue. Beyond it, arriving uploads go to disk.",
    )
    upload_disk_bytes: int = Field(
        4096 * MIB, ge=0, description="Maximum number of bytes of uploads on disk, over all requests."
    )
    upload_dir: Path | None = Field(
        None, description="Folder for uploads that arrive. Default: `uploads` in the data folder."
    )
    grpc_max_message_bytes: int = Field(
        4 * MIB,
        ge=64 * 1024,
        description="Maximum number of bytes in one gRPC message; the Submit call sends larger clips in chunks.",
    )
    score_timeout_s: float = Field(
        SCORE_TIMEOUT_S, gt=0, description="Maximum wait of a synchronous request, in seconds."
    )
    drain_s: float = Field(30.0, ge=0, description="Time a stopping process has to finish its work, in seconds.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    tracing: bool = Field(
        False,
        description="Whether servers and workers export OpenTelemetry traces of clips to where the `OTEL_` variables "
        "say. Needs the extra `tracing`.",
    )

    @property
    def serves_page(self) -> bool:
        return is_loopback(host_of(self.http)) if self.page is None else self.page

    @field_validator("http", "grpc")
    @classmethod
    def _host_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"'{value}' is not HOST:PORT, for instance 127.0.0.1:8000")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        for origin in names(value):
            if not re.fullmatch(r"https?://[^/*\s]+", origin):
                raise ValueError(f"'{origin}' is not an origin; give each one as https://HOST or http://HOST:PORT")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        given = [name for name in ("tls_key", "tls_key_password", "tls_client_ca") if getattr(self, name)]
        if given and not self.tls_cert:
            raise ValueError(f"{given[0]} is set without tls_cert; give the server's certificate too")
        return self
