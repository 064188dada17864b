"""Runs belong to the key that opened them: what one key has is not found by another, at both doors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from protos import codec
from protos import reward_pb2 as pb
from protos.client import AsyncRewardClient, RequestRefused, submission
from protos.results import outcome_of, owned_run, results_key
from protos.types import MAX_CHARACTERS, Context, Media, Origin, OutcomeKind, RefreshRequest, Submission
from reward_server.doors.key_file import KeyFile, Scope
from reward_server.queue.run_store import Version
from reward_server.queue.worker_queue import WorkerQueue
from tests import media
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import MODEL, PixelScorer
from tests.reward_server.test_refresh import RESPONSE
from tests.running import Doors, open_doors, working

GRAY = media.tensor(np.full((12, 32, 48, 3), 100, dtype=np.uint8), 12.0)
DARK = media.tensor(np.full((12, 32, 48, 3), 10, dtype=np.uint8), 12.0)


@dataclass(frozen=True, kw_only=True)
class Tenants:
    """Doors with three keys: two that may score and refresh, and an administrator's."""

    doors: Doors
    one: str
    two: str
    admin: str

    @property
    def full_run(self) -> str:
        """The full name of the run `run` of the first key."""
        return owned_run("run", key_id(self.one))


def key_id(text: str) -> str:
    return text.split("_")[1]


@pytest.fixture
async def tenants(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Tenants]:
    file, both = KeyFile(tmp_path / "keys.json"), (Scope.SCORE, Scope.REFRESH)
    one, two, admin = file.create("one", both), file.create("two", both), file.create("admin", (Scope.ADMIN,))
    async with open_doors(make_settings(keys_file=file.path)) as doors:
        yield Tenants(doors=doors, one=one, two=two, admin=admin)


@pytest.fixture
async def worker(open_queue: OpenQueue, make_settings: MakeSettings) -> AsyncIterator[WorkerQueue]:
    """A worker that is announced, but claims nothing."""
    queue = (await open_queue(make_settings(lease_s=600.0))).worker
    await queue.announce("worker", MODEL)
    yield queue


def client(tenants: Tenants, key: str, url: str) -> AsyncRewardClient:
    return AsyncRewardClient(url, api_key=key, attempts=1, timeout_s=60)


def clip(payload: bytes = GRAY, **context: str) -> Submission:
    return submission(payload, media=Media.TENSOR, context=Context(**context))  # type: ignore[arg-type]


async def refusal(call: object) -> tuple[str, str]:
    """The code and the message with which a call is refused."""
    with pytest.raises(RequestRefused) as refused:
        await call  # type: ignore[misc]
    return refused.value.code, str(refused.value)


@pytest.mark.parametrize("door", [0, 1], ids=["http", "grpc"])
async def test_a_job_of_another_key_is_as_unknown_as_none(tenants: Tenants, worker: WorkerQueue, door: int) -> None:
    url = tenants.doors.urls[door]

    async def found(key: str, job_id: str) -> list[str]:
        async with client(tenants, key, url) as caller:
            return [outcome.job_id async for outcome in caller.await_outcomes([job_id], 0.2)]

    async with client(tenants, tenants.one, url) as first:
        [job_id] = await first.submit([clip(b"", run_id="run")])  # it ends at once, as invalid
    assert job_id.startswith(key_id(tenants.one))
    assert await found(tenants.one, job_id) == await found(tenants.admin, job_id) == [job_id]
    none = f"{key_id(tenants.two)}-{'0' * 32}"
    told, told_of_none = await refusal(found(tenants.two, job_id)), await refusal(found(tenants.two, none))
    assert told[0] == "unknown_job"
    assert told[1].replace(job_id, "JOB") == told_of_none[1].replace(none, "JOB")


@pytest.mark.parametrize("door", [0, 1], ids=["http", "grpc"])
async def test_an_idempotency_key_is_its_callers_and_its_runs(tenants: Tenants, worker: WorkerQueue, door: int) -> None:
    url = tenants.doors.urls[door]
    async with client(tenants, tenants.one, url) as first, client(tenants, tenants.two, url) as second:
        for run_id in ("", "run"):
            [mine] = await first.submit([clip(run_id=run_id, idempotency_key="k")])
            assert await first.submit([clip(run_id=run_id, idempotency_key="k")]) == [mine]
            [theirs] = await second.submit([clip(DARK, run_id=run_id, idempotency_key="k")])
            assert mine != theirs
            code, text = await refusal(first.submit([clip(DARK, run_id=run_id, idempotency_key="k")]))
            assert code == "idempotency_conflict"
            assert "key 'k'" in text and mine in text and theirs not in text
        runs = [await first.submit([clip(run_id=name, idempotency_key="k")]) for name in ("run", "other", "")]
        assert len({job_id for [job_id] in runs}) == 3


async def test_a_group_without_a_run_is_its_owners_and_in_no_run(tenants: Tenants, redis: Redis) -> None:
    url = tenants.doors.grpc_url
    async with working(tenants.doors, PixelScorer()):
        for key in (tenants.one, tenants.two):
            async with client(tenants, key, url) as caller:
                [outcome] = await caller.score([clip(group_id="g")])
                assert (outcome.kind, outcome.context.run_id, outcome.context.group_id) == (OutcomeKind.OK, "", "g")
    names = [name.decode() async for name in redis.scan_iter()]
    assert sorted(name.rpartition(":group:")[2] for name in names if ":group:" in name) == sorted(
        f"0::{key_id(key)}:g" for key in (tenants.one, tenants.two)
    )
    assert not [name for name in names if ":run:" in name]


async def test_a_runs_outcomes_are_its_owners(tenants: Tenants, redis: Redis) -> None:
    grpc_url = tenants.doors.grpc_url

    async def outcomes(key: str, run_id: str) -> list[str]:
        async with client(tenants, key, grpc_url) as caller:
            stub, meta = caller._transport._stub, caller._transport._call(30.0)["metadata"]  # type: ignore[union-attr]
            call = stub.Await(pb.AwaitRequest(run_id=run_id, timeout_s=0.3), metadata=meta)
            return [codec.outcome_from_message(each).context.run_id async for each in call]

    async with working(tenants.doors, PixelScorer()), client(tenants, tenants.one, grpc_url) as first:
        [outcome] = await first.score([clip(run_id="run")])
        assert (outcome.kind, outcome.context.run_id) == (OutcomeKind.OK, "run")
    assert await outcomes(tenants.one, "run") == ["run"]
    assert await outcomes(tenants.two, "run") == []
    assert await outcomes(tenants.two, tenants.full_run) == []
    assert await outcomes(tenants.admin, "run") == []
    assert await outcomes(tenants.admin, tenants.full_run) == [tenants.full_run]
    entries: Any = await redis.xrange(results_key("embedded", tenants.full_run))
    [(_, fields)] = entries  # as a trainer reads it
    assert outcome_of(fields).job_id == outcome.job_id


@pytest.mark.parametrize("door", [0, 1], ids=["http", "grpc"])
async def test_a_refresh_of_another_keys_run_finds_no_run(tenants: Tenants, worker: WorkerQueue, door: int) -> None:
    await worker.store.motion.keep_clip(tenants.full_run, Origin.REAL, "job", (b"motion",))
    request, codes = RefreshRequest(run_id="run", steps=1), {}
    for name, key in (("one", tenants.one), ("two", tenants.two)):
        async with client(tenants, key, tenants.doors.urls[door]) as caller:
            codes[name] = (await refusal(caller.refresh(request, 30.0)))[0]
            full = replace(request, run_id=tenants.full_run)
            assert (await refusal(caller.refresh(full, 30.0)))[0] == "unknown_run", "a full name is for administrators"
    assert codes == {"one": "too_few_clips", "two": "unknown_run"}
    async with client(tenants, tenants.admin, tenants.doors.urls[door]) as caller:
        full = replace(request, run_id=tenants.full_run)
        assert (await refusal(caller.refresh(full, 30.0)))[0] == "too_few_clips"


@pytest.mark.parametrize("door", [0, 1], ids=["http", "grpc"])
async def test_a_version_of_another_keys_run_is_as_unknown_as_none(
    tenants: Tenants, worker: WorkerQueue, open_queue: OpenQueue, door: int
) -> None:
    url, version = tenants.doors.urls[door], await published(worker, open_queue, tenants.full_run)
    async with client(tenants, tenants.one, url) as first, client(tenants, tenants.two, url) as second:
        assert (await first.model("run")).discriminator_version == version
        assert (await second.model("run")).discriminator_version == MODEL.discriminator_version
        assert (await second.model(tenants.full_run)).discriminator_version == MODEL.discriminator_version
        messages = []
        for pin in (version, "none-such"):
            [job_id] = await second.submit([clip(discriminator_version=pin)])
            messages += [
                outcome.error.message.replace(pin, "PIN")
                async for outcome in second.await_outcomes([job_id], 0.3)
                if outcome.error and outcome.error.code == "version_not_served"
            ]
        assert "'PIN' is not kept" in messages[0]
        [mine] = await first.submit([clip(discriminator_version=version)])
        assert [outcome async for outcome in first.await_outcomes([mine], 0.3)] == [], "it waits for a worker"


async def published(worker: WorkerQueue, open_queue: OpenQueue, run_id: str) -> str:
    """Publish a version of the run, as a worker does after a refresh."""
    for origin in Origin:
        for number in range(2):
            await worker.store.motion.keep_clip(run_id, origin, f"{origin}-{number}", (b"motion",))
    await (await open_queue()).door.refreshes.admit(RefreshRequest(run_id=run_id, steps=1))
    refresh = await worker.refreshes.claim()
    assert refresh is not None
    version = Version(name="a-version", digest="digest", number=1)
    await worker.store.stage(version.name, b"discriminators", b"training")
    assert await worker.refreshes.publish(refresh, version, RESPONSE)
    return version.name


@pytest.mark.parametrize("door", [0, 1], ids=["http", "grpc"])
async def test_a_run_has_room_for_its_owner_in_its_name(tenants: Tenants, worker: WorkerQueue, door: int) -> None:
    most = MAX_CHARACTERS - 9
    async with client(tenants, tenants.one, tenants.doors.urls[door]) as caller:
        assert await caller.submit([clip(run_id="r" * most)])
        code, text = await refusal(caller.submit([clip(run_id="r" * (most + 1))]))
    assert code == "bad_request"
    assert f"over {most} characters" in text
