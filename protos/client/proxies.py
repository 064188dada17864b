"""Decides which servers are reached without the proxy of the environment, by the same rule for HTTP and gRPC."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import httpx


def http_options(url: str) -> dict[str, Any]:
    """Keyword arguments for an httpx client that turn the proxy off for this machine.

    For other machines there are none, because httpx reads HTTP_PROXY, NO_PROXY and so on itself.
    """
    if not is_loopback(urlsplit(url).hostname or ""):
        return {}
    # trust_env=False turns off SSL_CERT_FILE too, so the context is made here. With trust_env on, httpx would need
    # one more package for ALL_PROXY=socks5://...
    return {"trust_env": False, "verify": httpx.create_ssl_context()}


def grpc_options(target: str) -> tuple[tuple[str, int], ...]:
    """Channel options that turn the proxy off for this machine and for hosts in no_proxy or NO_PROXY.

    gRPC itself reads http_proxy and no_proxy in lower case only.
    """
    host = urlsplit(f"//{target}").hostname or ""
    direct = is_loopback(host) or bool(proxy_bypass(host))
    return (("grpc.enable_http_proxy", 0),) if direct else ()


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine: localhost, 127.0.0.0/8 or ::1. Give it without brackets and port."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
