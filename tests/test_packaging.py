"""Tests what is installed and what a deployment pins: the packages of the wheel, and docker/requirements.lock."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "docker" / "requirements.lock").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)  # [a-z ]+$", LOCK, flags=re.M))
TOP_LEVEL = {"protos", "reward_server", "trainer"}
LOCKED_EXTRAS = ("server", "trainer")


def locked_requirements() -> list[str]:
    """The requirements that apply on the images: Python 3.11 on x86-64 Linux."""
    image = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"}
    extras = PROJECT["project"]["optional-dependencies"]
    lines = {*PROJECT["project"]["dependencies"], *(line for name in LOCKED_EXTRAS for line in extras[name])}
    return sorted(line for line in lines if (marker := Requirement(line).marker) is None or marker.evaluate(image))


@pytest.mark.parametrize("line", locked_requirements())
def test_the_lock_satisfies_a_requirement(line: str) -> None:
    requirement = Requirement(line)
    version = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True), f"{line} is locked at {version}; run `make lock`"


def test_the_lock_holds_only_versions() -> None:
    """It has no index, path, local build of torch or CUDA package, and nothing that only development needs."""
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS)
    assert all(Version(version).local is None for version in PINS.values())
    assert not [name for name in PINS if re.match(r"(nvidia|cuda)-|triton$", name)]
    assert not PINS.keys() & {"pytest", "mypy", "ruff", "motion-reward"}


def test_the_wheel_holds_only_the_three_packages() -> None:
    find = PROJECT["tool"]["setuptools"]["packages"]["find"]
    found = find_packages(str(ROOT), include=find["include"])
    assert {name.partition(".")[0] for name in found} == TOP_LEVEL
    folders = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in TOP_LEVEL
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(found) == folders


def test_the_wheel_holds_the_toy_base() -> None:
    folder = ROOT / "trainer"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["trainer"]
    packed = {path for pattern in patterns for path in folder.glob(pattern)}
    weights = {path for path in (folder / "weights").rglob("*") if path.is_file()}
    assert weights and weights <= packed


def test_the_audit_skips_with_a_message_where_pypi_cannot_be_asked(tmp_path: Path) -> None:
    """The workflow runs it. Here it may not use the network: a proxy that there is not stands in the way."""
    sbom = tmp_path / "sbom.json"
    nowhere = os.environ | {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run(
        [ROOT / ".ci" / "audit", sbom], env=nowhere, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("skipped: https://pypi.org") and not sbom.exists()
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["audit"]["steps"]
    assert ".ci/audit sbom.json" in [step.get("run") for step in steps]
