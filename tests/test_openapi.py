"""The OpenAPI document is true: schemathesis makes requests from it and holds every answer against it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from reward_server.pipeline import Pipeline
from reward_server.private_redis import PrivateRedis
from reward_server.settings import Settings
from tests.running import open_doors, working

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def http_url(
    redis_server: PrivateRedis, small_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A whole server in a thread of its own."""
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


@pytest.fixture(scope="module")
def api(http_url: str) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{http_url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(max_examples=15, deadline=None, derandomize=True, database=None)
def test_every_answer_is_as_the_document_says(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


def test_the_document_names_every_route_and_its_examples(api: schemathesis.schemas.BaseSchema) -> None:
    document = api.raw_schema
    assert document["paths"].keys() == {
        "/v1/score",
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/model",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    assert "example" in document["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]["application/json"]
