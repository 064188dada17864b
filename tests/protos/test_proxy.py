"""Tests which requests go through the proxy that the environment names. One stub is the proxy and another the server,
and each records what reaches it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from protos.addresses import is_loopback
from protos.client import AsyncRewardClient, RewardClient, RewardClientError
from protos.client.proxies import grpc_options

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")


class Stub:
    """Accepts connections, records the first bytes of each, and closes them."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = socket.create_server((host, 0))
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self.heard: list[bytes] = []
        self._pool = ThreadPoolExecutor(1)
        self._pool.submit(self._listen)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection, suppress(OSError):
                connection.settimeout(10)
                self.heard.append(connection.recv(4096))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._pool.shutdown()


@pytest.fixture
def make_stub() -> Iterator[Callable[..., Stub]]:
    made: list[Stub] = []

    def make(host: str = "127.0.0.1") -> Stub:
        made.append(Stub(host))
        return made[-1]

    yield make
    for stub in made:
        stub.close()


@pytest.fixture
def proxy(make_stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A proxy that every variable names, in upper and lower case, without exempt hosts."""
    stub = make_stub()
    for name in (*PROXIES, "NO_PROXY", "NO_GRPC_PROXY"):
        for spelt in (name, name.lower()):
            monkeypatch.delenv(spelt, raising=False)
            if name in PROXIES:
                monkeypatch.setenv(spelt, f"http://{stub.address}")
    return stub


def ask_blocking(url: str) -> None:
    with RewardClient(url, attempts=1, timeout_s=10) as client, pytest.raises(RewardClientError):
        client.model()


def ask_async(url: str) -> None:
    async def ask() -> None:
        async with AsyncRewardClient(url, attempts=1, timeout_s=10) as client:
            with pytest.raises(RewardClientError):
                await client.model()

    asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_blocking, ask_async])


@both
@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost"])
@pytest.mark.parametrize("scheme", ["http", "https", "grpc"])
def test_this_machine_is_asked_directly(
    ask: Callable[[str], None], scheme: str, host: str, make_stub: Callable[..., Stub], proxy: Stub
) -> None:
    server = make_stub("127.0.0.1" if host == "localhost" else host)
    ask(f"{scheme}://{host}:{server.address.rpartition(':')[2]}")
    assert proxy.heard == []
    assert len(server.heard) >= 1


@both
@pytest.mark.parametrize("scheme", ["http", "https", "grpc"])
def test_this_machine_by_its_ipv6_address_is_asked_directly(
    ask: Callable[[str], None], scheme: str, proxy: Stub
) -> None:
    ask(f"{scheme}://[::1]:9")  # nobody listens there
    assert proxy.heard == []


@both
@pytest.mark.parametrize(
    ("scheme", "request_line"),
    [
        ("http", b"GET http://reward.invalid:7777/v1/model HTTP/1.1"),
        ("https", b"CONNECT reward.invalid:7777 HTTP/1.1"),
        ("grpc", b"CONNECT reward.invalid:7777 HTTP/1.1"),
    ],
)
def test_another_machine_is_asked_through_the_proxy(
    ask: Callable[[str], None], scheme: str, request_line: bytes, proxy: Stub
) -> None:
    ask(f"{scheme}://reward.invalid:7777")
    assert {heard.split(b"\r\n")[0] for heard in proxy.heard} == {request_line}


@both
@pytest.mark.parametrize(
    ("spelt", "no_proxy"),
    [
        ("NO_PROXY", "reward.invalid"),
        ("no_proxy", "reward.invalid"),
        ("NO_PROXY", ".invalid"),
        ("NO_PROXY", "*"),
        ("NO_PROXY", "other.invalid, reward.invalid"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https", "grpc"])
def test_no_proxy_is_honoured(
    *,
    ask: Callable[[str], None],
    scheme: str,
    spelt: str,
    no_proxy: str,
    proxy: Stub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(spelt, no_proxy)
    ask(f"{scheme}://reward.invalid:7777")
    assert proxy.heard == []


@both
def test_no_proxy_of_another_machine_exempts_nobody(
    ask: Callable[[str], None], proxy: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "other.invalid")
    for scheme in ("http", "grpc"):
        before = len(proxy.heard)
        ask(f"{scheme}://reward.invalid:7777")
        assert len(proxy.heard) > before


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_a_proxy_httpx_cannot_use_does_not_affect_loopback(
    kind: Callable[[str], object], proxy: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spelt in ("ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(spelt, "gopher://127.0.0.1:9")
    with pytest.raises(ValueError, match="gopher"):
        kind("http://reward.invalid:7777")
    kind("http://localhost:7777")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "::1", "localhost", "LOCALHOST"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "10.0.0.1", "128.0.0.1", "::2", "localhost.example.com", "127.0.0.1.example.com"])
def test_no_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("target", ["127.0.0.1:50051", "[::1]:50051", "localhost:50051", "LocalHost"])
def test_grpc_targets_of_this_machine(target: str) -> None:
    assert grpc_options(target) == (("grpc.enable_http_proxy", 0),)
