"""Tests /metrics with real doors: calls by route and method, the state of the queue, refreshes, and bounded labels."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from protos import reward_pb2 as pb
from protos.types import Outcome, OutcomeKind, Standing
from reward_server.doors.metrics import Metrics
from reward_server.errors import RefreshFailed, RefreshRejected
from reward_server.queue.finished import Finished
from reward_server.queue.keys import Keys
from tests.conftest import MakeSettings, OpenQueue
from tests.pixel_scorer import PixelScorer, moving
from tests.reward_server.test_jobs import claim_one, model, ok, submission
from tests.reward_server.test_refresh import QUICK, claimed
from tests.reward_server.test_versions import publish
from tests.reward_server.test_worker import until_async
from tests.run_clips import fill
from tests.running import Doors, knocking, open_doors, working

KEYS = Keys(profile="embedded")
SERVICE = "motion_reward.v1.MotionReward"
HTTP, GRPC = "motion_reward_http_requests_total", "motion_reward_grpc_calls_total"


def series(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The values of a metric by its labels' values, in the order of the labels' names."""
    return {
        tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def value(doors: Doors, name: str) -> float:
    [only] = series(await doors.service.metrics_text(), name).values()
    return only


async def counted(doors: Doors) -> bool:
    return bool(series(await doors.service.metrics_text(), GRPC))


def promtool(*command: str, given: str = "") -> str:
    """What promtool complains about."""
    done = subprocess.run(["promtool", *command], input=given, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


async def test_calls_are_counted_by_route_and_method_at_both_doors(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings()) as doors, working(doors, PixelScorer()), knocking(doors) as knocks:
        http, stub = knocks
        for knock in knocks:
            await knock.score([moving(2)])
            await knock.job("nope", wait_s=0.1)
        await http.client.get("/healthz", headers={"host": "elsewhere.example"})  # refused before any route
        await http.client.delete("/v1/score")
        for number in range(3):  # names that callers make up share one series
            await http.client.get(f"/no/{number}")
            await http.client.request("PROPFIND", f"/no/{number}")
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.channel.unary_unary(f"/made.Up/{number}")(b"")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.channel.unary_unary(f"/{SERVICE}/Score")(b"\xff")
        text = await doors.service.metrics_text()
    assert series(text, HTTP) == {
        ("POST", "/v1/score", "200"): 1,
        ("GET", "/v1/jobs/{job_id}", "404"): 1,
        ("GET", "/healthz", "403"): 1,
        ("DELETE", "/v1/score", "405"): 1,
        ("GET", "other", "404"): 3,
        ("other", "other", "404"): 3,
    }
    assert series(text, GRPC) == {
        ("OK", f"{SERVICE}/Score"): 1,
        ("NOT_FOUND", f"{SERVICE}/Await"): 1,
        ("UNIMPLEMENTED", "other"): 3,
        ("INVALID_ARGUMENT", f"{SERVICE}/Score"): 1,
    }
    timed = series(text, "motion_reward_http_request_duration_seconds_count")
    assert timed["POST", "/v1/score"] == 1 and sum(timed.values()) == sum(series(text, HTTP).values())
    assert sum(series(text, "motion_reward_grpc_call_duration_seconds_count").values()) == 6


async def test_a_call_that_its_caller_leaves_is_counted(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings()) as doors, knocking(doors) as (_, stub):
        job_ids = await doors.service.submit([moving(2)])  # there is no worker
        call = stub.stub.Await(pb.AwaitRequest(job_ids=job_ids, timeout_s=60))
        await call.initial_metadata()
        call.cancel()
        await until_async(lambda: counted(doors))
        found = series(await doors.service.metrics_text(), GRPC)
    assert found == {("CANCELLED", f"{SERVICE}/Await"): 1}


async def test_the_queue_shows_its_oldest_job_and_silent_workers(
    make_settings: MakeSettings, open_queue: OpenQueue, redis: Redis
) -> None:
    queue = await open_queue()
    async with open_doors(make_settings()) as doors:
        assert await value(doors, "motion_reward_ready") == 0
        old, new = await queue.door.admit([submission(), submission()])
        await redis.zincrby(f"{KEYS.prefix}:ages", -100_000, old)
        await redis.zincrby(f"{KEYS.prefix}:ages", -20_000, new)
        assert 100 <= await value(doors, "motion_reward_queue_oldest_job_age_seconds") < 110
        await queue.worker.announce("w1", model())
        job = await claim_one(queue.worker)
        assert job.id == old
        assert (await value(doors, "motion_reward_ready"), await value(doors, "motion_reward_silent_workers")) == (1, 0)
        await redis.zadd(KEYS.workers, {"w1": 1})  # its lease ended long ago
        assert (await value(doors, "motion_reward_workers"), await value(doors, "motion_reward_silent_workers")) == (
            0,
            1,
        )
        await queue.worker.finish(job, ok(job))
        assert 20 <= await value(doors, "motion_reward_queue_oldest_job_age_seconds") < 30
        doors.service.stop()
        assert await value(doors, "motion_reward_ready") == 0


async def test_refreshes_show_their_figures_and_why_they_failed(
    make_settings: MakeSettings, open_queue: OpenQueue
) -> None:
    queue = await open_queue()
    await fill(queue.worker.store, "run-1", num=2)
    async with open_doors(make_settings()) as doors:
        assert "last_refresh" not in await doors.service.metrics_text()
        for error in (RefreshRejected("worse"), RefreshFailed("as asked")):
            await queue.worker.refreshes.fail(await claimed(queue, QUICK), error)
        await publish(queue, "a")
        text = await doors.service.metrics_text()
    failed = series(text, "motion_reward_refreshes_failed_total")
    assert {code: number for (code,), number in failed.items() if number} == {
        "refresh_rejected": 1,
        "refresh_failed": 1,
    }
    assert failed["other",] == 0
    auc = series(text, "motion_reward_last_refresh_auc")
    assert auc.keys() == {(name, when) for name in ("instantaneous", "long_term") for when in ("before", "after")}
    assert set(auc.values()) == {0.5}
    assert series(text, "motion_reward_last_refresh_duration_seconds") == {(): 1.0}
    assert series(text, "motion_reward_last_refresh_clips") == {("real",): 2, ("rollout",): 2}


def test_percentiles_are_counted_as_shares_where_they_are_known() -> None:
    metrics = Metrics()
    scored = PixelScorer().score([PixelScorer().prepare(moving(2))])[0].result
    for standing in (None, Standing(missing="no table"), Standing(combined_percentile=97.0, long_term_percentile=0.0)):
        outcome = Outcome(job_id="j", kind=OutcomeKind.OK, reward=replace(scored, standing=standing))  # type: ignore[type-var]
        metrics.observe(Finished(outcome=outcome, queue_ms=1.0, batch=1))
    text = metrics.render(None)
    counts = series(text, "motion_reward_standing_ratio_count")
    assert counts == {("combined",): 1, ("instantaneous",): 0, ("long_term",): 1}
    buckets = series(text, "motion_reward_standing_ratio_bucket")
    assert [buckets[le, "combined"] for le in ("0.95", "0.99")] == [0, 1] and buckets["0.01", "long_term"] == 1


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool comes with Debian's package prometheus")
async def test_names_and_units_follow_prometheus(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings()) as doors, working(doors, PixelScorer()):
        await doors.service.score([moving(2)])
        text = await doors.service.metrics_text()
    assert promtool("check", "metrics", given=text) == ""
