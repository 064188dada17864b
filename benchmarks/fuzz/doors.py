"""Sends mutated requests to both doors of a running server: raw HTTP, requests by schemathesis, and protobuf messages.

What counts as the server's fault: every 5xx of HTTP but 503 (not ready), and the gRPC codes INTERNAL, UNKNOWN and
DATA_LOSS. A connection that ends without an answer does not: a changed request is often no whole one.
"""

from __future__ import annotations

import itertools
import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import grpc
import hypothesis
import schemathesis
from google.protobuf.message import Message
from schemathesis import GenerationMode

from benchmarks.fuzz.mutate import mutated
from protos import reward_pb2 as pb
from tests import media

OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"
SERVICE = "/motion_reward.v1.MotionReward"
CALL_S = 3.0
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)


@dataclass
class Answers:
    """How often each answer came, and the requests that got one which is the server's fault."""

    codes: Counter[str] = field(default_factory=Counter)
    found: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, code: str, sent: bytes, *, fault: bool) -> None:
        self.codes[code] += 1
        if fault:
            self.found.append((code, sent))


def fuzz_http(url: str, num: int, seed: int) -> Answers:
    """Raw bytes on a connection of their own each."""
    rng, answers, good = random.Random(seed), Answers(), list(requests())
    address = urlsplit(url)
    for _ in range(num):
        sent = mutated(rng.choice(good), rng, good)
        code = _status((str(address.hostname), int(address.port or 0)), sent)
        answers.add(code, sent, fault=code.startswith("5") and code != "503")
    return answers


def _status(address: tuple[str, int], sent: bytes) -> str:
    """The status of the first answer; "none" if the server ended the connection, "waits" if it wants more."""
    with socket.create_connection(address, timeout=CALL_S) as link:
        link.settimeout(0.3)
        try:
            link.sendall(sent)
            link.shutdown(socket.SHUT_WR)
            head = link.recv(64)
        except TimeoutError:
            return "waits"
        except OSError:
            return "none"
    return head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.") else "none"


def requests() -> Iterator[bytes]:
    """Good requests to each route, as bytes."""
    clip = media.tensor(media.texture(4, 16, 16), 12.0)
    context = json.dumps({"run_id": "r", "group_id": "g", "origin": "real", "query_seed": 3}).encode()
    form = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="c"\r\n\r\n%s\r\n'
    body = form % (b"tensor", clip) + form.replace(b'; filename="c"', b"") % (b"context", context) + b"--b--\r\n"
    refresh = json.dumps({"run_id": "r", "steps": 1}).encode()
    yield _request("POST /v1/jobs", body, "multipart/form-data; boundary=b")
    yield _request("POST /v1/score", clip, "application/vnd.safetensors")
    yield _request("POST /v1/refresh", refresh, "application/json")
    for route in ("/v1/jobs/x?wait_s=0", "/v1/model?run_id=r", "/v1/runs/r/versions", "/metrics", "/readyz", "/docs"):
        yield _request(f"GET {route}")


def _request(line: str, body: bytes = b"", kind: str = "") -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"] if kind else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def fuzz_schema(url: str, num: int, seed: int) -> Answers:
    """Requests that schemathesis makes from docs/openapi.json, as many bad as good ones, about `num` in all."""
    answers = Answers()
    schemathesis.serializer.alias(["video/mp4", "application/vnd.safetensors"], "application/octet-stream")
    schema: Any = schemathesis.openapi.from_path(str(OPENAPI))
    operations = [found.ok() for found in schema.get_all_operations()]

    def send(case: Any) -> None:
        answer = case.call(base_url=url, timeout=60)
        code = str(answer.status_code)
        answers.add(code, case.as_curl_command().encode(), fault=code.startswith("5") and code != "503")

    for operation, mode in itertools.product(operations, GenerationMode):
        settings = hypothesis.settings(
            max_examples=max(1, num // (2 * len(operations))),
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        given = hypothesis.given(case=operation.as_strategy(generation_mode=mode))(send)
        unasked = [hypothesis.errors.Unsatisfiable] if mode is GenerationMode.NEGATIVE else []
        with suppress(*unasked):  # what takes no input cannot be asked wrongly; rightly, all can be asked
            hypothesis.seed(seed)(settings(given))()
    return answers


def fuzz_grpc(url: str, num: int, seed: int) -> Answers:
    """Changed messages, and sometimes several in a call or none."""
    rng, answers, good = random.Random(seed), Answers(), list(messages())
    with grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
        for _ in range(num):
            method, message = rng.choice(good)
            sent = [mutated(message, rng, [other for _, other in good]) for _ in range(rng.choice((1, 1, 1, 2, 5)))]
            code = _code(channel, f"{SERVICE}/{method}", sent)
            answers.add(code.name if code else "OK", b"|".join(sent), fault=code in FAULTS)
    return answers


def _code(channel: grpc.Channel, path: str, sent: list[bytes]) -> grpc.StatusCode | None:
    try:
        call: Any = channel.stream_stream(path)(cast(Any, iter(sent)), timeout=CALL_S)
        for _ in call:
            pass
    except grpc.RpcError as error:
        return cast(grpc.StatusCode, cast(Any, error).code())
    return None


def messages() -> Iterator[tuple[str, bytes]]:
    """A good message of each method."""
    context = pb.Context(run_id="r", group_id="g", origin=pb.REAL, query_seed=3, idempotency_key="k")
    clip = media.tensor(media.texture(4, 16, 16), 12.0)
    made: list[tuple[str, Message]] = [
        ("Score", pb.ScoreRequest(clips=[pb.Clip(media=pb.TENSOR, payload=clip, context=context)])),
        (
            "Submit",
            pb.SubmitRequest(header=pb.SubmitRequest.Header(media=pb.TENSOR, size_bytes=len(clip), context=context)),
        ),
        ("Submit", pb.SubmitRequest(chunk=clip)),
        ("Await", pb.AwaitRequest(job_ids=["x"], timeout_s=0.01)),
        ("Await", pb.AwaitRequest(run_id="r", timeout_s=0.01)),
        ("GetModel", pb.GetModelRequest(run_id="r")),
        ("Refresh", pb.RefreshRequest(run_id="r", steps=1, learning_rate=1e-3)),
    ]
    for method, message in made:
        yield method, bytes(message.SerializeToString())  # type: ignore[no-untyped-call]
