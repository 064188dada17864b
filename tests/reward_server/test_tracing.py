"""Tests traces of clips with the exporter into memory: one trace from the client to the stages, or nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from redis.asyncio import Redis

from protos import reward_pb2 as pb
from protos import tracing
from protos.client import AsyncRewardClient
from tests.conftest import MakeSettings
from tests.pixel_scorer import PixelScorer, moving
from tests.running import knocking, open_doors, working

ROOT = Path(__file__).parents[2]
SERVICE = "motion_reward.v1.MotionReward"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Turns tracing on in this process, for one test."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # OpenTelemetry itself sets it only once
    return exporter


def ancestors(span: ReadableSpan, spans: Sequence[ReadableSpan]) -> list[str]:
    """The names of the spans that a span is within, from the outermost one."""
    by_id = {one.context.span_id: one for one in spans if one.context}
    names: list[str] = []
    while span.parent and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        names.insert(0, span.name)
    return names


@pytest.mark.parametrize("door", ["http", "grpc"])
async def test_one_trace_leads_from_the_client_to_the_stages(
    make_settings: MakeSettings, exporter: InMemorySpanExporter, redis: Redis, door: str
) -> None:
    async with open_doors(make_settings()) as doors, working(doors, PixelScorer()):
        url = doors.http_url if door == "http" else doors.grpc_url
        async with AsyncRewardClient(url, timeout_s=60) as client:
            with trace.get_tracer("a program").start_as_current_span("training step"):
                [outcome] = await client.score([moving(2)])
        left = await redis.keys("*:trace:*")
    spans = exporter.get_finished_spans()
    [step] = [span for span in spans if span.name == "training step"]
    ours = [span for span in spans if span.context.trace_id == step.context.trace_id]
    call = "POST /v1/score" if door == "http" else f"{SERVICE}/Score"
    to_door = ["training step", "motion_reward.score", call]
    named = {span.name: span for span in ours}
    assert {name: ancestors(named[name], ours) for name in ("queue", "job", "decode", "score", "motion")} == {
        "queue": to_door,
        "job": to_door,
        "decode": [*to_door, "job"],
        "score": [*to_door, "job"],
        "motion": [*to_door, "job", "score"],
    }
    job, stages = named["job"], [named[name] for name in ("queue", "decode", "score")]
    assert job.attributes and job.attributes["job.id"] == outcome.job_id and job.attributes["job.outcome"] == "ok"
    assert all(one.start_time <= one.end_time <= other.end_time for one, other in pairwise(stages))
    assert named["motion"].end_time - named["motion"].start_time == pytest.approx(2e6, abs=1e3)  # of the pixel scorer
    assert named["discriminator"].start_time == named["motion"].end_time
    assert left == []


async def test_a_clip_that_fails_marks_its_job_and_health_is_not_traced(
    make_settings: MakeSettings, exporter: InMemorySpanExporter
) -> None:
    async with open_doors(make_settings()) as doors, working(doors, PixelScorer()), knocking(doors) as (http, stub):
        await stub.score([moving(2, policy_version="raise")])
        await http.client.get("/readyz")
        await http.client.get("/metrics")
    [job] = [span for span in exporter.get_finished_spans() if span.name == "job"]
    assert not job.status.is_ok and "RuntimeError" in str(job.status.description)
    assert not [span.name for span in exporter.get_finished_spans() if "readyz" in span.name or "metrics" in span.name]


async def test_a_malformed_header_begins_a_new_trace(
    make_settings: MakeSettings, exporter: InMemorySpanExporter
) -> None:
    async with open_doors(make_settings()) as doors, working(doors, PixelScorer()), knocking(doors) as (http, stub):
        await http.client.get("/v1/model", headers={"traceparent": "00-nonsense"})
        await stub.stub.GetModel(pb.GetModelRequest(), metadata=(("traceparent", "nonsense"),))
    spans = exporter.get_finished_spans()
    assert {f"{SERVICE}/GetModel", "GET /v1/model"} <= {span.name for span in spans if span.parent is None}


async def test_without_tracing_no_header_and_no_key_is_sent(make_settings: MakeSettings, redis: Redis) -> None:
    assert not tracing.is_on() and tracing.headers() == {} and tracing.traceparent() == ""
    async with open_doors(make_settings()) as doors:
        await doors.service.submit([moving(2)])  # there is no worker
        assert await redis.keys("*:trace:*") == []


def test_a_process_that_does_not_trace_imports_nothing_for_it() -> None:
    """redis-py and FastAPI import parts of OpenTelemetry where it is installed, but no exporter."""
    code = (
        "import sys, protos.client\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
        "import reward_server.serving.serve, reward_server.worker.worker\n"
        "reward_server.serving.serve.start_tracing(reward_server.settings.Settings(), 'x')\n"
        "assert not {'opentelemetry.sdk.trace', 'opentelemetry.exporter'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_setting_needs_the_extra_and_says_so() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None\n"
        "from reward_server.serving.tracing import start_tracing\n"
        "from reward_server.settings import Settings\n"
        "start_tracing(Settings(tracing=True), 'x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "NotReady" in done.stderr and "motion-reward[server,tracing]" in done.stderr
