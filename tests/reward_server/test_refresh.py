"""Tests refreshes from request to publication with a real queue and a real worker, and every way they can end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from redis.asyncio import Redis

from protos.client import AsyncRewardClient, RequestRefused, RewardClient
from protos.codec import clip_to_tensor
from protos.types import (
    Clip,
    Context,
    DiscriminatorRefresh,
    Media,
    Origin,
    OutcomeKind,
    RefreshRequest,
    RefreshResponse,
    Reward,
    Separation,
    Submission,
)
from reward_server.errors import (
    DeadlinePassed,
    IdempotencyConflict,
    RefreshFailed,
    RefreshRunning,
    TooFewClips,
    UnknownRun,
    VersionConflict,
)
from reward_server.pipeline import Pipeline
from reward_server.queue.keys import Keys
from reward_server.queue.refreshes import Refresh
from reward_server.queue.run_store import Version
from reward_server.settings import Settings
from reward_server.weights_file import header_of
from tests.conftest import MakeSettings, OpenQueue, Queue
from tests.reference import TABLE
from tests.reward_server.test_worker import PATIENCE_S, until_async
from tests.run_clips import fill
from tests.running import TOLERANCE, Doors, open_doors, working

KEYS = Keys(profile="embedded")
QUICK = RefreshRequest(run_id="run-1", steps=2, learning_rate=1e-3, ema=0.5, clips_per_step=2)
ENDLESS = replace(QUICK, steps=100_000)
SAME = Separation(auc=0.5, logit_gap=0.0)
HEAD = DiscriminatorRefresh(losses=(1.0,), before=SAME, after=SAME)
RESPONSE = RefreshResponse(
    discriminator_version="untrained+run-1.1-0a",
    weights_digest="0a",
    previous_version="untrained",
    steps=1,
    num_real=2,
    num_rollouts=2,
    num_held_out=0,
    instantaneous=HEAD,
    long_term=HEAD,
    seconds=1.0,
)


@asynccontextmanager
async def served(settings: Settings, pipeline: Pipeline) -> AsyncIterator[Doors]:
    async with open_doors(settings) as doors, working(doors, pipeline):
        yield doors


def submission(seed: int = 0, **context: object) -> Submission:
    """A clip of eight frames, in which a texture moves by one pixel per frame."""
    texture = np.kron(np.random.default_rng(seed).integers(0, 256, (12, 20, 3)), np.ones((6, 6, 1)))
    frames = np.stack([texture[:48, step : step + 64] for step in range(8)]).astype(np.uint8)
    clip = Clip(frames=frames.transpose(0, 3, 1, 2).copy(), fps=12.0)
    given = Context(**{"run_id": "run-1", **context})  # type: ignore[arg-type]
    return Submission(payload=clip_to_tensor(clip), media=Media.TENSOR, context=given)


async def rewards(doors: Doors, *submissions: Submission) -> list[Reward]:
    outcomes = await doors.service.score(submissions)
    assert all(outcome.kind is OutcomeKind.OK for outcome in outcomes), outcomes
    return [outcome.reward for outcome in outcomes if outcome.reward]


def version(reward: Reward) -> str:
    return reward.provenance.discriminator_version


# --- what a refresh changes, and what it does not -------------------------------------------------


async def test_a_new_version_scores_only_the_refreshed_run(
    make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    async with served(make_settings(), small_pipeline) as doors, AsyncRewardClient(doors.grpc_url) as client:
        clips = [submission(i, origin=origin, group_id=f"g{i}") for i in range(2) for origin in Origin]
        [first, *_] = await rewards(doors, *clips)
        assert version(first) == "untrained"
        response = await client.refresh(QUICK)
        assert (response.previous_version, response.num_real, response.num_rollouts) == ("untrained", 2, 2)
        assert response.discriminator_version.startswith("untrained+run-1.1-")

        [new, pinned, other] = await rewards(
            doors,
            submission(0, group_id="new"),
            submission(0, group_id="old", query_seed=first.provenance.query_seed, discriminator_version="untrained"),
            submission(0, run_id="run-2"),
        )
        assert [version(new), version(pinned), version(other)] == [response.discriminator_version, *["untrained"] * 2]
        assert new.provenance.weights_digest == response.weights_digest != pinned.provenance.weights_digest
        assert new.logits != pinned.logits
        assert pinned.logits.long_term == pytest.approx(first.logits.long_term, abs=TOLERANCE)

        served_to_run = await client.model("run-1")
        assert served_to_run.discriminator_version == response.discriminator_version
        assert served_to_run.weights_digest == response.weights_digest
        assert (await client.model("run-2")).discriminator_version == "untrained"


async def test_a_new_version_has_the_table_and_the_pace_terms_of_its_parent(
    make_settings: MakeSettings, small_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = replace(TABLE, discriminator_version="untrained")
    parent = replace(small_pipeline.discriminators, reference=table, pace_weights=(0.5, -1.0))
    monkeypatch.setattr(small_pipeline, "discriminators", parent)
    async with served(make_settings(), small_pipeline) as doors, AsyncRewardClient(doors.grpc_url) as client:
        await rewards(doors, *(submission(i, origin=origin) for i in range(2) for origin in Origin))
        response = await client.refresh(QUICK)
        (outcome,) = await client.score([submission(0, group_id="new")])
        assert outcome.reward and outcome.reward.standing
        assert version(outcome.reward) == response.discriminator_version
        assert outcome.reward.standing.discriminator_version == "untrained"
        assert outcome.reward.standing.combined_percentile is not None and outcome.reward.standing.num_clips == 40
        with RewardClient(doors.grpc_url) as files:
            await asyncio.to_thread(files.fetch_version, "run-1", version(outcome.reward), tmp_path / "new", 30.0)
        kept = [header_of(file.read_bytes()) for file in (tmp_path / "new").glob("*.safetensors")]
        assert [header.metadata["pace_weights"] for header in kept if header] == ["[0.5, -1.0]"] * 2
        async with AsyncRewardClient(doors.http_url) as http:
            (told,) = await http.score([submission(0, group_id="new")])
        assert told.reward and told.reward.standing == outcome.reward.standing


async def test_a_pinned_version_gives_the_same_reward_later(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    await fill((await open_queue()).worker.store, "run-1")
    async with served(make_settings(versions_loaded=1), small_pipeline) as doors:
        first = await doors.service.refresh(QUICK)
        pin = submission(discriminator_version=first.discriminator_version)
        [before] = await rewards(doors, pin)
        second = await doors.service.refresh(QUICK)
        assert second.previous_version == first.discriminator_version != second.discriminator_version
        assert second.discriminator_version.startswith("untrained+run-1.2-")
        [latest] = await rewards(doors, submission())
        [after] = await rewards(doors, pin)  # loaded again, because only one version is kept
        assert version(latest) == second.discriminator_version and latest.logits != before.logits
        assert after.logits == before.logits and version(after) == first.discriminator_version


async def test_clips_of_a_run_are_trained_on_as_the_pipeline_saw_them(
    make_settings: MakeSettings, small_pipeline: Pipeline, redis: Redis
) -> None:
    """Only clips with a run and an origin that were scored are kept."""
    async with served(make_settings(), small_pipeline) as doors:
        broken = replace(submission(9, origin=Origin.REAL), payload=b"")
        await rewards(doors, submission(1, origin=Origin.REAL, group_id="g"), submission(2), submission(3, run_id=""))
        await doors.service.score([broken])
        kept = [await redis.hlen(KEYS.clips(origin, "run-1")) for origin in Origin]
    assert kept == [1, 0]


async def test_a_group_is_scored_with_one_version_at_all_times(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    await fill((await open_queue()).worker.store, "run-1")
    async with served(make_settings(), small_pipeline) as doors, AsyncRewardClient(doors.http_url) as client:
        [early] = await rewards(doors, submission(1, group_id="g"))
        response = await client.refresh(QUICK)
        mixed = [submission(i, group_id=group) for i in range(2) for group in ("g", "h")]
        together = await rewards(doors, *mixed)
        found = [version(reward) for reward in together]
        assert found == [version(early), response.discriminator_version] * 2 == ["untrained", found[1]] * 2
        alone = [reward for clip in mixed for reward in await rewards(doors, clip)]
        for ours, theirs in zip(together, alone, strict=True):  # versions do not share a batch
            assert ours.logits.long_term == pytest.approx(theirs.logits.long_term, abs=TOLERANCE)
        with pytest.raises(VersionConflict, match=r"'g' .* 'untrained'"):
            pin = submission(5, group_id="g", discriminator_version=response.discriminator_version)
            await doors.service.submit([submission(6), pin])
        with pytest.raises(RequestRefused, match="version_conflict"):
            await client.submit([pin])
        assert (await doors.service._queue.depth()).jobs == 0


async def test_versions_beyond_those_kept_are_gone_and_say_so(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue, redis: Redis
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=2)
    async with served(make_settings(versions_kept=1), small_pipeline) as doors:
        names = [(await doors.service.refresh(replace(QUICK, steps=1))).discriminator_version for _ in range(2)]
        outcomes = await doors.service.score([submission(discriminator_version=name) for name in names])
    assert [outcome.kind for outcome in outcomes] == [OutcomeKind.FAILED, OutcomeKind.OK]
    assert outcomes[0].error and outcomes[0].error.code == "version_not_served"
    assert names[0] in outcomes[0].error.message and "versions_kept" in outcomes[0].error.message
    assert await redis.exists(*(key(names[0]) for key in (KEYS.discriminators, KEYS.training, KEYS.version))) == 0
    bounded = {"queue", "depth", "counts", "workers", "models", "loaded", "lanes", "base"}
    forever = {key.decode().removeprefix(f"{KEYS.prefix}:") for key in await redis.keys() if await redis.ttl(key) == -1}
    assert forever <= bounded


# --- refused refreshes, and repeated requests -----------------------------------------------------


async def test_too_few_clips_say_what_there_is_and_what_is_needed(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    queue = await open_queue(make_settings(refresh_min_clips=3))
    with pytest.raises(UnknownRun, match="no clips of run 'run-1'"):
        await queue.door.refreshes.admit(QUICK)
    for seed in range(3):
        await queue.worker.store.motion.keep_clip("run-1", Origin.REAL, f"real-{seed}", (b"motion",))
    with pytest.raises(TooFewClips, match="3 real clips and 0 rollouts, a refresh needs 3 of each"):
        await queue.door.refreshes.admit(QUICK)


async def test_a_refresh_may_take_longer_the_more_steps_it_has(
    open_queue: OpenQueue, make_settings: MakeSettings
) -> None:
    refreshes = (await open_queue(make_settings(refresh_timeout_s=100.0, refresh_step_s=3.0))).door.refreshes
    assert refreshes.life_s(replace(QUICK, steps=7), math.inf) == 121.0
    assert refreshes.life_s(replace(QUICK, steps=7, deadline_s=110.0), 200.0) == 110.0


async def test_a_run_has_one_refresh_at_a_time(open_queue: OpenQueue) -> None:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    await fill(queue.worker.store, "run-2", num=2)
    named = replace(QUICK, idempotency_key="buffer-1")
    first = await queue.door.refreshes.admit(named)
    assert await queue.door.refreshes.admit(replace(named, deadline_s=9.0)) == first  # a retry has less time left
    with pytest.raises(IdempotencyConflict, match="another refresh"):
        await queue.door.refreshes.admit(replace(named, steps=9))
    with pytest.raises(RefreshRunning, match="run 'run-1' is being refreshed"):
        await queue.door.refreshes.admit(QUICK)
    assert await queue.door.refreshes.admit(replace(named, run_id="run-2")) != first


async def test_a_key_repeats_a_failed_refresh_but_not_a_finished_one(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    named = replace(QUICK, idempotency_key="buffer-1")
    failing = await claimed(queue, named)
    await queue.worker.refreshes.fail(failing, RefreshFailed("as asked"))
    with pytest.raises(RefreshFailed, match="as asked"):
        await queue.door.refreshes.response(failing.id)
    async with served(make_settings(), small_pipeline) as doors:
        responses = [await doors.service.refresh(named) for _ in range(2)]
        assert responses[0] == responses[1]
        text = await doors.service.metrics_text()
    assert "motion_reward_refreshes_total 1.0" in text
    assert 'motion_reward_refreshes_failed_total{code="refresh_failed"} 1.0' in text


async def test_a_late_refresh_publishes_nothing_and_frees_its_run(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=2)
    async with served(make_settings(), small_pipeline) as doors:
        with pytest.raises(DeadlinePassed, match="published nothing"):
            await doors.service.refresh(replace(ENDLESS, deadline_s=0.5))
        assert (await doors.service.model("run-1")).discriminator_version == "untrained"
        assert (await doors.service.refresh(replace(QUICK, steps=1))).previous_version == "untrained"


# --- what a run's buffer holds --------------------------------------------------------------------


# See test_reservoir.py.


async def test_max_real_and_max_rollouts_limit_the_clips(
    make_settings: MakeSettings, small_pipeline: Pipeline, open_queue: OpenQueue
) -> None:
    await fill((await open_queue()).worker.store, "run-1", num=5)
    async with served(make_settings(), small_pipeline) as doors:
        response = await doors.service.refresh(replace(QUICK, steps=1, max_real=2, max_rollouts=3))
    assert (response.num_real, response.num_rollouts) == (2, 3)
    assert (response.scored_real, response.scored_rollouts) == (5, 5)


# --- workers that go away -------------------------------------------------------------------------


async def claimed(queue: Queue, request: RefreshRequest) -> Refresh:
    await queue.door.refreshes.admit(request)
    refresh = await queue.worker.refreshes.claim()
    assert refresh
    return refresh


async def staged(queue: Queue, refresh: Refresh, small: RefreshResponse) -> bool:
    version = Version(name=small.discriminator_version, digest="0", number=1)
    await queue.worker.store.stage(version.name, b"discriminators", b"training")
    return await queue.worker.refreshes.publish(refresh, version, small)


async def test_a_silent_workers_refresh_goes_to_another_worker(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    silent = await claimed(queue, QUICK)
    assert await queue.worker.refreshes.claim() is None and await queue.worker.refreshes.renew(silent)
    async with served(make_settings(), small_pipeline):
        response = await queue.door.refreshes.response(silent.id)
    assert not await queue.worker.refreshes.renew(silent)
    assert not await staged(queue, silent, replace(response, discriminator_version="of a ghost"))
    latest = await queue.door.store.latest("run-1")
    assert latest and latest.name == response.discriminator_version


async def test_a_publication_sent_again_leaves_the_version_its_life(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline, redis: Redis
) -> None:
    """A worker whose answer was lost stages its files again, with a short life. The served version must outlive it."""
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    refresh = await claimed(queue, QUICK)
    assert await staged(queue, refresh, RESPONSE)
    assert await staged(queue, refresh, RESPONSE)
    name = RESPONSE.discriminator_version
    lives_s = [await redis.ttl(key(name)) for key in (KEYS.discriminators, KEYS.training)]
    assert min(lives_s) > make_settings().version_ttl_s - 60


async def test_a_refresh_that_kills_every_worker_ends(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    settings = make_settings(lease_s=0.05, max_attempts=2)
    queue = await open_queue(settings)
    await fill(queue.worker.store, "run-1", num=2)
    for _ in range(2):
        refresh = await claimed(queue, replace(QUICK, idempotency_key="deadly"))
        await asyncio.sleep(0.06)
    async with served(settings, small_pipeline):
        with pytest.raises(RefreshFailed, match="2 workers died during this refresh"):
            await queue.door.refreshes.response(refresh.id)


async def test_a_stopped_worker_hands_its_refresh_back_at_once(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    settings = make_settings(lease_s=30.0)
    queue = await open_queue(settings)
    await fill(queue.worker.store, "run-1", num=2)
    async with served(settings, small_pipeline):
        refresh_id = await queue.door.refreshes.admit(ENDLESS)
        await until_async(lambda: state_is(queue, refresh_id, b"running"))
    again = await queue.worker.refreshes.claim()
    assert again and (again.id, again.attempts) == (refresh_id, 1)


async def state_is(queue: Queue, refresh_id: str, wanted: bytes) -> bool:
    [[state]] = await queue.door._link.hash_rows([f"{KEYS.prefix}:refresh:{refresh_id}"], "state")
    return state == wanted


async def test_scoring_goes_on_while_a_refresh_is_under_way(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline
) -> None:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    async with served(make_settings(), small_pipeline) as doors:
        refresh_id = await queue.door.refreshes.admit(ENDLESS)
        await until_async(lambda: state_is(queue, refresh_id, b"running"))
        [reward] = await rewards(doors, submission())
        assert version(reward) == "untrained" and await state_is(queue, refresh_id, b"running")


@pytest.mark.slow
async def test_a_worker_killed_while_it_trains_costs_time_only(
    open_queue: OpenQueue, make_settings: MakeSettings, small_pipeline: Pipeline, discriminators_file: Path
) -> None:
    settings = make_settings(lease_s=1.0)
    queue = await open_queue(settings)
    await fill(queue.worker.store, "run-1", num=2)
    given = {
        "REDIS_URL": settings.redis_url and settings.redis_url.get_secret_value(),
        "CHECKPOINT": discriminators_file,
    }
    environment = {f"MOTION_REWARD_{name}": str(value) for name, value in {**given, "THREADS": 1, "LEASE_S": 1}.items()}
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "reward_server", "worker"), env={**os.environ, **environment}
    )
    refresh_id = await queue.door.refreshes.admit(replace(QUICK, steps=20))
    async with asyncio.timeout(5 * PATIENCE_S):  # a fresh interpreter loads torch, on a machine that may be busy
        while not await state_is(queue, refresh_id, b"running"):
            assert victim.returncode is None
            await asyncio.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    await victim.wait()
    async with served(settings, small_pipeline), asyncio.timeout(5 * PATIENCE_S):
        response = await queue.door.refreshes.response(refresh_id)
    assert response.steps == 20 == len(response.long_term.losses)
    [[attempts]] = await queue.door._link.hash_rows([f"{KEYS.prefix}:refresh:{refresh_id}"], "attempts")
    assert attempts == b"2"
