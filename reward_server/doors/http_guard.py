"""Protects the HTTP door from web pages: allowed hosts, foreign origins, and headers that tell browsers what to refuse.

A page that a user visits can make the browser send requests to this machine. Such a request names the page in
`Origin`, and after DNS rebinding a foreign name in `Host`. Programs send no `Origin`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protos.addresses import host_of, is_loopback
from reward_server.errors import Forbidden
from reward_server.settings import Settings, names

READING = ("GET", "HEAD", "OPTIONS")
# Sent with every answer, also with those that uvicorn gives itself.
HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
)
NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# The pages of the documentation have inline scripts and styles, and Redoc starts a worker.
OWN_PAGES = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "worker-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGES = ("/docs", "/redoc")
# The page at / has its scripts and styles in files, and shows clips that the browser holds. It makes no HTML of text.
CLIP_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def add_guards(app: FastAPI, settings: Settings) -> None:
    """Add CORS if any origin may use it, and around it the checks of host and origin."""
    origins = names(settings.cors_origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(PageGuard, hosts=names(settings.allowed_hosts), origins=origins, http=settings.http)


class PageGuard:
    """Refuses requests under another host name, and requests from foreign pages that would change something."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], origins: tuple[str, ...], http: str) -> None:
        self._app, self._hosts, self._origins = app, tuple(host.lower().strip("[]") for host in hosts), origins
        self._loopback_only = not hosts and is_loopback(host_of(http))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_host(headers.getlist("host"))
            if scope["method"] not in READING:
                self._check_origin(headers.get("origin"), headers.get("host", ""))
        await self._app(scope, receive, send)

    def _check_host(self, given: list[str]) -> None:
        """Raises Forbidden unless the request names one allowed host."""
        host = _name(given[0]) if len(given) == 1 else ""
        if self._loopback_only:
            allowed = is_loopback(host)
        else:
            allowed = not self._hosts or "*" in self._hosts or host in self._hosts
        if not allowed:
            raise Forbidden(f"host {given[:2]} is not served here; allow it with MOTION_REWARD_ALLOWED_HOSTS")

    def _check_origin(self, origin: str | None, host: str) -> None:
        """Raises Forbidden for a page that is neither this server's own nor allowed."""
        if origin is None or origin in self._origins or (host and origin.partition("://")[2].lower() == host.lower()):
            return
        raise Forbidden(f"pages of '{origin[:200]}' may not call this server; allow it with MOTION_REWARD_CORS_ORIGINS")


def _name(host: str) -> str:
    """The name in a Host header: in lower case, without port and brackets. Empty if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class AnswerHeaders:
    """Adds to each answer what its page may load, and that no cache may keep it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = _policy(scope["path"])
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _policy(path: str) -> str:
    if path == "/":
        return CLIP_PAGE
    return OWN_PAGES if path.startswith(PAGES) else NOTHING
