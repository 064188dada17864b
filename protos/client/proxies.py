"""Which servers are reached without the proxy of the environment; the same for HTTP and gRPC."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import httpx


def http_options(url: str) -> dict[str, Any]:
    """Keyword arguments of an httpx client: for other machines httpx reads HTTP_PROXY, NO_PROXY and so on itself."""
    if not is_loopback(urlsplit(url).hostname or ""):
        return {}
    # Without trust_env httpx would forget SSL_CERT_FILE too; with it, ALL_PROXY=socks5://... needs a package more.
    return {"trust_env": False, "verify": httpx.create_ssl_context()}


def grpc_options(target: str) -> tuple[tuple[str, int], ...]:
    """Channel options. gRPC reads http_proxy and no_proxy in lower case alone: NO_PROXY is read here."""
    host = urlsplit(f"//{target}").hostname or ""
    direct = is_loopback(host) or bool(proxy_bypass(host))
    return (("grpc.enable_http_proxy", 0),) if direct else ()


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself: localhost, 127.0.0.0/8 or ::1, without brackets or port."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
