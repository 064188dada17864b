"""The gRPC door: the contract's five calls over the service, the error table of both doors, health and reflection.

Errors end a call with the status of errors.DOORS; the stable code goes in the trailing metadata
`error-code`, and for an overload `retry-after-s` says when to come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import codec
from protos import reward_pb2 as pb
from protos import reward_pb2_grpc as rpc
from protos.types import Context, ContractError, Media, Submission
from reward_server.doors.intake import Intake, check_request, door_error, request_id, with_timeouts
from reward_server.doors.service import Service
from reward_server.errors import BadRequest, Overloaded, RewardServerError, door
from reward_server.queue.redis_link import end_task
from reward_server.settings import Settings

SERVICE: str = pb.DESCRIPTOR.services_by_name["MotionReward"].full_name
HEALTH_PERIOD_S = 1.0
TOLD_CHARACTERS = 2000  # of an error; what passes 8 KiB of trailers reaches no client
ANSWER_MARGIN_S = 0.25  # left of a call's own deadline for the way back

log = structlog.get_logger("grpc")
Call: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class GrpcDoor:
    """The listening side: `bind`, then `start`, then `stop`."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service, self._settings = service, settings
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._watch: asyncio.Task[None] | None = None
        # Without so_reuseport=0 a second server would silently share the port.
        size = settings.grpc_max_message_bytes
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", size)]
        self._server = grpc.aio.server(options=[*options, ("grpc.max_send_message_length", -1)])
        rpc.add_MotionRewardServicer_to_server(RewardServicer(service, settings), self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)  # type: ignore[no-untyped-call]
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)  # type: ignore[no-untyped-call]

    def bind(self) -> str:
        """Take the address of settings.grpc and return it with the port it got. Raises OSError if it is taken."""
        host, _, _ = self._settings.grpc.rpartition(":")
        try:
            return f"{host}:{self._server.add_insecure_port(self._settings.grpc)}"
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._settings.grpc} (gRPC); is the port taken?") from error

    async def start(self) -> None:
        """Serve, with a health that is the service's readiness, never an echo."""
        await self._show_health()
        self._watch = asyncio.create_task(self._keep_health(), name="grpc-health")
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """NOT_SERVING at once, no new calls, `grace_s` for those under way."""
        if self._watch:
            await end_task(self._watch)
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _keep_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_PERIOD_S)
            await self._show_health()

    async def _show_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        try:
            ready = (await self._service.readiness()).ready
        except Exception as error:  # a health that stopped being kept would go on saying SERVING
            log.warning("readiness is unknown", error=repr(error))
            ready = False
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)


