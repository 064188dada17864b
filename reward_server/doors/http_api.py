"""Serves the HTTP door: FastAPI routes over the service, with a request id in every answer and log line.

http_body.py reads the clips of a request, and http_models.py defines the bodies of answers. Nothing
here blocks the event loop, and nothing here scores.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import structlog
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protos.error_codes import ErrorCode
from protos.types import MAX_CHARACTERS, ContractError, Model, RefreshResponse
from reward_server.doors.access import Access
from reward_server.doors.gate import BodyTooSlow
from reward_server.doors.http_admin import add_dead_letters, add_versions
from reward_server.doors.http_body import arrived
from reward_server.doors.http_guard import AnswerHeaders, add_guards
from reward_server.doors.http_keys import FREE, KeyGuard, caller_of
from reward_server.doors.http_limits import BodyGuard, RequestGate
from reward_server.doors.http_models import (
    FAILURES,
    RESULT_EXAMPLE,
    Job,
    JobReference,
    Jobs,
    Live,
    ReadinessBody,
    RefreshBody,
    Result,
    Results,
    clips_request_body,
    failures,
)
from reward_server.doors.http_page import add_page
from reward_server.doors.intake import ContextFields, door_error, request_id, with_timeouts
from reward_server.doors.ownership import OwnService
from reward_server.doors.service import Service
from reward_server.doors.traffic import HttpMeter
from reward_server.errors import (
    BadRequest,
    NotReady,
    Overloaded,
    RequestTooLarge,
    RewardServerError,
    Unauthenticated,
    door,
)
from reward_server.settings import Settings

REQUEST_ID_HEADER = "x-request-id"
ROUTER_CODES = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}
QUIET_PATHS = ("/healthz", "/readyz", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")

Wait = Annotated[
    float, Query(ge=0, le=60, allow_inf_nan=False, description="Seconds to wait for the result before answering.")
]

RunId = Annotated[
    str, Query(max_length=MAX_CHARACTERS, description="Show the latest discriminator version of this run.")
]

log = structlog.get_logger("http")
Own: TypeAlias = Callable[[Request], OwnService]


def create_app(service: Service, settings: Settings, access: Access) -> FastAPI:
    """The app of the HTTP door. It calls `service`, which the caller keeps and closes."""
    app = FastAPIOffline(  # the pages of the documentation bring their scripts with them
        title="Motion reward server",
        summary="Motion-realism rewards for video clips.",
        version="1",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        # If the process traces, FastAPI itself reports a span for each request.
        telemetry={"exclude": _is_quiet, "metrics": False, "logs": False, "operation_spans": False},
    )

    def own(request: Request) -> OwnService:
        return OwnService(service, caller_of(request), settings)

    _add_scoring(app, own, settings)
    _add_jobs(app, own, settings)
    _add_refresh(app, own)
    add_versions(app, service)
    add_dead_letters(app, service)
    _add_health(app, service)
    if settings.serves_page:
        add_page(app, own, settings)
    for kind in (RewardServerError, ContractError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _on_error)
    app.add_middleware(BodyGuard, settings=settings)
    app.add_middleware(KeyGuard, access=access, metrics_public=settings.metrics_public)
    add_guards(app, settings)
    app.add_middleware(RequestGate, settings=settings)
    app.add_middleware(RequestScope)
    app.add_middleware(AnswerHeaders)
    app.add_middleware(HttpMeter, service=service, routes=app.routes)
    document = _openapi(app)  # made now, because it takes a while and would block the event loop during a request
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


def _add_scoring(app: FastAPI, own: Own, settings: Settings) -> None:
    body = {"requestBody": clips_request_body()}
    refusals = failures(400, 409, 413, 415, 429, 503)
    scored: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/json": {"example": {"results": [RESULT_EXAMPLE]}}}}
    }

    @app.post("/v1/score", responses=refusals | scored, openapi_extra=body, tags=["scoring"])
    async def score(request: Request, context: Annotated[ContextFields, Query()]) -> Results:
        """Score clips and wait for all of them. There is one result per clip, in order, even if it cannot be scored."""
        caller = own(request)
        clips = await arrived(request, context, settings, caller.uploads)
        with clips.turn as turn:
            outcomes = await caller.score(clips.taken(), admitted=turn.release)
        return Results(results=[Result.of(outcome) for outcome in outcomes])

    @app.post("/v1/jobs", status_code=202, responses=refusals, openapi_extra=body, tags=["scoring"])
    async def submit(request: Request, context: Annotated[ContextFields, Query()]) -> Jobs:
        """Queue clips. Fetch their results by job id."""
        caller = own(request)
        clips = await arrived(request, context, settings, caller.uploads)
        with clips.turn:
            job_ids = await caller.submit(clips.taken())
        return Jobs(jobs=[JobReference(id=job_id) for job_id in job_ids])


def _add_jobs(app: FastAPI, own: Own, settings: Settings) -> None:
    @app.get("/v1/jobs/{job_id}", responses=failures(400, 404, 503), tags=["scoring"])
    async def job(request: Request, job_id: str, wait_s: Wait = 0) -> Job:
        """The state of a job, and its result once it is done."""
        view = await own(request).job(job_id, wait_s)
        return Job(id=view.id, state=view.state, result=view.outcome and Result.of(view.outcome))

    @app.get("/v1/model", responses=failures(400, 503), tags=["scoring"])
    async def model(request: Request, run_id: RunId = "") -> Model:
        """The served model: profile, discriminator version, digests, bounds, limits and the clips it accepts."""
        return with_timeouts(await own(request).model(run_id), settings)


def _add_refresh(app: FastAPI, own: Own) -> None:
    @app.post("/v1/refresh", responses=failures(400, 404, 409, 500, 503, 504), tags=["training"])
    async def refresh(request: Request, body: RefreshBody) -> RefreshResponse:
        """Train a run's discriminators on its recent real clips and rollouts. Answers once the new version serves.

        This takes seconds to minutes. If it fails or takes too long, nothing is published: the old version serves on.
        """
        return await own(request).refresh(body.value(), math.inf)


def _add_health(app: FastAPI, service: Service) -> None:
    not_ready: dict[int | str, dict[str, Any]] = {
        503: {"model": ReadinessBody, "description": "No weights, no Redis or no live worker. The body says which."}
    }

    @app.get("/healthz", tags=["health"])
    @app.get("/v2/health/live", tags=["health"], include_in_schema=False)
    async def live() -> Live:
        """Whether this process answers."""
        return Live()

    @app.get("/readyz", tags=["health"], responses=not_ready, response_model=ReadinessBody)
    @app.get("/ready", tags=["health"], include_in_schema=False, response_model=ReadinessBody)
    @app.get("/v2/health/ready", tags=["health"], include_in_schema=False, response_model=ReadinessBody)
    async def ready() -> JSONResponse:
        """Whether clips can be scored now: Redis answers, and a worker has loaded its weights."""
        readiness = await service.readiness()
        body = ReadinessBody(ready=readiness.ready, reasons=list(readiness.reasons), waiting=list(readiness.waiting))
        return JSONResponse(body.model_dump(), 200 if readiness.ready else 503)

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Prometheus metrics."""
        return PlainTextResponse(await service.metrics_text())


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    """The answer for an error of a route: {"error": {"code", "message"}} with the status from errors.DOORS."""
    if isinstance(error, HTTPException):  # raised by the router: no such path, no such method
        code = ROUTER_CODES.get(error.status_code, ErrorCode.BAD_REQUEST)
        text = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
        return _failure(error.status_code, code, text, dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        causes = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        error = BadRequest("; ".join(causes))
    return _response(door_error(error))


def _response(error: RewardServerError) -> JSONResponse:
    headers = {}
    if isinstance(error, (Overloaded, NotReady)):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, (RequestTooLarge, BodyTooSlow)):
        headers["connection"] = "close"  # the rest of the body is not read
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return _failure(door(error).http, error.code, str(error), headers)


