"""Limits HTTP requests: how many are in flight, and the size and pace of their bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reward_server.doors.gate import Gate, Pace
from reward_server.doors.http_keys import FREE
from reward_server.errors import BadRequest, RequestTooLarge
from reward_server.settings import MIB, Settings

CLIPS = ("/v1/score", "/v1/jobs", "/v1/page/copy")  # their bodies are counted, spooled and limited by http_body.py
BODY_BYTES = MIB  # of any other request


class RequestGate:
    """Counts requests in flight. Health checks and the documentation pass always."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._gate = Gate(settings.max_requests, settings.max_connections_per_address)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in FREE:
            await self._app(scope, receive, send)
            return
        host, _ = scope["client"] or ("", 0)
        with self._gate.passing(host):
            await self._app(scope, receive, send)


class BodyGuard:
    """Paces the bodies of clips, and reads any other body whole, up to BODY_BYTES, before the route sees it."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _has_body(scope):
            if scope["path"] in CLIPS:
                receive = _paced(receive, self._settings)
            else:
                receive = _replayed(await _whole(_paced(receive, self._settings)), receive)
        await self._app(scope, receive, send)


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _paced(receive: Receive, settings: Settings) -> Receive:
    """`receive` with the pace of the body. What comes after the body is not timed: it tells that the client left."""
    ended = False

    async def messages() -> AsyncIterator[Message]:
        while True:
            yield await receive()

    parts = Pace(settings).each(messages(), lambda message: len(message.get("body", b"")))

    async def paced() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        message = await anext(parts)
        ended = not message.get("more_body", False)
        return message

    return paced


async def _whole(receive: Receive) -> bytes:
    """The body of a request without clips. Raises RequestTooLarge, and BadRequest if the client left."""
    pieces, num_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client closed the connection before its body was complete") from ClientDisconnect()
        pieces.append(message.get("body", b""))
        num_bytes += len(pieces[-1])
        if num_bytes > BODY_BYTES:
            raise RequestTooLarge(f"the body is over {BODY_BYTES} bytes, the limit for a request without clips")
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replayed(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
