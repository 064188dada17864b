"""Stands before all gRPC methods: limits the calls in flight, times their messages, and refuses those it cannot read.

gRPC has no time limit for a message, and would blame the server for bytes that are not protobuf. A method that takes
one message is served as one that takes a stream, which is the same on the wire. So the message is read here: within
a time limit, and by few calls at once, because each may take the memory of a whole message.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from reward_server.doors.gate import Gate, Pace
from reward_server.doors.grpc_scope import Call, end_call
from reward_server.errors import BadRequest, RewardServerError
from reward_server.settings import Settings

READING = 64  # calls that read a single message at the same time
FREE = ("/grpc.health.v1.Health/", "/grpc.reflection.")

Handler: TypeAlias = Any  # grpc.RpcMethodHandler, which has type parameters only in the stubs


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a message that is not protobuf."""

    num_bytes: int


class MessageGuard(grpc.aio.ServerInterceptor):
    """The interceptor for all methods of a server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._gate = Gate(settings.max_requests, settings.max_connections_per_address)
        self._reading = asyncio.Semaphore(READING)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        return handler and self._guarded(handler, is_free=handler_call_details.method.startswith(FREE))

    def _guarded(self, handler: Handler, *, is_free: bool) -> Handler:
        """The handler, behind the gate and reading its messages with care."""
        reads, answers = handler.request_streaming, handler.response_streaming
        behaviour = getattr(handler, f"{'stream' if reads else 'unary'}_{'stream' if answers else 'unary'}")
        call = _generator if inspect.isasyncgenfunction(behaviour) else _coroutine
        make = grpc.stream_stream_rpc_method_handler if answers else grpc.stream_unary_rpc_method_handler
        enter = _free if is_free else self._gate.passing
        wrapped = call(behaviour, _stream if reads else self._single, enter)
        return make(wrapped, _careful(handler.request_deserializer), handler.response_serializer)

    async def _single(self, parts: AsyncIterator[Any]) -> Any:
        """The only message of a call. Raises BadRequest."""
        async with self._reading:
            async for part in Pace(self._settings).each(parts, lambda _: 0):
                return _checked(part)
        raise BadRequest("the call ended without its message; send one")


Opened: TypeAlias = Callable[[str], AbstractContextManager[None]]
Read: TypeAlias = Callable[[AsyncIterator[Any]], Awaitable[Any]]


def _free(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def _careful(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    def message(data: bytes) -> Any:
        try:
            return read(data) if read else data
        except DecodeError:
            return _Unreadable(len(data))

    return message


def _coroutine(behaviour: Any, read: Read, enter: Opened) -> Any:
    async def call(parts: AsyncIterator[Any], context: Call) -> Any:
        try:
            with enter(_address(context)):
                return await behaviour(await read(parts), context)
        except RewardServerError as error:
            await end_call(context, error)

    return call


def _generator(behaviour: Any, read: Read, enter: Opened) -> Any:
    async def call(parts: AsyncIterator[Any], context: Call) -> AsyncIterator[Any]:
        try:
            with enter(_address(context)):
                async for answer in behaviour(await read(parts), context):
                    yield answer
        except RewardServerError as error:
            await end_call(context, error)

    return call


def _address(context: Call) -> str:
    """The caller's address, from a peer such as ipv4:127.0.0.1:53124."""
    return unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")


def _checked(request: Any) -> Any:
    """The message. Raises BadRequest if it cannot be read."""
    if isinstance(request, _Unreadable):
        raise BadRequest(f"{request.num_bytes} bytes are not the message of this call; see protos/reward.proto")
    return request


async def _stream(parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The messages, checked one by one as the method comes to them."""

    async def messages() -> AsyncIterator[Any]:
        async for part in parts:
            yield _checked(part)

    return messages()
