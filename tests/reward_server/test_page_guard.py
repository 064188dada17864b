"""Tests what the HTTP door refuses to browsers: foreign hosts and origins, and what every answer tells them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import ValidationError

from protos.client import RequestRefused, RewardClient
from reward_server.doors.http_guard import PageGuard
from reward_server.errors import Forbidden
from reward_server.settings import Settings
from tests.conftest import MakeSettings
from tests.running import Doors, open_doors

STATIC = {"x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}


@pytest.fixture
async def doors(make_settings: MakeSettings) -> AsyncIterator[Doors]:
    async with open_doors(make_settings()) as doors:
        yield doors


async def refused(doors: Doors, method: str = "GET", path: str = "/healthz", **headers: str) -> bool:
    async with httpx.AsyncClient(base_url=doors.http_url) as client:
        answer = await client.request(method, path, headers=headers)
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "forbidden"
    return answer.status_code == 403


def raw_answer(http_url: str, sent: bytes) -> bytes:
    host, port = http_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        return connection.makefile("rb").read()


# --- hosts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "127.9.9.9", "[::1]:80"])
async def test_a_door_on_loopback_is_served_under_loopback_names(doors: Doors, host: str) -> None:
    assert not await refused(doors, host=host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "[::",
        "a@b",
    ],
)
async def test_a_door_on_loopback_is_served_under_no_other_name(doors: Doors, host: str) -> None:
    """After DNS rebinding, a page of evil.example reaches loopback under its own name."""
    assert await refused(doors, host=host)
    assert await refused(doors, "POST", "/v1/jobs", host=host)


async def test_two_hosts_in_one_request_are_refused(doors: Doors) -> None:
    sent = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    answer = await asyncio.to_thread(raw_answer, doors.http_url, sent)
    assert answer.split(b" ")[1] in (b"400", b"403")


async def test_the_setting_names_the_hosts(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings(allowed_hosts="rewards.example, [::1]")) as doors:
        assert not await refused(doors, host="Rewards.example:8443")
        assert not await refused(doors, host="[::1]:8000")
        assert await refused(doors, host="localhost")
    async with open_doors(make_settings(allowed_hosts="*")) as doors:
        assert not await refused(doors, host="anything.example")


def test_a_door_off_loopback_is_served_under_any_name_unless_told_otherwise() -> None:
    PageGuard(_nothing, (), (), "0.0.0.0:8000")._check_host(["rewards.example"])
    with pytest.raises(Forbidden):
        PageGuard(_nothing, ("a.example",), (), "0.0.0.0:8000")._check_host(["rewards.example"])


async def _nothing(*_: object) -> None:
    pass


# --- origins ------------------------------------------------------------------------------------

FOREIGN = ["https://evil.example", "null", "", "http://127.0.0.1:1", "http://[", "file://"]


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_page_changes_nothing(doors: Doors, origin: str) -> None:
    for method, path in (("POST", "/v1/jobs"), ("POST", "/v1/refresh"), ("DELETE", "/v1/jobs/x")):
        assert await refused(doors, method, path, origin=origin)
    assert "motion_reward_jobs_admitted_total 0.0" in await doors.service.metrics_text()


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_a_foreign_page_reads_nothing_because_no_answer_allows_it(doors: Doors, origin: str) -> None:
    async with httpx.AsyncClient(base_url=doors.http_url) as client:
        answer = await client.get("/metrics", headers={"origin": origin})
        asked = await client.options("/v1/jobs", headers={"origin": origin, "access-control-request-method": "POST"})
    for each in (answer, asked):
        assert not [name for name in each.headers if name.startswith("access-control")]
    assert asked.status_code == 405


async def test_the_servers_own_pages_and_programs_are_not_foreign(doors: Doors) -> None:
    assert not await refused(doors, "POST", "/v1/jobs", origin=doors.http_url)
    assert not await refused(doors, "POST", "/v1/jobs")


async def test_an_origin_that_is_set_may_call(make_settings: MakeSettings) -> None:
    page = "https://lab.example"
    async with open_doors(make_settings(cors_origins=f"{page}, http://localhost:3000")) as doors:
        assert not await refused(doors, "POST", "/v1/jobs", origin=page)
        assert await refused(doors, "POST", "/v1/jobs", origin="https://evil.example")
        async with httpx.AsyncClient(base_url=doors.http_url) as client:
            asked = await client.options("/v1/jobs", headers={"origin": page, "access-control-request-method": "POST"})
            other = await client.get("/healthz", headers={"origin": "https://evil.example"})
    assert asked.headers["access-control-allow-origin"] == page
    assert "access-control-allow-credentials" not in asked.headers
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["*", "lab.example", "https://*.example", "https://lab.example/page"])
def test_origins_are_named_one_by_one(origin: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=origin)


# --- headers ------------------------------------------------------------------------------------


async def test_every_answer_has_the_headers(doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=doors.http_url) as client:
        answers = [
            await client.get(path) for path in ("/healthz", "/readyz", "/metrics", "/nope", "/docs", "/v1/model")
        ]
        answers += [await client.post("/v1/jobs"), await client.get("/healthz", headers={"host": "evil.example"})]
    for answer in answers:
        assert STATIC.items() <= answer.headers.items()
        assert answer.headers["cache-control"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers
    policies = {answer.headers["content-security-policy"] for answer in answers}
    assert len(policies) == 2, "one for the documentation's pages, and one for the rest"
    assert all("http:" not in policy and "https:" not in policy for policy in policies)


async def test_an_answer_to_something_else_than_http_has_them_too(doors: Doors) -> None:
    answer = (await asyncio.to_thread(raw_answer, doors.http_url, b"\x16\x03\x01 not http\r\n\r\n")).lower()
    assert answer.startswith(b"http/1.1 400")
    assert b"x-content-type-options: nosniff" in answer


async def test_a_refused_client_says_why(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings(allowed_hosts="rewards.example")) as doors:
        with (
            RewardClient(doors.http_url, attempts=1, timeout_s=20) as client,
            pytest.raises(RequestRefused, match="MOTION_REWARD_ALLOWED_HOSTS"),
        ):
            await asyncio.to_thread(client.model)
