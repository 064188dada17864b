"""Tests TLS at both doors: who trusts whom, certificates that change while the server runs, and clients' files."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from protos.client import AsyncRewardClient, RewardClientError
from protos.client.tls import Tls, tls_of
from reward_server.doors.certificates import certificates_of
from reward_server.errors import BadRequest
from reward_server.serving.operate import server_at
from reward_server.settings import Settings
from tests.authority import Authority, authority, write_encrypted
from tests.conftest import MakeSettings
from tests.running import Doors, open_doors
from trainer.config import RewardsConfig
from trainer.errors import ConfigError

PASSWORD = "TlsKeySecret"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "foreign")


@pytest.fixture
async def mutual(make_settings: MakeSettings, ours: Authority) -> AsyncIterator[Doors]:
    """Doors that ask for certificates of our own CA."""
    async with open_doors(make_settings(tls_cert=ours.server, tls_client_ca=ours.trusted)) as doors:
        yield doors


async def reaches(url: str, **files: Any) -> bool:
    """Whether the client's call comes to the server, which has no worker."""
    async with AsyncRewardClient(url, attempts=1, timeout_s=10, **files) as client:
        with pytest.raises(RewardClientError) as raised:
            await client.model()
        return raised.value.code == "not_ready"


async def test_a_client_trusts_its_ca_and_presents_its_certificate(
    mutual: Doors, ours: Authority, foreign: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mutual.http_url.startswith("https://") and mutual.grpc_url.startswith("grpcs://")
    for url in mutual.urls:
        assert await reaches(url, ca=ours.trusted, cert=ours.client)
        assert not await reaches(url, ca=ours.trusted)
        assert not await reaches(url, ca=ours.trusted, cert=foreign.client)
        assert not await reaches(url, ca=foreign.trusted, cert=ours.client)
        assert not await reaches(url.replace("s://", "://"))  # no TLS at all
        with monkeypatch.context() as patch:
            patch.setenv("MOTION_REWARD_CA", str(ours.trusted))
            patch.setenv("MOTION_REWARD_CERT", str(ours.client))
            assert await reaches(url)


async def test_the_trainer_and_the_commands_present_certificates_too(
    mutual: Doors, ours: Authority, tmp_path: Path
) -> None:
    given = {"ca": str(ours.trusted), "cert": str(ours.client)}
    for url in mutual.urls:
        client = RewardsConfig(server=url, **given).client(attempts=1, timeout_s=10)
        with client, pytest.raises(RewardClientError, match="not_ready"):
            await asyncio.to_thread(client.model)
    with pytest.raises(ConfigError, match=r"nothing\.pem"):
        RewardsConfig(server=mutual.grpc_url, ca=str(tmp_path / "nothing.pem")).client()
    settings = Settings(http=mutual.http_url.removeprefix("https://"), tls_cert=ours.server, **given)
    with server_at(None, settings) as transport, pytest.raises(RewardClientError, match="not_ready"):
        await asyncio.to_thread(transport.ask, "GET", "/v1/model")


async def test_a_certificate_that_changes_serves_the_next_connection(
    make_settings: MakeSettings, foreign: Authority, tmp_path: Path
) -> None:
    mine = authority(tmp_path / "mine")
    both = tmp_path / "both.pem"
    both.write_bytes(mine.trusted.read_bytes() + foreign.trusted.read_bytes())
    clients = tmp_path / "clients.pem"
    clients.write_bytes(mine.trusted.read_bytes())
    async with open_doors(make_settings(tls_cert=mine.server, tls_client_ca=clients)) as doors:
        for url in doors.urls:
            assert await reaches(url, ca=mine.trusted, cert=mine.client)
            assert not await reaches(url, ca=foreign.trusted, cert=foreign.client)
        mine.server.write_text("half a file")
        for url in doors.urls:
            assert await reaches(url, ca=mine.trusted, cert=mine.client)
        foreign.issue(mine.server, "127.0.0.1")
        clients.write_bytes(foreign.trusted.read_bytes())
        for url in doors.urls:
            assert await reaches(url, ca=foreign.trusted, cert=foreign.client)
            assert not await reaches(url, ca=both, cert=mine.client)
            assert not await reaches(url, ca=mine.trusted, cert=foreign.client)


async def test_a_key_with_a_password_serves_both_doors(
    make_settings: MakeSettings, ours: Authority, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    write_encrypted(ours.ca, cert, key, PASSWORD)
    files: dict[str, Any] = {"tls_cert": cert, "tls_key": key}
    settings = make_settings(**files, tls_key_password=SecretStr(PASSWORD))
    assert PASSWORD not in repr(settings)
    async with open_doors(settings) as doors:
        for url in doors.urls:
            assert await reaches(url, ca=ours.trusted)
    for wrong in (None, SecretStr("Other" + PASSWORD)):
        with pytest.raises(BadRequest, match="TLS cannot be served") as refused:
            certificates_of(Settings(**files, tls_key_password=wrong))
        assert PASSWORD not in str(refused.value)
    with pytest.raises(ValueError, match="a key without a password"):
        Tls(ca=ours.trusted, cert=cert, cert_key=key).http_context()


def test_old_versions_of_tls_are_refused(ours: Authority) -> None:
    certificates = certificates_of(Settings(tls_cert=ours.server))
    assert certificates and certificates.http_context().minimum_version >= ssl.TLSVersion.TLSv1_2


def test_files_without_a_use_are_refused(ours: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has no TLS"):
        tls_of("http://127.0.0.1:8000", ca=ours.trusted)
    with pytest.raises(ValueError, match="without its cert"):
        tls_of("https://127.0.0.1:8000", cert_key=ours.client)
    with pytest.raises(ValidationError, match="tls_client_ca is set without tls_cert"):
        Settings(tls_client_ca=ours.trusted)
    with pytest.raises(BadRequest, match=r"there is no .*nothing\.pem"):
        certificates_of(Settings(tls_cert=ours.folder / "nothing.pem"))
    monkeypatch.setenv("MOTION_REWARD_CERT_KEY", str(ours.server))
    given = tls_of("grpcs://127.0.0.1:1", cert=ours.client)
    assert given == Tls(cert=ours.client) and given.cert_key is None  # a given certificate brings its own key
    assert tls_of("grpc://127.0.0.1:1") is None
