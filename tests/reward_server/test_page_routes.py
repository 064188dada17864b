"""Tests who gets the page and its copies, without a browser: the setting, keys, headers, and what a copy is."""

from __future__ import annotations

import io
import subprocess
import sys

import av
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from protos.types import Media
from reward_server.doors.key_file import KeyFile, Scope
from reward_server.page.messages import COPY_ANSWERS, COPY_REQUESTS, CopyAnswer, CopyRequest
from reward_server.settings import Settings
from tests.conftest import MakeSettings
from tests.media import LIMITS, texture, video
from tests.running import open_doors


@pytest.mark.parametrize(
    ("http", "page", "served"),
    [
        ("127.0.0.1:0", None, True),
        ("[::1]:0", None, True),
        ("0.0.0.0:0", None, False),
        ("0.0.0.0:0", True, True),
        ("127.0.0.1:0", False, False),
    ],
)
def test_the_page_is_on_by_default_on_loopback_alone(http: str, page: bool | None, served: bool) -> None:
    assert Settings(http=http, page=page).serves_page is served


async def test_without_the_page_there_are_none_of_its_routes(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings(page=False)) as doors, httpx.AsyncClient(base_url=doors.http_url) as client:
        assert [(await client.get(path)).status_code for path in ("/", "/page/app.js")] == [404, 404]
        assert (await client.post("/v1/page/copy")).status_code == 404


async def test_the_page_may_load_only_its_own_files(make_settings: MakeSettings) -> None:
    async with open_doors(make_settings()) as doors, httpx.AsyncClient(base_url=doors.http_url) as client:
        answer = await client.get("/")
        script = await client.get("/page/app.js")
        missing = await client.get("/page/..%2f..%2ferrors.py")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert script.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "not_found"


async def test_with_keys_the_page_is_free_and_its_copies_are_not(make_settings: MakeSettings) -> None:
    settings = make_settings()
    KeyFile(settings.keys_path).create("someone", (Scope.SCORE,))
    async with open_doors(settings) as doors, httpx.AsyncClient(base_url=doors.http_url) as client:
        assert [(await client.get(path)).status_code for path in ("/", "/page/page.css")] == [200, 200]
        assert (await client.post("/v1/page/copy")).status_code == 401


def copied(payload: bytes, fault: str = "") -> tuple[CopyAnswer, bytes]:
    """The answer of the process that makes copies, and the copy."""
    request = CopyRequest(
        media=Media.CONTAINER,
        fps=12.0,
        fault=fault,
        strength=1.0,
        limits=LIMITS,
        max_decode_s=30.0,
        threads=1,
        memory_mib=1024,
        confined=True,
    )
    command = [sys.executable, "-m", "reward_server.page.copy_process"]
    sent = COPY_REQUESTS.dump_json(request) + b"\n" + payload
    line, _, made = subprocess.run(command, input=sent, capture_output=True, check=True).stdout.partition(b"\n")
    return COPY_ANSWERS.validate_json(line), made


def frames_of(mp4: bytes) -> list[NDArray[np.uint8]]:
    with av.open(io.BytesIO(mp4), "r") as opened:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in opened.decode(video=0)]


def test_a_copy_is_at_the_rate_of_scoring_and_a_twin_has_the_fault() -> None:
    payload = video(texture(32, 96, 160), fps=24, container="avi", codec="mpeg4")
    plain_answer, plain = copied(payload)
    static_answer, static = copied(payload, fault="static")
    assert plain_answer == static_answer
    shown, held = frames_of(plain), frames_of(static)
    assert len(shown) == len(held) == 16
    assert np.abs(shown[15].astype(int) - shown[0]).mean() > 10
    assert np.abs(held[15].astype(int) - held[0]).mean() < 3


def test_a_copy_that_cannot_be_made_is_refused_with_the_readers_words() -> None:
    answer, made = copied(b"no video " * 99)
    assert (answer.code, made) == ("unreadable_clip", b"")
    answer, _ = copied(b"", fault="nonsense")
    assert answer.code == "bad_request"
