"""Wraps a gRPC call: its request id, its log line, and the status that an error ends it with."""

from __future__ import annotations

import time
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog

from reward_server.doors.intake import door_error, request_id
from reward_server.errors import NotReady, Overloaded, RewardServerError, door

TOLD_CHARACTERS = 2000  # longest error message; over 8 KiB of trailers a client gets nothing

log = structlog.get_logger("grpc")
Call: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class CallScope:
    """Wraps a call: adds its request id to the logs and the answer, and ends it with the right status on an error."""

    def __init__(self, context: Call, name: str) -> None:
        self._context, self._name = context, name
        given = dict(context.invocation_metadata() or ()).get("x-request-id")
        self._request_id = request_id(given if isinstance(given, str) else None)
        self._bound = structlog.contextvars.bound_contextvars(request_id=self._request_id)

    async def __aenter__(self) -> None:
        self._bound.__enter__()
        self._started = time.perf_counter()
        await self._context.send_initial_metadata((("x-request-id", self._request_id),))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        took_ms = round((time.perf_counter() - self._started) * 1000, 1)
        try:
            if isinstance(error, Exception):
                told = door_error(error)
                log.info("call", name=self._name, code=told.code, took_ms=took_ms)
                await end_call(self._context, told)
            log.info("call", name=self._name, code="ok" if error is None else "cancelled", took_ms=took_ms)
        finally:
            self._bound.__exit__(None, None, None)


async def end_call(context: Call, error: RewardServerError) -> NoReturn:
    """End a call with the status of an error, its code, and the seconds to wait before a retry."""
    trailing = [("error-code", error.code.value)]
    if isinstance(error, (Overloaded, NotReady)):
        trailing.append(("retry-after-s", f"{error.retry_after_s:.3f}"))
    await context.abort(grpc.StatusCode[door(error).grpc], str(error)[:TOLD_CHARACTERS], tuple(trailing))
