"""Serves what operators ask over HTTP: the versions of runs, and dead letters. `motion-reward versions` and `jobs` call
it.

Names of runs and versions may hold slashes, so names are in the query or in the body, and not in the path.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field

from protos.types import MAX_CHARACTERS, Context, Media, RefreshResponse
from reward_server.doors.http_models import failures
from reward_server.doors.service import Service
from reward_server.queue.dead_letters import MAX_LETTERS, DeadLetter, DeadLetters
from reward_server.queue.version_history import Published

MAX_NAME = 3 * MAX_CHARACTERS  # a version's name holds those of its base and its run

RunId = Annotated[str, Query(max_length=MAX_CHARACTERS, description="The run. Empty: every run that has any.")]
JobId = Annotated[str, Query(min_length=1, max_length=MAX_CHARACTERS, description="The job.")]
Name = Annotated[str, Query(min_length=1, max_length=MAX_NAME, description="The name of the version.")]


class VersionRow(BaseModel):
    """A version that a refresh published, and the main figures of its training."""

    name: str
    number: int = Field(description="Within its run. 1: of the first refresh.")
    parent: str = Field(description="The version from which it was trained further.")
    base: str = Field(description="The version that the worker had loaded which trained it.")
    digest: str = Field(description="sha256 of the weights file.")
    preprocessing_digest: str = Field(description="Of the motion features. Only workers with the same can load it.")
    published_s: float = Field(description="Time of publication, in seconds since the epoch.")
    retired: bool = Field(description="Later versions replaced it; it is kept for what is bound to it.")
    bound: int = Field(description="Unfinished jobs, and groups whose results can be fetched, that are bound to it.")
    steps: int
    num_real: int
    num_rollouts: int
    auc_instantaneous: float = Field(description="On held-out clips, after the training.")
    auc_long_term: float = Field(description="On held-out clips, after the training.")

    @classmethod
    def of(cls, published: Published) -> Self:
        return cls(**_row(published))


class VersionBody(VersionRow):
    """A version with its whole training record."""

    run_id: str
    training: RefreshResponse

    @classmethod
    def of(cls, published: Published) -> Self:
        return cls(**_row(published), run_id=published.run_id, training=published.training)


class RunVersions(BaseModel):
    """The versions of a run that can be pinned, the latest first."""

    run_id: str
    latest: str = Field(description="Scores new clips of the run: the first, or the base version after a rollback.")
    versions: list[VersionRow]


class VersionList(BaseModel):
    runs: list[RunVersions]


class RollbackBody(BaseModel):
    """The version that is to be the run's latest again: an earlier one, or the base that the run began with."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    version: str = Field(min_length=1, max_length=MAX_NAME)


class RolledBack(BaseModel):
    run_id: str
    latest: str
    before: str = Field(description="The latest version before.")


def add_versions(app: FastAPI, service: Service) -> None:
    """Add the routes of versions to the app."""

    @app.get("/v1/versions", responses=failures(400, 404, 503), tags=["operation"])
    async def versions(run_id: RunId = "") -> VersionList:
        """The versions that the refreshes of a run published and that can be pinned, the latest first."""
        runs = [await service.history.history(name) for name in ([run_id] if run_id else await service.history.runs())]
        return VersionList(
            runs=[
                RunVersions(run_id=run.run_id, latest=run.latest, versions=[VersionRow.of(v) for v in run.versions])
                for run in runs
            ]
        )

    @app.get("/v1/version", responses=failures(400, 409, 503), tags=["operation"])
    async def version(name: Name) -> VersionBody:
        """One version with its training record, also one that is kept only for what is bound to it."""
        return VersionBody.of(await service.history.version(name))

    @app.post("/v1/versions/rollback", responses=failures(400, 404, 409, 503), tags=["operation"])
    async def roll_back(body: RollbackBody) -> RolledBack:
        """Make an earlier version of a run its latest again. It scores new clips, and the next refresh starts from it.

        Jobs and groups that are bound to other versions stay bound.
        """
        before = await service.history.roll_back(body.run_id, body.version)
        return RolledBack(run_id=body.run_id, latest=body.version, before=before)


