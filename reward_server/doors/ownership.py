"""Keeps what one key has apart from what others have: runs, jobs, idempotency keys, versions and refreshes.

The run `one` of the key 5f0c9a3e has the full name `5f0c9a3e:one` in the queue, and its jobs are named `5f0c9a3e-...`.
So no name of a caller leads to what another key has: it is not found. Callers see their own names only. A key with the
scope `admin` may also give the full name of any run. Without keys, names are kept as they are.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from protos.results import owned_run
from protos.types import MAX_CHARACTERS, Model, Outcome, RefreshRequest, RefreshResponse, Submission, VersionHeader
from reward_server.doors.access import Caller
from reward_server.doors.service import JobView, Service
from reward_server.doors.uploads import UploadRoom
from reward_server.errors import BadRequest, RewardServerError
from reward_server.queue.door_queue import unknown_jobs
from reward_server.queue.version_transfer import File
from reward_server.settings import Settings

FULL_NAME = re.compile(r"[0-9a-f]{8}:.+", re.DOTALL)


class OwnService:
    """The service as one caller may use it. Methods are those of Service."""

    def __init__(self, service: Service, caller: Caller, settings: Settings) -> None:
        self._service, self._caller, self._settings = service, caller, settings

    @property
    def uploads(self) -> UploadRoom:
        """The room for uploads, which all callers share."""
        return self._service.uploads

    async def submit(self, submissions: Sequence[Submission]) -> list[str]:
        owned = [self._owned(clip) for clip in submissions]
        refusals, caller = await self._foreign_pins(owned), self._caller
        return await self._service.submit(owned, refusals, owner=caller.key_id, quota=caller.quota)

    async def score(
        self,
        submissions: Sequence[Submission],
        timeout_s: float | None = None,
        *,
        admitted: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        owned = [self._owned(clip) for clip in submissions]
        refusals, caller = await self._foreign_pins(owned), self._caller
        scoring = self._service.score(
            owned, timeout_s, refusals=refusals, owner=caller.key_id, quota=caller.quota, admitted=admitted
        )
        del submissions, owned  # many requests wait here, and they must not all keep their bytes in memory
        return [self._told(outcome) for outcome in await scoring]

    async def outcomes(self, job_ids: Sequence[str], timeout_s: float | None = None) -> AsyncGenerator[Outcome, None]:
        self._check_jobs(job_ids)
        async with aclosing(self._service.outcomes(job_ids, timeout_s)) as coming:
            async for outcome in coming:
                yield self._told(outcome)

    async def run_outcomes(
        self, run_id: str, after: str = "", timeout_s: float | None = None
    ) -> AsyncGenerator[Outcome, None]:
        async with aclosing(self._service.run_outcomes(self._run(run_id), after, timeout_s)) as coming:
            async for outcome in coming:
                yield self._told(outcome)

    async def job(self, job_id: str, wait_s: float = 0.0) -> JobView:
        self._check_jobs([job_id])
        view = await self._service.job(job_id, wait_s)
        return replace(view, outcome=view.outcome and self._told(view.outcome))

    async def model(self, run_id: str = "") -> Model:
        return await self._service.model(self._run(run_id))

    async def refresh(self, request: RefreshRequest, timeout_s: float) -> RefreshResponse:
        return await self._service.refresh(replace(request, run_id=self._run(request.run_id)), timeout_s)

    async def version(self, run_id: str, version: str) -> VersionHeader:
        found = await self._service.version(self._run(run_id), version)
        return replace(found, run_id=run_id)

    def version_file(self, version: str, file: File) -> AsyncIterator[bytes]:
        """Ask for it only after `version` has found the version among the caller's own."""
        return self._service.version_file(version, file)

    async def restore(self, header: VersionHeader, parts: AsyncIterator[tuple[File, bytes]]) -> bool:
        return await self._service.restore(replace(header, run_id=self._run(header.run_id)), parts)

    def _run(self, run_id: str) -> str:
        """The full name of a run; empty for none. Raises BadRequest if it is too long."""
        if not run_id:
            return ""
        if self._caller.sees_all and self._caller.key_id and FULL_NAME.fullmatch(run_id):
            return run_id
        full = owned_run(run_id, self._caller.key_id)
        if len(full) > MAX_CHARACTERS:
            most = MAX_CHARACTERS - len(owned_run("r", self._caller.key_id)) + 1
            raise BadRequest(f"run_id is over {most} characters, the limit for a caller with a key; shorten it")
        return full

    def _owned(self, clip: Submission) -> Submission:
        return replace(clip, context=replace(clip.context, run_id=self._run(clip.context.run_id)))

    def _told(self, outcome: Outcome) -> Outcome:
        """The outcome with the run's name as the caller gave it."""
        own = owned_run("", self._caller.key_id)
        context = replace(outcome.context, run_id=outcome.context.run_id.removeprefix(own))
        return replace(outcome, context=context)

    def _check_jobs(self, job_ids: Sequence[str]) -> None:
        """Raises UnknownJob if any of them is another key's."""
        if self._caller.sees_all:
            return
        if foreign := [job_id for job_id in job_ids if not job_id.startswith(f"{self._caller.key_id}-")]:
            raise unknown_jobs(foreign)

    async def _foreign_pins(self, submissions: Sequence[Submission]) -> dict[int, RewardServerError]:
        """An error for each clip that is pinned to a version of another key's run."""
        if self._caller.sees_all:
            return {}
        pins = {clip.context.discriminator_version for clip in submissions} - {""}
        refused = await self._service.foreign_versions(pins, owned_run("", self._caller.key_id))
        found = ((at, clip.context.discriminator_version) for at, clip in enumerate(submissions))
        return {at: refused[pin] for at, pin in found if pin in refused}
