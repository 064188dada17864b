"""Decides which servers are reached without the proxy of the environment, by the same rule for HTTP and gRPC."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

import httpx

from protos.addresses import is_loopback


def http_options(url: str, context: ssl.SSLContext | None = None) -> dict[str, Any]:
    """Keyword arguments for an httpx client that turn the proxy off for this machine, with the context for TLS.

    For other machines httpx reads HTTP_PROXY, NO_PROXY and so on itself.
    """
    if not is_loopback(urlsplit(url).hostname or ""):
        return {"verify": context} if context else {}
    # trust_env=False turns off SSL_CERT_FILE too, so the context is made here. With trust_env on, httpx would need
    # one more package for ALL_PROXY=socks5://...
    return {"trust_env": False, "verify": context or httpx.create_ssl_context()}


def grpc_options(target: str) -> tuple[tuple[str, int], ...]:
    """Channel options that turn the proxy off for this machine and for hosts in no_proxy or NO_PROXY.

    gRPC itself reads http_proxy and no_proxy in lower case only.
    """
    host = urlsplit(f"//{target}").hostname or ""
    direct = is_loopback(host) or bool(proxy_bypass(host))
    return (("grpc.enable_http_proxy", 0),) if direct else ()
