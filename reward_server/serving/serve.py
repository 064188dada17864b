"""`motion-reward serve` and `worker`: what is started, in which order, and how it ends.

Load first, then open the doors: take the addresses, start Redis and the workers, wait until one has
its weights, then serve. SIGTERM or Ctrl-C drains in the reverse order: doors shut to new requests,
those under way are answered, workers finish or hand back, Redis ends. A second signal does not wait.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import structlog
from pydantic import SecretStr

from reward_server import log as logs
from reward_server.doors.grpc_api import GrpcDoor
from reward_server.doors.http_server import HttpDoor
from reward_server.doors.metrics import Metrics
from reward_server.doors.service import Service
from reward_server.errors import NotReady
from reward_server.queue.door_queue import DoorQueue
from reward_server.queue.redis_link import connect
from reward_server.scorer import Scorer
from reward_server.serving.private_redis import PrivateRedis
from reward_server.serving.signals import Stop
from reward_server.serving.worker_processes import WorkerProcesses, end_with_stdin
from reward_server.settings import Settings

POLL_S = 0.1

log = structlog.get_logger("serve")


def run_server(settings: Settings, num_workers: int) -> None:
    """Serve until a signal. Raises NotReady if the workers cannot start, OSError if an address is taken."""
    logs.configure(settings.log_level)
    asyncio.run(serve(settings, num_workers))


def run_workers(settings: Settings, num_workers: int, *, end_with_parent: bool) -> None:
    """Work until a signal, in this process if it is one worker; with `end_with_parent` until standard input ends.

    Raises NotReady if one worker in this process has no weights.
    """
    logs.configure(settings.log_level)
    if end_with_parent:
        end_with_stdin()
    if num_workers > 1:
        asyncio.run(keep_workers(settings, num_workers))
        return
    from reward_server.worker.scoring import load_scorer  # noqa: PLC0415 - torch stays out of the doors

    scorer = load_scorer(settings)  # a signal that comes meanwhile ends the process at once: there is nothing to drain
    asyncio.run(work(settings, scorer))


async def work(settings: Settings, scorer: Scorer) -> None:
    """One worker in this process, until a signal and through its drain."""
    from reward_server.worker.worker import run_worker  # noqa: PLC0415

    stop = Stop()
    with stop.on_signals():
        await run_worker(settings, scorer, stop.asked)


async def keep_workers(settings: Settings, num_workers: int) -> None:
    """Worker processes without doors, from start to end."""
    stop = Stop()
    with stop.on_signals():
        workers = WorkerProcesses(settings, num_workers, stop.hurry)
        workers.start()
        await stop.asked.wait()
        await workers.stop()


async def serve(settings: Settings, num_workers: int) -> None:
    """The whole server, from start to end."""
    stop = Stop()
    async with AsyncExitStack() as stack:
        stack.enter_context(stop.on_signals())
        stack.callback(stop.check)
        settings = await _with_redis(settings, stack, stop)
        queue = DoorQueue(connect(settings), settings)
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
        await stop.asked.wait()
        log.info("draining", at_most_s=settings.drain_s)
        await stop.unless_hurried(asyncio.ensure_future(_close(http, grpc, settings.drain_s)))


async def _close(http: HttpDoor, grpc: GrpcDoor, grace_s: float) -> None:
    await asyncio.gather(http.stop(grace_s), grpc.stop(grace_s))


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
    while not stop.asked.is_set():
        if (await service.readiness()).ready:
            return True
        if workers.died.is_set():
            raise NotReady("the worker ended before it was ready; its messages are above")
        await asyncio.sleep(POLL_S)
    return False
