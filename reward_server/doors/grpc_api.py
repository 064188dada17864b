"""Serves the gRPC door: the seven calls of the contract, health and reflection.

An error ends a call with the status from errors.DOORS. Its stable code is in the trailing metadata
`error-code`. For Overloaded and NotReady, `retry-after-s` gives the seconds to wait before a retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import codec
from protos import reward_pb2 as pb
from protos import reward_pb2_grpc as rpc
from protos.types import ContractError, Submission
from reward_server.doors.access import Access
from reward_server.doors.certificates import certificates_of
from reward_server.doors.gate import Pace
from reward_server.doors.grpc_guard import MessageGuard
from reward_server.doors.grpc_parts import Assembly, version_chunks
from reward_server.doors.grpc_scope import Call, CallScope, log
from reward_server.doors.intake import check_request, checked_run, with_timeouts
from reward_server.doors.key_file import Scope
from reward_server.doors.ownership import OwnService
from reward_server.doors.service import Service
from reward_server.doors.traffic import GrpcMeter
from reward_server.doors.uploads import Spool
from reward_server.errors import BadRequest, RewardServerError, Unauthenticated
from reward_server.queue.redis_link import end_task
from reward_server.settings import Settings

SERVICE: str = pb.DESCRIPTOR.services_by_name["MotionReward"].full_name
HEALTH_PERIOD_S = 1.0
ANSWER_MARGIN_S = 0.25  # part of a call's deadline that is kept for sending the answer


class GrpcDoor:
    """The gRPC server. Call `bind`, then `start`, then `stop`."""

    def __init__(self, service: Service, settings: Settings, access: Access) -> None:
        self._service, self._settings = service, settings
        self._certificates = certificates_of(settings)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._watch: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[GrpcMeter(service.traffic), MessageGuard(settings)],
            options=_options(settings),
            maximum_concurrent_rpcs=2 * settings.max_requests,  # health and reflection too, which the guard lets pass
        )
        rpc.add_MotionRewardServicer_to_server(RewardServicer(service, settings, access), self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)  # type: ignore[no-untyped-call]
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)  # type: ignore[no-untyped-call]

    def bind(self) -> str:
        """Take the address of settings.grpc and return it with the port it got. Raises OSError if it is taken."""
        host, _, _ = self._settings.grpc.rpartition(":")
        try:
            return f"{host}:{self._add_port()}"
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._settings.grpc} (gRPC); is the port taken?") from error

    def _add_port(self) -> int:
        if self._certificates:
            return self._server.add_secure_port(self._settings.grpc, self._certificates.grpc_credentials())
        return self._server.add_insecure_port(self._settings.grpc)

    async def start(self) -> None:
        """Start serving. The health service reports the service's readiness."""
        await self._show_health()
        self._watch = asyncio.create_task(self._keep_health(), name="grpc-health")
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING at once, take no new calls, and give running ones `grace_s`."""
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
        except Exception as error:  # if this task ended, the health service would report SERVING for ever
            log.warning("readiness is unknown", error=repr(error))
            ready = False
        for name in ("", SERVICE):
            await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server would silently share the port
        ("grpc.max_receive_message_length", settings.grpc_max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.head_max_bytes),
        ("grpc.absolute_max_metadata_size", settings.head_max_bytes),
        ("grpc.server_handshake_timeout_ms", int(settings.head_timeout_s * 1000)),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", 2 * settings.max_requests),  # more of them wait in the client
    ]


class RewardServicer(rpc.MotionRewardServicer):
    """The calls of reward.proto. Each translates messages for the service and back."""

    def __init__(self, service: Service, settings: Settings, access: Access) -> None:
        self._service, self._settings, self._access = service, settings, access

    async def Score(self, request: pb.ScoreRequest, context: Call) -> pb.ScoreResponse:
        async with CallScope(context, "Score"):
            own = await self._own(context, Scope.SCORE)
            patience_s = self._patience_s(context, self._settings.score_timeout_s)
            with await own.uploads.hold(sum(len(clip.payload) for clip in request.clips)) as turn:
                clips = self._submissions(request)
                request.Clear()  # type: ignore[no-untyped-call]  # the guard still holds it
                outcomes = await own.score(clips, timeout_s=patience_s, admitted=turn.release)
            return pb.ScoreResponse(outcomes=[codec.outcome_to_message(outcome) for outcome in outcomes])

    async def Submit(self, request_iterator: AsyncIterator[pb.SubmitRequest], context: Call) -> pb.SubmitResponse:
        async with CallScope(context, "Submit"):
            own = await self._own(context, Scope.SCORE)
            with own.uploads.spool() as spool:
                assembly = await self._received(request_iterator, spool)
                with await own.uploads.hold(spool.num_bytes):
                    return pb.SubmitResponse(job_ids=await own.submit(await assembly.submissions()))

    async def Await(self, request: pb.AwaitRequest, context: Call) -> AsyncIterator[pb.Outcome]:
        async with CallScope(context, "Await"):
            own = await self._own(context, Scope.SCORE)
            if bool(request.job_ids) == bool(request.run_id):
                raise BadRequest("set either job_ids or run_id, exactly one of them")
            timeout_s = request.timeout_s if request.HasField("timeout_s") else self._settings.score_timeout_s
            if not timeout_s > 0:
                raise BadRequest(f"timeout_s must be a positive number of seconds, got {timeout_s}")
            job_ids = list(request.job_ids)
            outcomes = (
                own.outcomes(job_ids, timeout_s=timeout_s)
                if job_ids
                else own.run_outcomes(checked_run(request.run_id), after=request.after, timeout_s=timeout_s)
            )
            async for outcome in outcomes:
                yield codec.outcome_to_message(outcome)

    async def GetModel(self, request: pb.GetModelRequest, context: Call) -> pb.Model:
        async with CallScope(context, "GetModel"):
            own = await self._own(context, Scope.SCORE)
            model = with_timeouts(await own.model(checked_run(request.run_id)), self._settings)
            return codec.model_to_message(model)

    async def Refresh(self, request: pb.RefreshRequest, context: Call) -> pb.RefreshResponse:
        async with CallScope(context, "Refresh"):
            own = await self._own(context, Scope.REFRESH)
            patience_s = self._patience_s(context, self._settings.refresh_life_s(request.steps))
            response = await own.refresh(codec.refresh_from_message(request), timeout_s=patience_s)
            return codec.refreshed_to_message(response)

    async def FetchVersion(self, request: pb.FetchVersionRequest, context: Call) -> AsyncIterator[pb.VersionPart]:
        async with CallScope(context, "FetchVersion"):
            own = await self._own(context, Scope.REFRESH)
            header = await own.version(checked_run(request.run_id), request.version)
            yield pb.VersionPart(header=codec.version_to_message(header))
            if request.header_only:
                return
            async for chunk in own.version_file(header.version, "scoring"):
                yield pb.VersionPart(scoring=chunk)
            if header.training_digest:
                async for chunk in own.version_file(header.version, "training"):
                    yield pb.VersionPart(training=chunk)

    async def RestoreVersion(
        self, request_iterator: AsyncIterator[pb.VersionPart], context: Call
    ) -> pb.RestoreVersionResponse:
        async with CallScope(context, "RestoreVersion"):
            own = await self._own(context, Scope.REFRESH)
            first = await anext(aiter(request_iterator), None)
            if first is None or first.WhichOneof("part") != "header":
                raise BadRequest("the first part of the stream must be the version's header")
            header = codec.version_from_message(first.header)
            checked_run(header.run_id)
            return pb.RestoreVersionResponse(restored=await own.restore(header, version_chunks(request_iterator)))

    async def _own(self, context: Call, scope: Scope) -> OwnService:
        """The service for who calls. Raises Unauthenticated, and Forbidden without the scope."""
        given = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
        if len(given) > 1:
            raise Unauthenticated("the call has several `authorization` entries in its metadata; send one")
        caller = await self._access.caller(str(given[0]) if given else None)
        caller.check(scope)
        return OwnService(self._service, caller, self._settings)

    def _submissions(self, request: pb.ScoreRequest) -> Sequence[Submission]:
        clips = [codec.submission_from_message(clip) for clip in request.clips]
        return check_request(clips, self._settings)

    def _patience_s(self, context: Call, patience_s: float) -> float:
        """How long to wait: `patience_s`, or less, so that the answer comes within the call's own deadline."""
        left_s = context.time_remaining()
        return patience_s if left_s is None else max(0.0, min(patience_s, left_s - ANSWER_MARGIN_S))

    async def _received(self, parts: AsyncIterator[pb.SubmitRequest], spool: Spool) -> Assembly:
        """The stream's clips, complete in the spool.

        After a refusal, up to settings.max_request_bytes more are read and thrown away. Otherwise a client that is
        still writing would see a failed write instead of the reason.
        """
        assembly, spare_bytes = Assembly(self._settings, spool), self._settings.max_request_bytes
        refusal: RewardServerError | ContractError | None = None
        paced = Pace(self._settings).each(parts, lambda part: len(part.chunk))
        try:
            async with asyncio.timeout(self._settings.score_timeout_s):
                async for part in paced:
                    if refusal is None:
                        try:
                            await assembly.add(part)
                        except (RewardServerError, ContractError) as error:
                            refusal = error
                    elif (spare_bytes := spare_bytes - len(part.chunk)) < 0:
                        break
        except TimeoutError as error:
            late = BadRequest(
                f"the clips did not arrive within {self._settings.score_timeout_s:g} s (score_timeout_s); "
                "send fewer clips at once"
            )
            raise refusal or late from error
        if refusal:
            raise refusal
        assembly.end()
        return assembly
