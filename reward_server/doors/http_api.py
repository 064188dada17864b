"""Serves the HTTP door: FastAPI routes over the service, with a request id in every answer and log line.

http_body.py reads the clips of a request, and http_models.py defines the bodies of answers. Nothing
here blocks the event loop, and nothing here scores.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Annotated, Any

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
from reward_server.doors.http_body import submissions_of
from reward_server.doors.http_models import (
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
from reward_server.doors.intake import ContextFields, door_error, request_id, with_timeouts
from reward_server.doors.service import Service
from reward_server.errors import BadRequest, NotReady, Overloaded, RequestTooLarge, RewardServerError, door
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


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The app of the HTTP door. It calls `service`, which the caller keeps and closes."""
    app = FastAPIOffline(  # the pages of the documentation bring their scripts with them
        title="Motion reward server",
        summary="Motion-realism rewards for video clips.",
        version="1",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    _add_scoring(app, service, settings)
    _add_jobs(app, service, settings)
    _add_refresh(app, service)
    _add_health(app, service)
    for kind in (RewardServerError, ContractError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _on_error)
    app.add_middleware(RequestScope)
    document = _openapi(app)  # made now, because it takes a while and would block the event loop during a request
    app.openapi = lambda: document  # type: ignore[method-assign]
    return app


def _add_scoring(app: FastAPI, service: Service, settings: Settings) -> None:
    body = {"requestBody": clips_request_body()}
    refusals = failures(400, 409, 413, 415, 429, 503)
    scored: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/json": {"example": {"results": [RESULT_EXAMPLE]}}}}
    }

    @app.post("/v1/score", responses=refusals | scored, openapi_extra=body, tags=["scoring"])
    async def score(request: Request, context: Annotated[ContextFields, Query()]) -> Results:
        """Score clips and wait for all of them. There is one result per clip, in order, even if it cannot be scored."""
        outcomes = await service.score(await submissions_of(request, context, settings))
        return Results(results=[Result.of(outcome) for outcome in outcomes])

    @app.post("/v1/jobs", status_code=202, responses=refusals, openapi_extra=body, tags=["scoring"])
    async def submit(request: Request, context: Annotated[ContextFields, Query()]) -> Jobs:
        """Queue clips. Fetch their results by job id."""
        job_ids = await service.submit(await submissions_of(request, context, settings))
        return Jobs(jobs=[JobReference(id=job_id) for job_id in job_ids])


def _add_jobs(app: FastAPI, service: Service, settings: Settings) -> None:
    @app.get("/v1/jobs/{job_id}", responses=failures(400, 404, 503), tags=["scoring"])
    async def job(job_id: str, wait_s: Wait = 0) -> Job:
        """The state of a job, and its result once it is done."""
        if wait_s:
            async for _ in service.outcomes([job_id], timeout_s=wait_s):
                pass
        view = await service.job(job_id)
        return Job(id=view.id, state=view.state, result=view.outcome and Result.of(view.outcome))

    @app.get("/v1/model", responses=failures(400, 503), tags=["scoring"])
    async def model(run_id: RunId = "") -> Model:
        """The served model: profile, discriminator version, digests, bounds, limits and the clips it accepts."""
        return with_timeouts(await service.model(run_id), settings)


def _add_refresh(app: FastAPI, service: Service) -> None:
    @app.post("/v1/refresh", responses=failures(400, 404, 409, 500, 503, 504), tags=["training"])
    async def refresh(request: RefreshBody) -> RefreshResponse:
        """Train a run's discriminators on its recent real clips and rollouts. Answers once the new version serves.

        This takes seconds to minutes. If it fails or takes too long, nothing is published: the old version serves on.
        """
        return await service.refresh(request.value())


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
        body = ReadinessBody(ready=readiness.ready, reasons=list(readiness.reasons))
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
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, RequestTooLarge):
        headers["connection"] = "close"  # the rest of the body is not read
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


def _log_request(scope: Scope, status: int, took_ms: float) -> None:
    write = log.debug if scope["path"] in QUIET_PATHS and status < 400 else log.info
    write("request", method=scope["method"], path=scope["path"], status=status, took_ms=round(took_ms, 1))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document without the 422 answers, which it adds for every parameter. This server answers with 400."""
    document = FastAPI.openapi(app)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for schema in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(schema, None)
    return document