def _failure(status: int, code: str, message: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"error": {"code": str(code), "message": message}}, status, headers)


class RequestScope:
    """Wraps a request: adds its id to logs and answer, logs one line, and hides the details of unexpected errors."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = identity
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=identity):
            started = time.perf_counter()
            try:
                await self._app(scope, receive, send_with_id)
            except (Exception, asyncio.CancelledError) as error:
                if status:
                    raise
                stopping = NotReady("the server is stopping; try again shortly")  # cancelled: uvicorn's drain has ended
                told = door_error(error) if isinstance(error, Exception) else stopping
                await _response(told)(scope, receive, send_with_id)
            finally:
                _log_request(scope, status, (time.perf_counter() - started) * 1000)


def _is_quiet(scope: Scope) -> bool:
    return scope["path"] in QUIET_PATHS


def _log_request(scope: Scope, status: int, took_ms: float) -> None:
    write = log.debug if scope["path"] in QUIET_PATHS and status < 400 else log.info
    write("request", method=scope["method"], path=scope["path"], status=status, took_ms=round(took_ms, 1))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with keys, and without the 422 answers, which it adds for every parameter.

    This server answers with 400 instead.
    """
    document = FastAPI.openapi(app)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if path not in FREE:
                operation["responses"] |= {str(status): _referred(status) for status in (401, 403, 429)}
                operation["security"] = [{"key": []}, {}]  # no key is needed while the server has none
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document


def _referred(status: int) -> dict[str, Any]:
    """The description of an answer with the status, whose body is a Failure."""
    schema = {"$ref": "#/components/schemas/Failure"}
    return {"description": FAILURES[status], "content": {"application/json": {"schema": schema}}}