class Letter(BaseModel):
    """A dead letter: a job that was given up because too many workers died while they held it."""

    job_id: str
    run_id: str
    attempts: int = Field(description="Claims, the last one included, which gave it up.")
    reason: str
    ended_s: float = Field(description="Time of its end, in seconds since the epoch.")
    media: Media
    num_bytes: int = Field(description="Of its clip. 0: the clip is not kept any more, and it cannot be replayed.")
    context: Context

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        return cls(**{name: getattr(letter, name) for name in cls.model_fields})


class Letters(BaseModel):
    """Dead letters, the oldest first."""

    letters: list[Letter]


class OfJobs(BaseModel):
    """The dead letters of the named jobs."""

    model_config = ConfigDict(extra="forbid")

    job_ids: list[Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]] = Field(
        min_length=1, max_length=MAX_LETTERS
    )

    async def chosen(self, letters: DeadLetters) -> list[DeadLetter]:
        """The letters. Raises UnknownJob."""
        return await letters.chosen(self.job_ids)


class OfRun(BaseModel):
    """The dead letters of a run."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(min_length=1, max_length=MAX_CHARACTERS)

    async def chosen(self, letters: DeadLetters) -> list[DeadLetter]:
        return await letters.letters(self.run_id)


class Every(BaseModel):
    """All dead letters."""

    model_config = ConfigDict(extra="forbid")

    all: Literal[True]

    async def chosen(self, letters: DeadLetters) -> list[DeadLetter]:
        return await letters.letters()


Which = OfJobs | OfRun | Every


class ReplayedBody(BaseModel):
    jobs: dict[str, str] = Field(description="The id of the new job for each job that was replayed.")
    gone: list[str] = Field(description="Jobs whose clips are not kept any more. Their letters stay.")


class Dropped(BaseModel):
    dropped: int


def add_dead_letters(app: FastAPI, service: Service) -> None:
    """Add the routes of dead letters to the app."""
    refusals = failures(400, 404, 409, 429, 503)

    @app.get("/v1/dead-letters", responses=failures(400, 503), tags=["operation"])
    async def letters(run_id: RunId = "") -> Letters:
        """The dead letters of a run, or all of them, the oldest first."""
        return Letters(letters=[Letter.of(letter) for letter in await service.dead_letters.letters(run_id)])

    @app.get("/v1/dead-letter", responses=failures(400, 404, 503), tags=["operation"])
    async def letter(job_id: JobId) -> Letter:
        """The dead letter of a job."""
        return Letter.of(*await service.dead_letters.chosen([job_id]))

    @app.post("/v1/dead-letters/replay", responses=refusals, tags=["operation"])
    async def replay(body: Which) -> ReplayedBody:
        """Submit the clips again, each as a new job with the same context, and drop their letters.

        If the queue gets full, those that were not replayed yet keep their letters: try again later.
        """
        replayed = await service.replay(await body.chosen(service.dead_letters))
        return ReplayedBody(jobs=replayed.jobs, gone=list(replayed.gone))

    @app.post("/v1/dead-letters/drop", responses=failures(400, 404, 503), tags=["operation"])
    async def drop(body: Which) -> Dropped:
        """Remove dead letters and their clips."""
        return Dropped(dropped=await service.dead_letters.drop(await body.chosen(service.dead_letters)))


def _row(published: Published) -> dict[str, object]:
    version, training = published.version, published.training
    return {
        "name": version.name,
        "number": version.number,
        "parent": training.previous_version,
        "base": version.base,
        "digest": version.digest,
        "preprocessing_digest": version.preprocessing_digest,
        "published_s": published.published_s,
        "retired": published.retired,
        "bound": published.bound,
        "steps": training.steps,
        "num_real": training.num_real,
        "num_rollouts": training.num_rollouts,
        "auc_instantaneous": training.instantaneous.after.auc,
        "auc_long_term": training.long_term.after.auc,
    }
