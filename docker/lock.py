"""Installed versions -> docker/requirements.lock: `make lock`, or `python docker/lock.py` in the virtual environment.

The lock lists every package that the extras `server` and `trainer` need, directly or not, at the version that is
installed here. Docker and pip use it as a constraints file. The comment on a line names the images that need the
package. CUDA packages are left out: which of them torch needs depends on its build.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from requirements import requirements

LOCK = Path(__file__).parent / "requirements.lock"
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
CUDA = re.compile(r"(nvidia|cuda)-|triton$")
HEADER = """\
# Versions for deployments: pip install -c docker/requirements.lock '.[server,trainer]'
# Written by `make lock` under Python {python}. Packages of CUDA are not listed: torch's build chooses them.
"""


def needed(lines: Iterable[str]) -> set[str]:
    """Names of all installed packages that these requirements need, themselves included. CUDA is left out."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if CUDA.match(name) or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) not in found:
                found.add((name, extra))
                waiting += _needs(name, extra)
    return {name for name, _ in found}


def _needs(name: str, extra: str) -> Iterator[Requirement]:
    """Direct requirements of an installed package that hold for `extra`, without the condition on the extra."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            yield requirement


def lock(pyproject: Path) -> str:
    """Text of the lock. Raises PackageNotFoundError for a requirement that is not installed."""
    images = defaultdict(list)
    for image, lines in requirements(pyproject).items():
        for name in needed(lines):
            images[name].append(image)
    lines = [f"{name}=={_version(name)}  # {' '.join(images[name])}\n" for name in sorted(images)]
    python = ".".join(map(str, sys.version_info[:2]))
    return HEADER.format(python=python) + "".join(lines)


def _version(name: str) -> str:
    """Without a local part such as +cpu: the same lock serves every build of torch."""
    return Version(distribution(name).version).public


if __name__ == "__main__":
    try:
        LOCK.write_text(lock(PYPROJECT))
    except PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; run `make test` first, which installs everything")
    print(f"wrote {LOCK}")
