"""pyproject.toml and requirements.lock -> what each image installs before our own code.

    python requirements.py pyproject.toml requirements.lock FOLDER

writes FOLDER/NAME/requirements.txt and FOLDER/NAME/constraints.txt for the names torch, server and trainer. It runs in
the build of docker/Dockerfile. A layer reads its own folder only, so other changes leave the layer in the cache.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

TORCH = re.compile(r"torch(vision)?\b")


def requirements(pyproject: Path) -> dict[str, list[str]]:
    """Requirements by name. Those of `torch` are also in `server` and may come from another package index."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"]
    images = {name: [*project["dependencies"], *extras[name]] for name in ("server", "trainer")}
    return {"torch": [line for line in images["server"] if TORCH.match(line)], **images}


def constraints(lock: Path, name: str) -> list[str]:
    """The lock's `package==version` lines whose comment names `name`."""
    pins = (line.partition("#") for line in lock.read_text().splitlines() if not line.startswith("#"))
    return [pin.strip() for pin, _, images in pins if name in images.split()]


if __name__ == "__main__":
    project_file, lock_file, folder = map(Path, sys.argv[1:])
    for image, lines in requirements(project_file).items():
        (folder / image).mkdir(parents=True, exist_ok=True)
        (folder / image / "requirements.txt").write_text("\n".join(lines) + "\n")
        (folder / image / "constraints.txt").write_text("\n".join(constraints(lock_file, image)) + "\n")
