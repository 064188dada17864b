"""Asks for a key at the HTTP door, before a route or its body is read.

Health, the files of the page and the documentation are free.
"""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from reward_server.doors.access import ANYONE, Access, Caller
from reward_server.doors.key_file import Scope
from reward_server.errors import Unauthenticated

FREE = ("/", "/healthz", "/readyz", "/ready", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs", "/redoc")
FREE_FOLDERS = ("/static-offline-docs/", "/page/")
SCOPES = {"/metrics": Scope.METRICS, "/v1/refresh": Scope.REFRESH}
OPERATION = ("/v1/version", "/v1/dead-letter")  # paths that begin so are for operators, and show the runs of all keys


class KeyGuard:
    """Finds the caller of each request, and checks the scope. Routes get it from `caller_of`."""

    def __init__(self, app: ASGIApp, access: Access, *, metrics_public: bool) -> None:
        self._app, self._access = app, access
        self._free = {*FREE, "/metrics"} if metrics_public else {*FREE}

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, caller = scope["path"], ANYONE
            if path not in self._free and not path.startswith(FREE_FOLDERS):
                caller = await self._caller(Headers(scope=scope))
                caller.check(Scope.ADMIN if path.startswith(OPERATION) else SCOPES.get(path, Scope.SCORE))
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    async def _caller(self, headers: Headers) -> Caller:
        given = headers.getlist("authorization")
        if len(given) > 1:
            raise Unauthenticated("the request has several Authorization headers; send one")
        return await self._access.caller(given[0] if given else None)


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller
