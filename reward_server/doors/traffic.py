"""Counts and times the calls at both doors for /metrics: by route and status over HTTP, by method and code over gRPC.

Callers choose paths and methods, so labels name only those that the server has, and `other` stands for the rest. No
library serves here. FastAPI could measure its routes, but needs OpenTelemetry's SDK and an exporter in every server.
prometheus-fastapi-instrumentator takes the HTTP method as it was sent, without a limit. gRPC has no kept library.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protos.tracing import HEADER, span

OTHER = "other"
OURS = "motion_reward."  # the package of reward.proto
UNANSWERED = "none"  # the status of a request whose caller left before it was answered
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
CODES = {code.value[0]: code.name for code in grpc.StatusCode}

Call: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = Any  # grpc.RpcMethodHandler, which has type parameters only in the stubs


class Traffic:
    """The counters and histograms of calls. Each call is counted when it ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._http = Counter(
            "motion_reward_http_requests",
            "HTTP requests answered. Paths and methods that the server does not have are `other`.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._http_seconds = Histogram(
            "motion_reward_http_request_duration_seconds",
            "Time from an HTTP request's head to the end of its answer.",
            ["method", "route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._grpc = Counter(
            "motion_reward_grpc_calls",
            "gRPC calls ended. Methods that the server does not have are `other`.",
            ["method", "code"],
            registry=registry,
        )
        self._grpc_seconds = Histogram(
            "motion_reward_grpc_call_duration_seconds",
            "Time from a gRPC call's begin to its end. A stream ends with its last message.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )

    def http(self, method: str, route: str, status: str, took_s: float) -> None:
        """Record one HTTP request. The caller bounds `route`."""
        method = method if method in METHODS else OTHER
        self._http.labels(method, route, status).inc()
        self._http_seconds.labels(method, route).observe(took_s)

    def grpc(self, method: str, code: str, took_s: float) -> None:
        """Record one gRPC call. The caller bounds `method`."""
        self._grpc.labels(method, code).inc()
        self._grpc_seconds.labels(method).observe(took_s)


class Measured(Protocol):
    """What the doors serve, as far as it concerns their meters."""

    @property
    def traffic(self) -> Traffic: ...


class HttpMeter:
    """Reports each HTTP request to the traffic. It is the outermost middleware, so it sees the status that is sent."""

    def __init__(self, app: ASGIApp, service: Measured, routes: Sequence[BaseRoute]) -> None:
        self._app, self._traffic = app, service.traffic
        self._paths = frozenset(str(getattr(route, "path", OTHER)) for route in routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = UNANSWERED

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, watched_send)
        finally:
            self._traffic.http(scope["method"], self._route(scope), status, time.perf_counter() - started)

    def _route(self, scope: Scope) -> str:
        """The path of the route, with the names of its parameters. A request that is refused earlier has no route."""
        path = getattr(scope.get("route"), "path", scope["path"])
        return path if path in self._paths else OTHER


class GrpcMeter(grpc.aio.ServerInterceptor):
    """Reports each gRPC call to the traffic. It is the first interceptor, so it sees the code that is sent."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            self._traffic.grpc(OTHER, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
            return None
        return self._metered(handler, str(handler_call_details.method).strip("/"))

    def _metered(self, handler: Handler, method: str) -> Handler:
        reads, answers = handler.request_streaming, handler.response_streaming
        name = f"{'stream' if reads else 'unary'}_{'stream' if answers else 'unary'}"
        behaviour, make = getattr(handler, name), getattr(grpc, f"{name}_rpc_method_handler")
        metered = self._generator if inspect.isasyncgenfunction(behaviour) else self._coroutine
        return make(metered(behaviour, method), handler.request_deserializer, handler.response_serializer)

    def _coroutine(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: Call) -> Any:
            with self._call(method, context), _traced(method, context):
                return await behaviour(request, context)

        return call

    def _generator(self, behaviour: Any, method: str) -> Any:
        async def call(request: Any, context: Call) -> AsyncIterator[Any]:
            with self._call(method, context), _traced(method, context, current=False):
                async for answer in behaviour(request, context):
                    yield answer

        return call

    @contextmanager
    def _call(self, method: str, context: Call) -> Iterator[None]:
        started, code = time.perf_counter(), ""
        try:
            yield
            code = _code(context)
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.name
            raise
        except BaseException:
            code = _code(context)
            if code == grpc.StatusCode.OK.name:  # it was not ended by `abort`: gRPC reports this for any exception
                code = grpc.StatusCode.UNKNOWN.name
            raise
        finally:
            self._traffic.grpc(method, code, time.perf_counter() - started)


def _traced(method: str, context: Call, *, current: bool = True) -> AbstractContextManager[None]:
    """A span of one of our calls, in the trace that its caller hands on. FastAPI itself does this for HTTP."""
    if not method.startswith(OURS):  # health checks and reflection
        return nullcontext()
    given = {name: value for name, value in context.invocation_metadata() or () if name == HEADER}
    return span(method, "server", parent=str(given.get(HEADER, "")), current=current)


def _code(context: Call) -> str:
    """The name of the call's code. gRPC keeps it as a number, and as none while nothing was set."""
    code: Any = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else CODES.get(code or 0, OTHER)
