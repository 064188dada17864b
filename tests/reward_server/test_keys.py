"""Tests API keys: the file that keeps them, what each scope may do at both doors, and that no key is ever logged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
import trustme
from typer.testing import CliRunner

from protos import reward_pb2 as pb
from protos import reward_pb2_grpc as rpc
from protos.client import AsyncRewardClient, RequestRefused, RewardClient, read_api_key, submission
from protos.types import Media, OutcomeKind
from reward_server.__main__ import app
from reward_server.doors.access import ANYONE, Access, check_exposure
from reward_server.doors.key_file import KeyFile, Scope
from reward_server.errors import BadRequest, Unauthenticated
from reward_server.serving.local import READY, ready_line, started
from reward_server.serving.private_redis import PrivateRedis
from reward_server.serving.worker_processes import worker_environment
from reward_server.settings import Settings
from tests import media
from tests.authority import write_encrypted
from tests.conftest import MakeSettings
from tests.pixel_scorer import PixelScorer
from tests.running import Doors, open_doors, working

CLIP = media.tensor(np.full((12, 32, 48, 3), 100, dtype=np.uint8), 12.0)


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """Doors that require keys, with a key of each scope, and their file."""

    doors: Doors
    keys: dict[Scope, str]
    file: KeyFile


@pytest.fixture
async def guarded(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Guarded]:
    file = KeyFile(tmp_path / "keys.json")
    keys = {scope: file.create(f"for {scope}", (scope,)) for scope in Scope}
    async with open_doors(make_settings(keys_file=file.path)) as doors, working(doors, PixelScorer()):
        yield Guarded(doors=doors, keys=keys, file=file)


# --- the file -----------------------------------------------------------------------------------


def test_the_file_holds_no_key_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "new" / "keys.json")
    text = file.create("lab", (Scope.REFRESH, Scope.SCORE))
    kept = file.path.read_text()
    mark, key_id, secret = text.split("_", 2)
    assert (mark, len(secret) >= 43) == ("mrk", True)
    assert secret not in kept and text not in kept
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    [key] = file.read()
    assert (key.id, key.name, key.scopes, key.revoked) == (key_id, "lab", (Scope.SCORE, Scope.REFRESH), "")
    assert key.matches(secret)
    assert not key.matches(secret[:-1] + "x") and not key.matches("")


def test_two_keys_of_one_name_differ_in_everything(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    assert file.create("a", (Scope.SCORE,)) != file.create("a", (Scope.SCORE,))
    first, second = file.read()
    assert first.id != second.id and first.salt != second.salt and first.digest != second.digest


@pytest.mark.parametrize(
    ("name", "scopes"), [("", (Scope.SCORE,)), ("a" * 81, (Scope.SCORE,)), ("a\n", (Scope.SCORE,)), ("a", ())]
)
def test_a_key_needs_a_name_and_a_scope(tmp_path: Path, name: str, scopes: tuple[Scope, ...]) -> None:
    with pytest.raises(BadRequest):
        KeyFile(tmp_path / "keys.json").create(name, scopes)


def test_the_commands_create_list_and_revoke(tmp_path: Path) -> None:
    runner, place = CliRunner(), ["--keys-file", str(tmp_path / "keys.json")]
    made = runner.invoke(app, ["keys", "create", "trainer of lab 3", "--scope", "score", "--scope", "metrics", *place])
    text = made.stdout.strip()
    key_id, secret = text.split("_", 2)[1:]
    listed = runner.invoke(app, ["keys", "list", *place]).stdout
    assert key_id in listed and "score,metrics" in listed and "valid" in listed and "trainer of lab 3" in listed
    assert secret not in listed
    assert runner.invoke(app, ["keys", "revoke", key_id, *place]).exit_code == 0
    assert "revoked 2" in runner.invoke(app, ["keys", "list", *place]).stdout
    assert isinstance(runner.invoke(app, ["keys", "revoke", "00000000", *place]).exception, BadRequest)
    assert runner.invoke(app, ["keys", "create", "a", "--scope", "everything", *place]).exit_code == 2


# --- who may call -------------------------------------------------------------------------------


def settings_with(path: Path, **fields: Any) -> Settings:
    return Settings(keys_file=path, data_dir=path.parent, **fields)


async def test_without_a_file_anyone_may_call_and_with_one_nobody_without_a_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    access = Access(settings_with(file.path))
    assert await access.caller(None) == ANYONE
    text = file.create("a", (Scope.SCORE,))
    with pytest.raises(Unauthenticated, match="Bearer KEY"):
        await access.caller(None)
    caller = await access.caller(f"Bearer {text}")
    assert (caller.key_id, caller.scopes) == (text.split("_")[1], frozenset({Scope.SCORE}))
    assert await access.caller(f"bearer  {text} ") == caller


async def test_a_wrong_a_revoked_and_a_lost_key_are_refused(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    text, other = file.create("a", (Scope.SCORE,)), file.create("b", (Scope.SCORE,))
    access = Access(settings_with(file.path))
    mixed = f"{text.rsplit('_', 1)[0][:12]}_{other.split('_', 2)[2]}"
    for wrong in (mixed, text[:-1], text + "x", "mrk__", "x", "", "\u00e9" * 40, f"Basic {text}"):
        with pytest.raises(Unauthenticated):
            await access.caller(wrong if wrong.startswith("Basic") else f"Bearer {wrong}")
    assert (await access.caller(f"Bearer {text}")).key_id
    file.revoke(text.split("_")[1])
    with pytest.raises(Unauthenticated, match="revoked"):
        await access.caller(f"Bearer {text}")
    file.revoke(other.split("_")[1])  # all are revoked: the doors must not be open to anyone again
    with pytest.raises(Unauthenticated):
        await access.caller(None)
    file.path.unlink()
    with pytest.raises(Unauthenticated):
        await access.caller(None)


async def test_a_damaged_file_lets_nobody_new_in(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    text = file.create("a", (Scope.SCORE,))
    access = Access(settings_with(file.path))
    await access.caller(f"Bearer {text}")
    file.path.write_text("{")
    assert (await access.caller(f"Bearer {text}")).key_id
    for each in (access, Access(settings_with(file.path))):
        with pytest.raises(Unauthenticated):
            await each.caller(None)


@pytest.mark.parametrize("door", ["http", "grpc"])
def test_a_door_off_loopback_needs_a_key_or_permission_by_name(tmp_path: Path, door: str) -> None:
    file, off = KeyFile(tmp_path / "keys.json"), {door: "0.0.0.0:0"}
    with pytest.raises(BadRequest, match="MOTION_REWARD_ALLOW_ANYONE"):
        check_exposure(settings_with(file.path, **off))
    check_exposure(settings_with(file.path))
    check_exposure(settings_with(file.path, allow_anyone=True, **off))
    file.create("a", (Scope.SCORE,))
    check_exposure(settings_with(file.path, **off))


def test_serve_itself_does_not_start_open(tmp_path: Path) -> None:
    environment = os.environ | {"MOTION_REWARD_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "reward_server", "serve", "--workers", "0", "--http", "0.0.0.0:0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "MOTION_REWARD_ALLOW_ANYONE=true" in done.stderr


# --- both doors ---------------------------------------------------------------------------------

FREE_PATHS = ("/healthz", "/readyz", "/ready", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs")
HTTP_CALLS: dict[tuple[str, str], Scope] = {
    ("POST", "/v1/jobs"): Scope.SCORE,
    ("POST", "/v1/score"): Scope.SCORE,
    ("GET", "/v1/jobs/x"): Scope.SCORE,
    ("GET", "/v1/model"): Scope.SCORE,
    ("POST", "/v1/refresh"): Scope.REFRESH,
    ("GET", "/metrics"): Scope.METRICS,
    ("GET", "/v1/versions"): Scope.ADMIN,
    ("GET", "/v1/version"): Scope.ADMIN,
    ("POST", "/v1/versions/rollback"): Scope.ADMIN,
    ("GET", "/v1/dead-letters"): Scope.ADMIN,
    ("GET", "/v1/dead-letter"): Scope.ADMIN,
    ("POST", "/v1/dead-letters/replay"): Scope.ADMIN,
    ("POST", "/v1/dead-letters/drop"): Scope.ADMIN,
    ("GET", "/v1/nothing"): Scope.SCORE,
}


async def test_http_asks_for_a_key_and_its_scope(guarded: Guarded) -> None:
    async with httpx.AsyncClient(base_url=guarded.doors.http_url, timeout=60) as client:
        for (method, path), needed in HTTP_CALLS.items():
            for headers in ({}, bearer("x"), bearer(f"mrk_00000000_{'a' * 43}")):
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated")
                assert answer.headers["www-authenticate"] == "Bearer"
            for scope, text in guarded.keys.items():
                answer = await client.request(method, path, headers=bearer(text))
                assert (answer.status_code == 403) == (scope not in (needed, Scope.ADMIN)), (method, path, scope)
                assert answer.status_code != 401
        for path in FREE_PATHS:
            assert (await client.get(path)).status_code == 200


async def test_http_takes_one_key_in_one_place(guarded: Guarded) -> None:
    text = guarded.keys[Scope.ADMIN]
    async with httpx.AsyncClient(base_url=guarded.doors.http_url) as client:
        twice = [("authorization", f"Bearer {text}"), ("authorization", "Bearer x")]
        assert (await client.get("/v1/model", headers=twice)).status_code == 401
        for elsewhere in ({"params": {"api_key": text}}, {"headers": {"cookie": f"key={text}"}}, {"auth": ("u", text)}):
            assert (await client.get("/v1/model", **elsewhere)).status_code == 401


async def test_metrics_are_free_if_the_setting_says_so(make_settings: MakeSettings, tmp_path: Path) -> None:
    KeyFile(tmp_path / "keys.json").create("a", (Scope.SCORE,))
    settings = make_settings(keys_file=tmp_path / "keys.json", metrics_public=True)
    async with open_doors(settings) as doors, httpx.AsyncClient(base_url=doors.http_url) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/model")).status_code == 401


GRPC_CALLS: dict[str, tuple[Callable[[Any, Any], Any], Scope]] = {
    "Score": (lambda stub, meta: stub.Score(pb.ScoreRequest(), metadata=meta), Scope.SCORE),
    "Submit": (lambda stub, meta: stub.Submit([pb.SubmitRequest()], metadata=meta), Scope.SCORE),
    "Await": (lambda stub, meta: stub.Await(pb.AwaitRequest(), metadata=meta), Scope.SCORE),
    "GetModel": (lambda stub, meta: stub.GetModel(pb.GetModelRequest(), metadata=meta), Scope.SCORE),
    "Refresh": (lambda stub, meta: stub.Refresh(pb.RefreshRequest(), metadata=meta), Scope.REFRESH),
    "FetchVersion": (lambda stub, meta: stub.FetchVersion(pb.FetchVersionRequest(), metadata=meta), Scope.REFRESH),
    "RestoreVersion": (lambda stub, meta: stub.RestoreVersion([pb.VersionPart()], metadata=meta), Scope.REFRESH),
}


async def grpc_end(call: Any) -> str:
    """The status with which a call ends, and the error code."""
    try:
        if hasattr(call, "__aiter__") and not hasattr(call, "__await__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize("name", GRPC_CALLS)
async def test_grpc_asks_for_a_key_and_its_scope(guarded: Guarded, name: str) -> None:
    make, needed = GRPC_CALLS[name]
    async with grpc.aio.insecure_channel(guarded.doors.grpc_url.removeprefix("grpc://")) as channel:
        stub = rpc.MotionRewardStub(channel)  # type: ignore[no-untyped-call]
        for meta in ((), (("authorization", "Bearer x"),), (("authorization", "x"),)):
            assert await grpc_end(make(stub, meta)) == "UNAUTHENTICATED"
        for scope, text in guarded.keys.items():
            end = await grpc_end(make(stub, (("authorization", f"Bearer {text}"),)))
            assert (end == "PERMISSION_DENIED") == (scope not in (needed, Scope.ADMIN))
            assert end != "UNAUTHENTICATED"


async def test_a_revoked_key_is_refused_by_a_running_server(guarded: Guarded) -> None:
    text = guarded.keys[Scope.SCORE]
    async with AsyncRewardClient(guarded.doors.http_url, api_key=text, attempts=1) as client:
        await client.model()
        guarded.file.revoke(text.split("_")[1])
        with pytest.raises(RequestRefused) as refused:
            await client.model()
    assert refused.value.code == "unauthenticated"


# --- clients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["argument", "environment"])
async def test_clients_send_the_key(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    text = guarded.keys[Scope.SCORE]
    clip = submission(CLIP, media=Media.TENSOR)
    if by == "environment":
        monkeypatch.setenv("MOTION_REWARD_API_KEY", text + "\n")
    given = text if by == "argument" else None
    for url in guarded.doors.urls:
        async with AsyncRewardClient(url, api_key=given) as client:
            [outcome] = await client.score([clip])
            assert outcome.kind is OutcomeKind.OK
            job_ids = await client.submit([clip])
            assert [each.job_id async for each in client.await_outcomes(job_ids)] == job_ids
            assert text not in repr(vars(client)) + repr(vars(client._transport))

        def blocking(url: str = url) -> list[str]:
            with RewardClient(url, api_key=given) as client:
                assert text not in repr(vars(client)) + repr(vars(client._transport))
                job_ids = client.submit([clip])
                return [each.job_id for each in client.await_outcomes(job_ids)]

        assert len(await asyncio.to_thread(blocking)) == 1


def test_a_key_with_wrong_characters_is_not_shown() -> None:
    for text in ("se cret", "secret\u2603", "secret\r\nx: y"):
        with pytest.raises(ValueError) as refused:
            RewardClient("http://127.0.0.1:1", api_key=text)
        assert "cret" not in str(refused.value)


def test_a_file_of_a_key_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("mrk_x\n")
    assert read_api_key(tmp_path / "key") == "mrk_x"
    (tmp_path / "key").write_text("\n")
    with pytest.raises(ValueError, match="no API key"):
        read_api_key(tmp_path / "key")


def test_workers_do_not_get_the_key_of_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTION_REWARD_API_KEY", "mrk_secret")
    given = worker_environment(Settings())
    assert "mrk_secret" not in json.dumps(dict(given)) and "MOTION_REWARD_API_KEY" not in given


# --- logs ---------------------------------------------------------------------------------------


def test_no_secret_reaches_a_log(tmp_path: Path) -> None:
    """A real server, at its most talkative, is given secrets everywhere. Redis ends under it, so there are failures."""
    file = KeyFile(tmp_path / "keys.json")
    good = file.create("good", tuple(Scope))
    wrong = f"mrk_{good.split('_')[1]}_{'WrongSecret' * 4}"
    ca, cert, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    write_encrypted(ca, cert, key, "TlsKeySecret")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    key_text = key.read_text()
    with PrivateRedis(Settings(data_dir=tmp_path / "redis")) as redis:
        environment = os.environ | {
            "MOTION_REWARD_REDIS_URL": redis.url,
            "MOTION_REWARD_KEYS_FILE": str(file.path),
            "MOTION_REWARD_API_KEY": "mrk_EnvironmentSecret",
            "MOTION_REWARD_LOG_LEVEL": "debug",
            "MOTION_REWARD_HTTP": "127.0.0.1:0",
            "MOTION_REWARD_GRPC": "127.0.0.1:0",
            "MOTION_REWARD_REDIS_WAIT_S": "1",
            "MOTION_REWARD_TLS_CERT": str(cert),
            "MOTION_REWARD_TLS_KEY": str(key),
            "MOTION_REWARD_TLS_KEY_PASSWORD": "TlsKeySecret",
        }
        written = tmp_path / "log"
        command = [sys.executable, "-m", "reward_server", "serve", "--workers", "0"]
        with written.open("w") as stderr, started(command, environment, stdout=subprocess.PIPE, stderr=stderr) as child:
            http, url = (word for word in ready_line(child, READY).split() if "://" in word)
            for each in (good, wrong, f"Q{good}", "\x7f\x01PlainSecret"):
                knock(http, url, each, tmp_path / "ca.pem")
            key.write_text("TlsFileSecret")  # a file that cannot be read is told in the log
            knock(http, url, good, tmp_path / "ca.pem")
            redis.stop()
            knock(http, url, good, tmp_path / "ca.pem")
    log = written.read_text()
    assert "unauthenticated" in log or '"status": 401' in log
    assert "waiting for Redis" in log and "the certificates cannot be read" in log
    password = redis.url.split(":")[2].split("@")[0]
    private = [line for line in key_text.splitlines() if not line.startswith("-")]
    named = ("WrongSecret", "PlainSecret", "EnvironmentSecret", "TlsKeySecret", "TlsFileSecret", password)
    for secret in (good, good.split("_", 2)[2], *named, *private):
        assert secret not in log


KNOCKS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("GET", "/v1/model", {}),
    ("GET", "/metrics", {}),
    ("POST", "/v1/jobs", {"content": CLIP}),
    ("POST", "/v1/jobs?group_id=a", {"content": b"--b\r\n"}),
    ("POST", "/v1/refresh", {"json": {"run_id": "r", "steps": 1}}),
)


def knock(http: str, grpc_url: str, secret: str, ca: Path) -> None:
    """Send a secret wherever a caller could put one. Answers do not matter."""
    raw = secret.encode()
    with httpx.Client(base_url=http, timeout=30, verify=ssl.create_default_context(cafile=ca)) as client:
        for headers in ([(b"authorization", b"Bearer " + raw)], [(b"authorization", raw)], [(b"x-api-key", raw)]):
            with_id = [*headers, (b"x-request-id", b"step-1")]
            for method, path, sent in KNOCKS:
                with contextlib.suppress(httpx.TransportError):
                    client.request(method, path, headers=with_id, params={"api_key": secret}, **sent)
    try:
        with RewardClient(grpc_url, api_key=secret, ca=ca, attempts=1, timeout_s=20) as over_grpc:
            over_grpc.submit([submission(CLIP, media=Media.TENSOR)])
    except Exception:
        pass


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}
