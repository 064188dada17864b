"""Limits the connections of the HTTP door before a request exists: how many there are, and how they send its header.

uvicorn has no such limits. Its parser h11 has one for the bytes of a header, but takes 1.7 times the CPU of httptools
for a large body, so httptools stays and the limits stand around it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from protos.error_codes import ErrorCode
from reward_server.doors.gate import network_of
from reward_server.settings import Settings

MAX_HEADERS = 100
LOG_PERIOD_S = 10.0  # a flood of connections must not flood the log

log = structlog.get_logger("http")


class DoorSocket(socket.socket):
    """A listening socket. Closes a connection over the limits at once, before TLS or a byte of HTTP."""

    def __init__(self, family: int, settings: Settings) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._limit, self._limit_each = settings.max_connections, settings.max_connections_per_address
        self._open: Counter[str] = Counter()
        self._logged_s = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises ConnectionAbortedError for a connection that was closed. asyncio then goes on to the next one."""
        accepted, address = super().accept()
        host, total = network_of(address[0]), self._open.total()
        if total >= self._limit or self._open[host] >= self._limit_each:
            accepted.close()
            self._tell(host, total)
            raise ConnectionAbortedError(f"{host} has too many connections")
        self._open[host] += 1
        return _Counted(accepted, self._open, host), address

    def _tell(self, host: str, total: int) -> None:
        if time.monotonic() - self._logged_s >= LOG_PERIOD_S:
            self._logged_s = time.monotonic()
            log.warning(
                "closing connections over the limits max_connections and max_connections_per_address",
                address=host, of_address=self._open[host], limit_each=self._limit_each, total=total, limit=self._limit,
            )  # fmt: skip


class _Counted(socket.socket):
    """A connection that is counted until it is closed."""

    def __init__(self, accepted: socket.socket, count: Counter[str], host: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self._count: Counter[str] | None = count
        self._host = host

    def close(self) -> None:
        super().close()
        count, self._count = self._count, None
        if count is not None:
            count[self._host] -= 1
            if not count[self._host]:
                del count[self._host]


class DoorProtocol(HttpToolsProtocol):
    """A connection of uvicorn that sends each header within settings.head_timeout_s, head_max_bytes and MAX_HEADERS.

    What the parser keeps to itself, a line that does not end or the trailers of a body, counts too. A client that does
    not read its answer for head_timeout_s loses the connection.
    """

    def __init__(self, *args: Any, settings: Settings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._num_headers = self._head_bytes = 0
        self._unparsed_bytes = 0  # since the parser told of anything
        self._refused = False
        self.url = b""  # uvicorn sets it with the first byte of a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > self._settings.head_max_bytes:
            self._refuse_head()
        elif not self._head_timer and not self._answering:
            self._wait_for_head()

    def on_message_begin(self) -> None:
        self._num_headers = self._head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._head_bytes += len(name) + len(value)
        self._unparsed_bytes = 0
        self._check_head()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._check_head()
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head_is_large:
            self._refuse_head()
        else:
            self._refuse(400, "Bad Request", f"{msg} See /openapi.json for the requests of this server.")

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self._write_timer = self.loop.call_later(self._settings.head_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    @property
    def _head_is_large(self) -> bool:
        num_bytes = self._head_bytes + len(self.url)
        return self._num_headers > MAX_HEADERS or num_bytes > self._settings.head_max_bytes

    def _check_head(self) -> None:
        if self._head_is_large:
            raise ValueError("the header is over its limits")  # the parser stops, and send_400_response is called

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self._settings.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._answering and not self.transport.is_closing():
            self._refuse(408, "Request Timeout", f"the header did not come within {self._settings.head_timeout_s:g} s")

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            "Request Header Fields Too Large",
            f"a header is limited to {self._settings.head_max_bytes} bytes (head_max_bytes) and {MAX_HEADERS} fields; "
            "send less",
        )

    def _refuse(self, status: int, phrase: str, message: str) -> None:
        """Answer and close, unless an earlier request on the connection is being answered: then only close."""
        self._refused = True
        body = json.dumps({"error": {"code": ErrorCode.BAD_REQUEST, "message": message}}).encode()
        head = [f"HTTP/1.1 {status} {phrase}\r\n".encode()]
        head += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
        head += [b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)]
        if not self._answering:
            self.transport.write(b"".join(head) + body)
        self.transport.close()
