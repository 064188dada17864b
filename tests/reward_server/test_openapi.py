"""Tests the OpenAPI document: schemathesis makes requests from it and compares every answer with it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
from pydantic import SecretStr

from reward_server.doors.openapi import document, text
from reward_server.pipeline import Pipeline
from reward_server.serving.private_redis import PrivateRedis
from reward_server.settings import Settings
from tests.running import open_doors, working


@pytest.fixture(scope="module")
def http_url(
    redis_server: PrivateRedis, small_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A whole server in its own thread."""
    folder: Path = tmp_path_factory.mktemp("openapi")
    settings = Settings(redis_url=SecretStr(redis_server.url), data_dir=folder, threads=1, score_timeout_s=20.0)
    ready, url = threading.Event(), ""
    stop: asyncio.Event
    loop: asyncio.AbstractEventLoop

    async def serve() -> None:
        nonlocal stop, loop, url
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        async with open_doors(settings) as doors, working(doors, small_pipeline):
            url = doors.http_url
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join()


schemathesis.serializer.alias(["video/mp4", "application/vnd.safetensors"], "application/octet-stream")
schema = schemathesis.openapi.from_dict(document())


@schema.parametrize()
@hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_every_answer_is_as_the_document_says(case: schemathesis.Case, http_url: str) -> None:
    case.call_and_validate(base_url=http_url)


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_of_the_documentation_need_no_other_host(page: str, http_url: str) -> None:
    html = httpx.get(f"{http_url}{page}").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert any(part.endswith(".js") for part in parts)
    for part in parts:
        assert part.startswith("/"), f"{page} takes {part} from elsewhere"
        assert httpx.get(f"{http_url}{part}").status_code == 200


def test_the_committed_document_is_what_the_door_describes() -> None:
    committed = Path(__file__).parents[2] / "docs" / "openapi.json"
    assert committed.read_text() == text(), "run: python -m reward_server.doors.openapi > docs/openapi.json"


def test_the_served_document_is_tested_and_names_every_route(http_url: str) -> None:
    served = httpx.get(f"{http_url}/openapi.json").json()
    assert served == json.loads(json.dumps(document()))
    assert served["paths"].keys() == {
        "/v1/score",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/model",
        "/v1/refresh",
        "/v1/versions",
        "/v1/version",
        "/v1/versions/rollback",
        "/v1/dead-letters",
        "/v1/dead-letter",
        "/v1/dead-letters/replay",
        "/v1/dead-letters/drop",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    assert "example" in served["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]["application/json"]
