"""What the caller did wrong is never the server's fault: bad requests over both doors, and no answer is a 5xx."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from protos import codec
from protos import reward_pb2 as pb
from protos.error_codes import ErrorCode
from protos.types import ContractError
from tests.conftest import MakeSettings
from tests.running import Doors, open_doors

BOUNDARY = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="video"; filename="v"\r\n\r\nx\r\n'
END = b"--b--\r\n"


@pytest.fixture
async def doors(make_settings: MakeSettings) -> AsyncIterator[Doors]:
    async with open_doors(make_settings(max_clips_per_request=3, max_request_bytes=400_000)) as doors:
        yield doors


# --- HTTP ---------------------------------------------------------------------------------------


def field(name: str, value: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


def form(content: bytes, content_type: str = BOUNDARY) -> dict[str, Any]:
    return {"url": "/v1/jobs", "content": content, "headers": {"content-type": content_type}}


def with_context(context: Any) -> dict[str, Any]:
    text = context if isinstance(context, bytes) else json.dumps(context).encode()
    return form(PART + field("context", text) + END)


def refresh(body: Any) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return {"url": "/v1/refresh", "content": content, "headers": {"content-type": "application/json"}}


HTTP: dict[str, tuple[dict[str, Any], int]] = {
    **{
        f"charset {name}": (form(field("group_id", b"\xff-a-") + PART + END, f"{BOUNDARY}; charset={name}"), 400)
        for name in ("punycode", "idna", "undefined", "unicode_escape", "base64", "utf-16", "no-such", '"', "utf-7")
    },
    "an origin that there is not": (with_context({"origin": 99}), 400),
    "an origin by another name": (with_context({"origin": "camera"}), 400),
    "an origin as a form field": (form(PART + field("origin", b"99") + END), 400),
    "an origin in the query": (form(PART + END) | {"params": {"origin": "99"}}, 400),
    "a seed beyond 64 bits": (with_context({"query_seed": 2**64}), 400),
    "a seed of 5000 digits": (with_context(b'{"query_seed": ' + b"9" * 5000 + b"}"), 400),
    "a number that is infinite": (with_context(b'{"deadline_s": 1e999}'), 400),
    "a number that is none": (with_context(b'{"deadline_s": NaN}'), 400),
    "half a surrogate pair": (with_context(b'{"run_id": "\\ud800"}'), 400),
    "a very deep context": (with_context(b"[" * 100_000), 400),
    "a context that is not UTF-8": (with_context(b"\xff\xfe{"), 400),
    "a context of a string": (with_context("video"), 400),
    "a field that is too long": (with_context({"run_id": "r" * 257}), 400),
    "a part without a name": (form(b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END), 400),
    "a part without a disposition": (form(b"--b\r\n\r\nx\r\n" + END), 400),
    "a part with broken headers": (form(b"--b\r\n\x00:\xff\r\n\r\nx\r\n" + END), 400),
    "an empty boundary": (form(PART + END, "multipart/form-data; boundary="), 400),
    "a boundary with a star": (form(PART + END, "multipart/form-data; boundary*=utf-9'en'%ff"), 400),
    "a content type of commas": (form(PART + END, ";,;=,%ff"), 415),
    "a form that is urlencoded": (form(b"video=x", "application/x-www-form-urlencoded"), 415),
    "too many fields": (form(field("group_id", b"a") * 40 + PART + END), 400),
    "too many files": (form(PART * 4 + END), 400),
    "a refresh that is no JSON": (refresh(b"{"), 400),
    "a refresh that is not UTF-8": (refresh(b'{"run_id": "\xff"}'), 400),
    "a refresh that is very deep": (refresh(b"[" * 100_000), 400),
    "a refresh that is a list": (refresh([]), 400),
    "a refresh of null": (refresh(b"null"), 400),
    "a refresh without a body": (refresh(b""), 400),
    "a refresh with a number of 5000 digits": (refresh(b'{"run_id": "r", "steps": ' + b"9" * 5000 + b"}"), 400),
    "a refresh with an infinite rate": (refresh(b'{"run_id":"r","steps":1,"learning_rate":1e999}'), 400),
    "a refresh with half a surrogate pair": (refresh(b'{"run_id": "\\ud800", "steps": 1}'), 400),
    "a refresh as a form": (refresh(b"run_id=r") | {"headers": {"content-type": "text/plain"}}, 400),
    "a wait that is none": ({"method": "GET", "url": "/v1/jobs/x?wait_s=nan"}, 400),
    "a wait that is endless": ({"method": "GET", "url": "/v1/jobs/x?wait_s=1e9"}, 400),
    "a job that is not UTF-8": ({"method": "GET", "url": "/v1/jobs/%ff%00"}, 404),
    "a job with a line end": ({"method": "GET", "url": "/v1/jobs/%0d%0aGET"}, 404),
    "a job of a megabyte": ({"method": "GET", "url": "/v1/jobs/" + "a" * 30_000}, 404),
    "a job with braces": ({"method": "GET", "url": "/v1/jobs/%7B%7D:%2A"}, 404),
    "a run that is too long": ({"method": "GET", "url": "/v1/model", "params": {"run_id": "r" * 257}}, 400),
    "a path that there is not": ({"method": "GET", "url": "/v1/%2e%2e/x"}, 404),
    "a method that there is not": ({"method": "PATCH", "url": "/v1/score"}, 405),
}


@pytest.mark.parametrize("name", HTTP)
async def test_a_bad_http_request_is_the_callers_fault(doors: Doors, name: str) -> None:
    request, status = HTTP[name]
    async with httpx.AsyncClient(base_url=doors.http_url, timeout=60) as client:
        answer = await client.request(**{"method": "POST"} | request)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] not in (ErrorCode.REWARD_SERVER_ERROR, ErrorCode.SCORING_FAILED)


async def test_a_form_may_declare_its_charset_if_it_is_utf8(doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=doors.http_url) as client:
        for charset in ("utf-8", "UTF-8", '"utf-8"', "us-ascii"):
            request = form(field("run_id", b"a") + PART + END, f"{BOUNDARY}; charset={charset}")
            assert (await client.request("POST", **request)).status_code == 202


async def test_random_forms_are_never_the_servers_fault(doors: Doors) -> None:
    """A good form with a few bytes changed. It may still be good."""
    rng = random.Random(0)
    good = PART + field("context", b'{"origin": "real", "query_seed": 3}') + END
    async with httpx.AsyncClient(base_url=doors.http_url, timeout=60) as client:
        for _ in range(200):
            answer = await client.request("POST", **form(changed(good, rng)))
            assert answer.status_code in (202, 400, 429), answer.text


# --- gRPC ---------------------------------------------------------------------------------------


def wire(message: Message) -> bytes:
    return bytes(message.SerializeToString())  # type: ignore[no-untyped-call]


PREFIX = "/motion_reward.v1.MotionReward"


def clip(**fields: Any) -> pb.ScoreRequest:
    given: dict[str, Any] = {"media": pb.CONTAINER, "payload": b"x"} | fields
    return pb.ScoreRequest(clips=[pb.Clip(**given)])


def header(**fields: Any) -> pb.SubmitRequest:
    declared = {"media": pb.CONTAINER, "size_bytes": 1} | fields
    return pb.SubmitRequest(header=pb.SubmitRequest.Header(**declared))


def of_origin(number: int) -> pb.Context:
    return pb.Context(origin=cast(Any, number))


GRPC: dict[str, tuple[str, list[bytes]]] = {
    **{f"bytes to {name}": (name, [b"\xff\xff\xff"]) for name in ("Score", "Submit", "Await", "GetModel", "Refresh")},
    "text that is not UTF-8": ("GetModel", [b"\x0a\x01\xff"]),
    "bytes after a good part": ("Submit", [wire(header()), b"\x0f"]),
    "an origin that there is not": ("Score", [wire(clip(context=of_origin(99)))]),
    "a negative origin": ("Score", [wire(clip(context=of_origin(-1)))]),
    "a medium that there is not": ("Score", [wire(clip(media=99))]),
    "an origin in a header": ("Submit", [wire(header(context=of_origin(99)))]),
    "a medium in a header": ("Submit", [wire(header(media=99))]),
    "an unknown part": ("Submit", [b"\xd2\x05\x01x"]),
    "an infinite wait": ("Await", [wire(pb.AwaitRequest(job_ids=["x"], timeout_s=float("nan")))]),
    "a negative wait": ("Await", [wire(pb.AwaitRequest(job_ids=["x"], timeout_s=-1))]),
    "a cursor that is none": ("Await", [wire(pb.AwaitRequest(run_id="r", after="x"))]),
    "a run that is too long": ("GetModel", [wire(pb.GetModelRequest(run_id="r" * 257))]),
    "an awaited run that is too long": ("Await", [wire(pb.AwaitRequest(run_id="r" * 257))]),
    "a refresh with a rate that is none": (
        "Refresh",
        [wire(pb.RefreshRequest(run_id="r", steps=1, learning_rate=float("nan")))],
    ),
    "a refresh of too many steps": ("Refresh", [wire(pb.RefreshRequest(run_id="r", steps=2**31 - 1))]),
    "a refresh with a deadline that is none": (
        "Refresh",
        [wire(pb.RefreshRequest(run_id="r", steps=1, deadline_s=float("nan")))],
    ),
}


async def raw_call(doors: Doors, path: str, messages: list[bytes]) -> grpc.aio.AioRpcError | None:
    """Send bytes as the messages of a call. Returns the error that it ended with, or None."""
    async with grpc.aio.insecure_channel(doors.grpc_url.removeprefix("grpc://")) as channel:
        call: Any = channel.stream_stream(path)(cast(Any, iter(messages)), timeout=60)
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError as error:
            return error
    return None


@pytest.mark.parametrize("name", GRPC)
async def test_a_bad_grpc_request_is_the_callers_fault(doors: Doors, name: str) -> None:
    method, messages = GRPC[name]
    error = await raw_call(doors, f"{PREFIX}/{method}", messages)
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    assert dict(error.trailing_metadata() or ())["error-code"] in (ErrorCode.BAD_REQUEST, ErrorCode.UNSUPPORTED_MEDIA)


@pytest.mark.parametrize(
    "path",
    [
        f"/{health_pb2.DESCRIPTOR.package}.Health/Check",
        f"/{health_pb2.DESCRIPTOR.package}.Health/Watch",
        f"/{reflection_pb2.DESCRIPTOR.package}.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_health_and_reflection_refuse_other_bytes_too(doors: Doors, path: str) -> None:
    error = await raw_call(doors, path, [b"\xff\xff"])
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_is_unimplemented(doors: Doors) -> None:
    # No message is sent: the server ends the call at its headers, and a message on its way then
    # makes the client report an error of its own (INTERNAL) instead of the server's.
    error = await raw_call(doors, f"{PREFIX}/Guess", [])
    assert error is not None
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_random_messages_are_never_the_servers_fault(doors: Doors) -> None:
    """A good message with a few bytes changed. It may still be good."""
    rng = random.Random(1)
    good = {
        "Submit": wire(header(context=pb.Context(origin=pb.REAL, query_seed=3))),
        "Await": wire(pb.AwaitRequest(job_ids=["x"], timeout_s=0.01)),
        "Refresh": wire(pb.RefreshRequest(run_id="r", steps=1)),
    }
    faults = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
    for method, message in good.items():
        for _ in range(60):
            sent = changed(message, rng)
            error = await raw_call(doors, f"{PREFIX}/{method}", [sent])
            assert error is None or error.code() not in faults, (method, sent, error)


def changed(data: bytes, rng: random.Random) -> bytes:
    array = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(array))
        match rng.randrange(3):
            case 0:
                array[at] = rng.randrange(256)
            case 1:
                array.insert(at, rng.randrange(256))
            case _:
                del array[at]
    return bytes(array)


# --- what a client reads ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 99, -1])
def test_an_outcome_of_an_unknown_kind_breaks_the_contract(kind: int) -> None:
    with pytest.raises(ContractError, match=f"kind is {kind}"):
        codec.outcome_from_message(pb.Outcome(job_id="x", kind=kind))  # type: ignore[arg-type]