class RewardServicer(rpc.MotionRewardServicer):
    """The calls of reward.proto, each a translation to and from the service."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service, self._settings = service, settings

    async def Score(self, request: pb.ScoreRequest, context: Call) -> pb.ScoreResponse:
        async with _Scope(context, "Score"):
            patience_s = self._patience_s(context, self._settings.score_timeout_s)
            outcomes = await self._service.score(self._submissions(request), timeout_s=patience_s)
            return pb.ScoreResponse(outcomes=[codec.outcome_to_message(outcome) for outcome in outcomes])

    async def Submit(self, request_iterator: AsyncIterator[pb.SubmitRequest], context: Call) -> pb.SubmitResponse:
        async with _Scope(context, "Submit"):
            return pb.SubmitResponse(job_ids=await self._service.submit(await self._received(request_iterator)))

    async def Await(self, request: pb.AwaitRequest, context: Call) -> AsyncIterator[pb.Outcome]:
        async with _Scope(context, "Await"):
            if bool(request.job_ids) == bool(request.run_id):
                raise BadRequest("await either job_ids or a run_id, not both and not neither")
            timeout_s = request.timeout_s if request.HasField("timeout_s") else self._settings.score_timeout_s
            if not timeout_s > 0:
                raise BadRequest(f"timeout_s must be a positive number of seconds, got {timeout_s}")
            job_ids = list(request.job_ids)
            outcomes = (
                self._service.outcomes(job_ids, timeout_s=timeout_s)
                if job_ids
                else self._service.run_outcomes(request.run_id, after=request.after, timeout_s=timeout_s)
            )
            async for outcome in outcomes:
                yield codec.outcome_to_message(outcome)

    async def GetModel(self, request: pb.GetModelRequest, context: Call) -> pb.Model:
        async with _Scope(context, "GetModel"):
            model = with_timeouts(await self._service.model(request.run_id), self._settings)
            return codec.model_to_message(model)

    async def Refresh(self, request: pb.RefreshRequest, context: Call) -> pb.RefreshResponse:
        async with _Scope(context, "Refresh"):
            patience_s = self._patience_s(context, self._settings.refresh_timeout_s)
            response = await self._service.refresh(codec.refresh_from_message(request), timeout_s=patience_s)
            return codec.refreshed_to_message(response)

    def _submissions(self, request: pb.ScoreRequest) -> Sequence[Submission]:
        clips = [codec.submission_from_message(clip) for clip in request.clips]
        return check_request(clips, self._settings)

    def _patience_s(self, context: Call, patience_s: float) -> float:
        """How long to wait, at most `patience_s`: an answer that says `timeout` must still reach the caller."""
        left_s = context.time_remaining()
        return patience_s if left_s is None else max(0.0, min(patience_s, left_s - ANSWER_MARGIN_S))

    async def _received(self, parts: AsyncIterator[pb.SubmitRequest]) -> list[Submission]:
        """The stream's clips. A refused stream is read on for as much again as is allowed, and thrown away:
        a client that is still writing would see its own broken write in place of the reason."""
        assembly, refusal, spare_bytes = Assembly(self._settings), None, self._settings.max_request_bytes
        try:
            async with asyncio.timeout(self._settings.score_timeout_s):
                async for part in parts:
                    if refusal is None:
                        try:
                            assembly.add(part)
                        except (RewardServerError, ContractError) as error:
                            assembly, refusal = Assembly(self._settings), error
                    elif (spare_bytes := spare_bytes - len(part.chunk)) < 0:
                        break
        except TimeoutError as error:
            late = BadRequest(f"the clips did not arrive within {self._settings.score_timeout_s:g} s")
            raise refusal or late from error
        if refusal:
            raise refusal
        return assembly.submissions()


@dataclass
class _Arriving:
    media: Media
    context: Context
    size_bytes: int
    chunks: list[bytes] = field(default_factory=list)
    num_bytes: int = 0


class Assembly:
    """Header, chunks, header, chunks, ... -> submissions, refused where it first breaks the order or a limit."""

    def __init__(self, settings: Settings) -> None:
        self._intake = Intake(settings)
        self._arriving: _Arriving | None = None
        self._done: list[Submission] = []
        self._num_clips = 0  # that the first header declares; 0: not told

    def add(self, part: pb.SubmitRequest) -> None:
        """Raises BadRequest and RequestTooLarge; ContractError for a malformed context or media."""
        match part.WhichOneof("part"):
            case "header":
                self._finish_clip()
                self._open_clip(part.header)
            case "chunk":
                self._add_chunk(part.chunk)
            case _:
                raise BadRequest("a part of the stream is empty; set `header` or `chunk`")

    def submissions(self) -> list[Submission]:
        self._finish_clip()
        if not self._done:
            raise BadRequest("no clip in the stream; send a header and its chunks")
        if self._num_clips and len(self._done) != self._num_clips:  # cancelled between two clips it ends like this
            raise BadRequest(f"the stream has {len(self._done)} clips, its first header declares {self._num_clips}")
        return self._done

    def _open_clip(self, header: pb.SubmitRequest.Header) -> None:
        self._num_clips = self._num_clips or header.num_clips
        self._intake.count_clip()
        self._intake.count_bytes(header.size_bytes)
        media = codec.media_from_message(header.media)
        context = codec.context_from_message(header.context)
        self._arriving = _Arriving(media=media, context=context, size_bytes=header.size_bytes)

    def _add_chunk(self, chunk: bytes) -> None:
        clip = self._arriving
        if clip is None:
            raise BadRequest("a chunk came before any header; send the clip's header first")
        clip.num_bytes += len(chunk)
        if clip.num_bytes > clip.size_bytes:
            raise BadRequest(f"clip {len(self._done)} is over the {clip.size_bytes} bytes its header declares")
        clip.chunks.append(chunk)

    def _finish_clip(self) -> None:
        clip, self._arriving = self._arriving, None
        if clip is None:
            return
        if clip.num_bytes != clip.size_bytes:
            raise BadRequest(
                f"clip {len(self._done)} has {clip.num_bytes} bytes, its header declares {clip.size_bytes}; "
                "was its file still being written?"
            )
        self._done.append(Submission(payload=b"".join(clip.chunks), media=clip.media, context=clip.context))


class _Scope:
    """Around every call: its request id bound to the logs and echoed, every error ended by the table."""

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
                await _end(self._context, told)
            log.info("call", name=self._name, code="ok" if error is None else "cancelled", took_ms=took_ms)
        finally:
            self._bound.__exit__(None, None, None)


async def _end(context: Call, error: RewardServerError) -> NoReturn:
    trailing = [("error-code", error.code.value)]
    if isinstance(error, Overloaded):
        trailing.append(("retry-after-s", f"{error.retry_after_s:.3f}"))
    await context.abort(grpc.StatusCode[door(error).grpc], str(error)[:TOLD_CHARACTERS], tuple(trailing))
