"""`motion-reward serve` and `worker`: what is started, in which order, and how it ends.

Load first, then open the doors: take the addresses, start Redis and the workers, wait until one has
its weights, then serve. SIGTERM or Ctrl-C drains in the reverse order: doors shut to new requests,
those under way are answered, workers finish or hand back, Redis ends. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import structlog
import uvicorn
from pydantic import SecretStr

from reward_server import log as logs
from reward_server.doors.grpc_api import GrpcDoor
from reward_server.doors.http_api import create_app
from reward_server.errors import NotReady
from reward_server.metrics import Metrics
from reward_server.queue.jobs import JobQueue
from reward_server.queue.private_redis import PrivateRedis
from reward_server.queue.redis_link import connect
from reward_server.service import Service
from reward_server.settings import Settings
from reward_server.worker_processes import WorkerProcesses, end_with_stdin

POLL_S = 0.1

log = structlog.get_logger("serve")


def run_server(settings: Settings, num_workers: int) -> None:
    """Serve until a signal. Raises NotReady if the workers cannot start, OSError if an address is taken."""
    logs.configure(settings.log_level)
    asyncio.run(serve(settings, num_workers))


def run_workers(settings: Settings, num_workers: int, *, end_with_parent: bool) -> None:
    """Work until a signal, in this process if it is one worker; with `end_with_parent` until standard input ends."""
    from reward_server.worker import run_worker  # noqa: PLC0415 - torch stays out of the doors

    logs.configure(settings.log_level)
    if end_with_parent:
        end_with_stdin()
    asyncio.run(run_worker(settings) if num_workers == 1 else keep_workers(settings, num_workers))


async def keep_workers(settings: Settings, num_workers: int) -> None:
    """Worker processes without doors, from start to end."""
    stop = Stop()
    with stop.on_signals():
        workers = WorkerProcesses(settings, num_workers, stop.hurry)
        workers.start()
        await stop.wait()
        await workers.stop()


async def serve(settings: Settings, num_workers: int) -> None:
    """The whole server, from start to end."""
    stop = Stop()
    async with AsyncExitStack() as stack:
        stack.enter_context(stop.on_signals())
        stack.callback(stop.check)
        settings = await _with_redis(settings, stack, stop)
        queue = JobQueue(connect(settings), settings)
        await queue.open()
        stack.push_async_callback(queue.close)
        service = Service(queue, settings, Metrics())
        http, grpc = HttpDoor(service, settings), GrpcDoor(service, settings)
        addresses = {"http": f"http://{http.bind()}", "grpc": f"grpc://{grpc.bind()}"}
        workers = WorkerProcesses(settings, num_workers, stop.hurry)
        workers.start()
        stack.push_async_callback(workers.stop)
        stack.push_async_callback(_close, http, grpc, 0.0)  # also where we never got to open them
        if num_workers and not await _workers_ready(service, workers, stop):
            return
        await asyncio.gather(http.start(), grpc.start())
        log.info("serving", profile=settings.profile, **addresses)
        print(f"motion-reward serves {settings.profile} at {addresses['http']} and {addresses['grpc']}", flush=True)
        await stop.wait()
        log.info("draining", at_most_s=settings.drain_s)
        await stop.unless_hurried(asyncio.ensure_future(_close(http, grpc, settings.drain_s)))


async def _close(http: HttpDoor, grpc: GrpcDoor, grace_s: float) -> None:
    await asyncio.gather(http.stop(grace_s), grpc.stop(grace_s))


class Stop:
    """Signals as something to wait for: the first says stop, the second says now."""

    def __init__(self) -> None:
        self._stop, self.hurry = asyncio.Event(), asyncio.Event()
        self._failure: BaseException | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.signal)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def signal(self) -> None:
        (self.hurry if self._stop.is_set() else self._stop).set()

    def if_failed(self, task: asyncio.Task[Any]) -> None:
        """For a task's end: if it has failed, stop at once, and let `check` raise its error."""
        if not task.cancelled() and (error := task.exception()):
            self._failure = error
            self._stop.set()
            self.hurry.set()

    def check(self) -> None:
        """Raises the error of the task that failed."""
        if self._failure:
            raise self._failure

    @property
    def wanted(self) -> bool:
        return self._stop.is_set()

    async def wait(self) -> None:
        await self._stop.wait()

    async def unless_hurried(self, work: asyncio.Future[Any]) -> None:
        """Wait for `work`, but not past the second signal."""
        hurry = asyncio.create_task(self.hurry.wait())
        await asyncio.wait((work, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


class HttpDoor:
    """uvicorn under our own signals: `bind`, then `start`, then `stop`."""

    def __init__(self, service: Service, settings: Settings) -> None:
        config = uvicorn.Config(create_app(service, settings), log_config=None, access_log=False, lifespan="off")
        self._address = settings.http
        self._server = _Uvicorn(config)
        self._sockets: list[socket.socket] = []
        self._serving: asyncio.Task[None] | None = None

    def bind(self) -> str:
        """Take the address of settings.http and return it with the port it got. Raises OSError if it is taken."""
        host, _, port = self._address.rpartition(":")
        family, *_, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(where)
            bound.listen()  # until then another process could still take it
        except OSError as error:
            bound.close()
            raise OSError(f"cannot listen on {self._address} (HTTP): {error.strerror}; is the port taken?") from error
        self._sockets = [bound]
        return f"{host}:{bound.getsockname()[1]}"

    async def start(self) -> None:
        """Return once requests are answered. Raises what kept uvicorn from it."""
        self._serving = asyncio.create_task(self._server.serve(self._sockets), name="http")
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._serving, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            listening.cancel()
            await self._serving

    async def stop(self, grace_s: float) -> None:
        """No new requests, `grace_s` (whole seconds) for those under way, then they are answered 503.

        Twice is fine: with 0 the second ends the wait of the first.
        """
        if self._serving is not None:
            self._server.config.timeout_graceful_shutdown = round(grace_s)
            self._server.should_exit = True
            if grace_s == 0:
                self._server.force_exit = True
                for task in self._server.server_state.tasks:
                    task.cancel()
            await asyncio.wait({self._serving})  # not the task itself: whoever is tired of waiting must not cancel it
        for bound in self._sockets:
            bound.close()


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


async def _with_redis(settings: Settings, stack: AsyncExitStack, stop: Stop) -> Settings:
    """The settings with a Redis in them: the given one, or a private one that lives as long as `stack`.

    A private one that dies and cannot be started again is the end of everything: then the server stops with it.
    """
    if settings.redis_url is not None:
        return settings
    redis = PrivateRedis(settings)
    await asyncio.to_thread(redis.start)
    keeping = asyncio.create_task(redis.keep(), name="private-redis")
    keeping.add_done_callback(stop.if_failed)
    stack.callback(redis.stop)
    stack.callback(keeping.cancel)
    return settings.model_copy(update={"redis_url": SecretStr(redis.url)})


async def _workers_ready(service: Service, workers: WorkerProcesses, stop: Stop) -> bool:
    """Whether a worker has its weights; False if a signal came first. Raises NotReady if one dies of its start."""
    while not stop.wanted:
        if (await service.readiness()).ready:
            return True
        if workers.died.is_set():
            raise NotReady("the worker ended before it was ready; its messages are above")
        await asyncio.sleep(POLL_S)
    return False
