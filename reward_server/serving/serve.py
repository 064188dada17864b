"""Runs `motion-reward serve` and `motion-reward worker`: starts the parts in order and ends them in reverse.

The server starts Redis, takes its addresses, starts the workers, waits until one has loaded its
weights, and then serves. SIGTERM or Ctrl-C starts the drain: new clips are refused, waiting callers are
answered, workers finish or hand back their jobs, and results can be fetched meanwhile. Then the doors close
and Redis ends. A second signal ends the waiting. A private Redis keeps the rest for the next start.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack, suppress

import structlog
from pydantic import SecretStr

from reward_server import log as logs
from reward_server.doors.access import Access, check_exposure
from reward_server.doors.certificates import certificates_of
from reward_server.doors.grpc_api import GrpcDoor
from reward_server.doors.http_server import HttpDoor
from reward_server.doors.metrics import Metrics
from reward_server.doors.service import Service
from reward_server.errors import NotReady
from reward_server.queue.door_queue import DoorQueue
from reward_server.queue.feature_folder import make_folder
from reward_server.queue.redis_link import connect
from reward_server.scorer import Scorer
from reward_server.serving.private_redis import PrivateRedis
from reward_server.serving.signals import Stop
from reward_server.serving.tracing import start_tracing
from reward_server.serving.worker_processes import WorkerProcesses, end_with_stdin
from reward_server.settings import Settings

POLL_S = 0.1
SPARE_FILES = 256
LAST_ANSWERS_S = 1.0  # for requests that read results when the doors close

log = structlog.get_logger("serve")


def run_server(settings: Settings, num_workers: int) -> None:
    """Serve until a signal comes.

    Raises NotReady if the workers cannot start or cannot write to their folder, OSError if an address is taken, and
    BadRequest if anyone could call a door off loopback, or if the certificates cannot be used.
    """
    logs.configure(settings.log_level)
    check_exposure(settings)
    certificates_of(settings)  # refused before anything starts
    if num_workers:
        make_folder(settings)
    _allow_files(settings)
    start_tracing(settings, "motion-reward-server")
    asyncio.run(serve(settings, num_workers))


def run_workers(settings: Settings, num_workers: int, *, end_with_parent: bool) -> None:
    """Run workers until a signal comes. With `end_with_parent`, also until standard input ends.

    A single worker runs in this process, and NotReady is raised if it has no weights. More run in processes of their
    own. NotReady is also raised if motion features cannot be written to their folder.
    """
    logs.configure(settings.log_level)
    make_folder(settings)
    if end_with_parent:
        end_with_stdin()
    start_tracing(settings, "motion-reward-worker")
    if num_workers > 1:
        asyncio.run(keep_workers(settings, num_workers))
        return
    from reward_server.worker.scoring import load_scorer  # noqa: PLC0415 - the doors must not import torch

    scorer = load_scorer(settings)  # a signal ends the process at once meanwhile: there is nothing to drain yet
    asyncio.run(work(settings, scorer))


async def work(settings: Settings, scorer: Scorer) -> None:
    """Run one worker in this process until a signal comes and it has drained."""
    from reward_server.worker.worker import run_worker  # noqa: PLC0415

    stop = Stop()
    with stop.on_signals():
        await run_worker(settings, scorer, stop.asked)


async def keep_workers(settings: Settings, num_workers: int) -> None:
    """Run worker processes without doors, from start to end."""
    stop = Stop()
    with stop.on_signals():
        workers = WorkerProcesses(settings, num_workers, stop.hurry)
        workers.start()
        await stop.asked.wait()
        await workers.stop()


async def serve(settings: Settings, num_workers: int) -> None:
    """Run the whole server, from start to end."""
    stop = Stop()
    async with AsyncExitStack() as stack:
        stack.enter_context(stop.on_signals())
        stack.callback(stop.check)
        is_private = settings.redis_url is None
        settings = await with_redis(settings, stack, stop)
        queue = DoorQueue(connect(settings), settings)
        await queue.open()
        stack.push_async_callback(queue.close)
        if is_private:  # the workers of an earlier server are gone, also if it was killed
            log.info("the queue was kept", jobs=(await queue.depth()).jobs, returned=await queue.return_all())
        service = Service(queue, settings, Metrics())
        access = Access(settings)
        http, grpc = HttpDoor(service, settings, access), GrpcDoor(service, settings, access)
        secure = "s" if settings.tls_cert else ""
        addresses = {"http": f"http{secure}://{http.bind()}", "grpc": f"grpc{secure}://{grpc.bind()}"}
        workers = WorkerProcesses(settings, num_workers, stop.hurry)
        workers.start()
        stack.push_async_callback(workers.stop)
        stack.push_async_callback(_close, http, grpc, 0.0)  # also if they were never started
        if num_workers and not await _workers_ready(service, workers, stop):
            return
        await asyncio.gather(http.start(), grpc.start())
        log.info("serving", profile=settings.profile, **addresses)
        print(f"motion-reward serves {settings.profile} at {addresses['http']} and {addresses['grpc']}", flush=True)
        await stop.asked.wait()
        log.info("draining", at_most_s=settings.drain_s)
        service.stop()
        await stop.unless_hurried(asyncio.ensure_future(_drain(service, workers, settings.drain_s)))
        await stop.unless_hurried(asyncio.ensure_future(_close(http, grpc, LAST_ANSWERS_S)))


def _allow_files(settings: Settings) -> None:
    """Raise this process's limit of open files as far as its connections need, if the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 3 * settings.max_connections + SPARE_FILES  # both doors, and a file for each upload on disk
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard >= 0 else needed, hard))
    if 0 <= hard < needed:
        log.warning("few files may be open; lower max_connections, or raise `ulimit -n`", limit=hard, needed=needed)


async def _drain(service: Service, workers: WorkerProcesses, within_s: float) -> None:
    """Answer the callers who wait, for at most `within_s`, and then end the workers. The doors stay open meanwhile."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await service.idle()
    await workers.stop()


async def _close(http: HttpDoor, grpc: GrpcDoor, grace_s: float) -> None:
    await asyncio.gather(http.stop(grace_s), grpc.stop(grace_s))


async def with_redis(settings: Settings, stack: AsyncExitStack, stop: Stop) -> Settings:
    """The settings with the URL of a Redis: the given one, or a private one that runs until `stack` ends.

    The motion of training runs is in files beside a private Redis. If that Redis dies and cannot be started again, the
    server stops too.
    """
    if settings.redis_url is not None:
        return settings
    redis = PrivateRedis(settings)
    await asyncio.to_thread(redis.start)
    keeping = asyncio.create_task(redis.keep(), name="private-redis")
    keeping.add_done_callback(stop.if_failed)
    stack.callback(redis.stop)
    stack.callback(keeping.cancel)
    feature_dir = settings.feature_dir or redis.folder / "features"
    return settings.model_copy(update={"redis_url": SecretStr(redis.url), "feature_dir": feature_dir})


async def _workers_ready(service: Service, workers: WorkerProcesses, stop: Stop) -> bool:
    """Wait until a worker is ready. False if a signal came first. Raises NotReady if a worker dies while it starts."""
    while not stop.asked.is_set():
        if (await service.readiness()).ready:
            return True
        if workers.died.is_set():
            raise NotReady("the worker ended before it was ready; its messages are above")
        await asyncio.sleep(POLL_S)
    return False
