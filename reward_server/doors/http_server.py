"""Runs the HTTP door: uvicorn on a socket that is bound before serving starts."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from reward_server.doors.access import Access
from reward_server.doors.certificates import certificates_of
from reward_server.doors.connections import DoorProtocol, DoorSocket
from reward_server.doors.http_api import create_app
from reward_server.doors.http_guard import HEADERS
from reward_server.doors.service import Service
from reward_server.settings import Settings


class HttpDoor:
    """uvicorn without its signal handlers. Call `bind`, then `start`, then `stop`."""

    def __init__(self, service: Service, settings: Settings, access: Access) -> None:
        config = uvicorn.Config(
            create_app(service, settings, access),
            http=functools.partial(DoorProtocol, settings=settings),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            headers=list(HEADERS),
            ssl_context_factory=_tls(settings),
        )
        self._settings, self._address = settings, settings.http
        self._server = _Uvicorn(config)
        self._sockets: list[socket.socket] = []
        self._serving: asyncio.Task[None] | None = None

    def bind(self) -> str:
        """Take the address of settings.http and return it with the port it got. Raises OSError if it is taken."""
        host, _, port = self._address.rpartition(":")
        family, *_, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        bound = DoorSocket(family, self._settings)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(where)
            bound.listen()  # before this, another process could still take the address
        except OSError as error:
            bound.close()
            raise OSError(f"cannot listen on {self._address} (HTTP): {error.strerror}; is the port taken?") from error
        self._sockets = [bound]
        return f"{host}:{bound.getsockname()[1]}"

    async def start(self) -> None:
        """Return once requests are answered. Raises the error that stopped uvicorn if it does not start."""
        self._serving = asyncio.create_task(self._server.serve(self._sockets), name="http")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            await self._serving

    async def stop(self, grace_s: float) -> None:
        """Take no new requests. Give running ones `grace_s` (in whole seconds), then answer them with 503.

        A second call with 0 ends the wait of the first.
        """
        if self._serving is not None:
            self._server.config.timeout_graceful_shutdown = round(grace_s)
            self._server.should_exit = True
            if grace_s == 0:
                self._server.force_exit = True
                for task in self._server.server_state.tasks:
                    task.cancel()
            await asyncio.wait({self._serving})  # awaiting the task itself would cancel it if the caller is cancelled
        for bound in self._sockets:
            bound.close()


def _tls(settings: Settings) -> Callable[..., ssl.SSLContext] | None:
    """What gives uvicorn its context for TLS. None: it serves without."""
    certificates = certificates_of(settings)
    if certificates is None:
        return None
    context = certificates.http_context()
    return lambda *_: context


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to Stop."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()
